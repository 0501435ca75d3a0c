"""Writes a figure as PNG and SVG, and its numbers as JSON; with one matplotlib, equal numbers give equal bytes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

from pursamere._files import write_bytes
from pursamere.report.drawing import to_png

__all__ = ["rounded", "tidy", "write"]


def rounded(value: Any, digits: int = 6) -> Any:
    """Numbers with so many significant digits, in nested dicts, lists, arrays and tensors."""
    if isinstance(value, dict):
        return {str(key): rounded(entry, digits) for key, entry in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def small_png(figure: Any) -> bytes:
    """A PNG with 256 colors, which takes half of the space."""
    target = io.BytesIO()
    Image.open(io.BytesIO(to_png(figure))).convert("RGB").quantize(256).save(target, format="png", optimize=True)
    return target.getvalue()


def to_svg(figure: Any, salt: str) -> bytes:
    target = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):  # or the elements' ids would be random
        figure.savefig(target, format="svg", dpi=130, metadata={"Date": None, "Creator": None})
    return target.getvalue()


def write(folder: Path, name: str, numbers: dict[str, Any], figure: Any) -> None:
    """Write ``name``.png, ``name``.svg and ``name``.json into ``folder``, each in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(numbers, indent=1, allow_nan=False)
    text = (
        re.sub(r"\[[^][{}]*\]", lambda match: " ".join(match[0].split()), text) + "\n"
    )  # a list of numbers on one line
    # The PNG first: the layout of the SVG depends on what was drawn before.
    for suffix, content in (("json", text.encode()), ("png", small_png(figure)), ("svg", to_svg(figure, name))):
        write_bytes(folder / f"{name}.{suffix}", content, overwrite=True)
