"""Shared by the readers of all formats."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from pursamere._text import listed

PIXEL_FORMS = "uint8 [N, H, W] or [N, H, W, C], or float [N, C, H, W]"


class Part(NamedTuple):
    """One split as stored: pixels in one of ``PIXEL_FORMS`` and integer labels [N], not validated yet."""

    pixels: Any
    labels: Any

    def take(self, rows: Any) -> Part:
        """Select rows."""
        return Part(self.pixels[rows], self.labels[rows])


@dataclass(frozen=True)
class Source:
    """A data set whose splits are read lazily.

    Attributes:
        name: name of the data set.
        classes: names of the labels.
        parts: for each split, a function that reads it.
        unused: arrays or files that belong to no split.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, Callable[[], Part]]
    unused: tuple[str, ...] = ()


def warn_unused(source: str | Path, names: Sequence[str]) -> None:
    """Warn of unused arrays or files of a data set, if there are any."""
    if names:
        warnings.warn(f"data set {str(source)!r}: not used: {listed(names)}", stacklevel=4)


def to_images(array: Any, name: str = "images") -> Tensor:
    """Convert pixels in one of ``PIXEL_FORMS`` to float32 [N, C, H, W] in [0, 1], with at most one copy."""
    got = f"{array.dtype} {list(array.shape)}"
    if array.dtype == numpy.uint8 and array.ndim in (3, 4):
        channels_first = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
    elif numpy.issubdtype(array.dtype, numpy.floating) and array.ndim == 4:
        channels_first = array
    else:
        raise ValueError(f"{name} must be {PIXEL_FORMS}, got {got}")
    if array.size == 0 or channels_first.shape[1] not in (1, 3):
        raise ValueError(f"{name} must hold images with 1 or 3 channels as {PIXEL_FORMS}, got {got}")
    if array.dtype == numpy.uint8:
        images = channels_first.astype(numpy.float32, order="C")
        images /= numpy.float32(255)
        return torch.from_numpy(images)
    # Checked before the conversion, where a large float64 would overflow.
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both
        raise ValueError(f"{name} must have values in [0, 1], got a range of [{low:.6g}, {high:.6g}]")
    return torch.from_numpy(numpy.require(array, numpy.float32, ["C", "W"]))


def to_labels(array: Any, name: str = "labels") -> Tensor:
    """Convert labels to int64 [N]."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers [N], got {array.dtype} {list(array.shape)}")
    if array.dtype == numpy.uint64 and array.size and int(array.max()) > numpy.iinfo(numpy.int64).max:
        raise ValueError(f"{name} must be class indices, got {int(array.max())}")
    return torch.from_numpy(array.astype(numpy.int64))
