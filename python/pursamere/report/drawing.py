"""What all pictures are made with: figures, PNG files and grids of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pursamere._extras import require
from pursamere._text import printable

__all__ = ["COLORS", "RIGHT", "WRONG", "GridRow", "draw_grid", "new_figure", "plain", "to_png"]

RIGHT, WRONG = "#1a7f37", "#cf222e"
COLORS = (
    "#0969da", "#bf8700", "#8250df", RIGHT, "#d4477f", "#0b9a9a", "#8c4a13", "#57606a", "#e16f24", "#1f2328",
)  # fmt: skip


@dataclass(frozen=True)
class GridRow:
    """A row of images.

    Attributes:
        title: text to the left of the row.
        images: [n, C, H, W] in [0, 1] with C = 1 or 3; NaN is drawn white.
        predictions: class predicted for each image, negative for NaN logits, to be written above it; ``None`` to write
            nothing.
    """

    title: str
    images: Tensor
    predictions: Sequence[int] | None = None


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, sizes in inches. Not pyplot's: that would choose a backend and keep the figure."""
    return require("matplotlib.figure", extra="plots").Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Any) -> bytes:
    """The figure as a PNG file without metadata (a version), so that equal figures have equal bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=130, metadata={"Software": None})
    return target.getvalue()


def plain(text: str) -> str:
    """``text`` on one line, never taken for a formula by matplotlib."""
    return printable(text).replace("$", r"\$")


def draw_grid(
    panel: Any,
    rows: Sequence[GridRow],
    labels: Sequence[int] = (),
    notes: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> None:
    """Draw rows of images into a figure or subfigure.

    Args:
        panel: what to draw into.
        rows: at least one row, all of the same number of images.
        labels: true class of each column, which decides the color of the predictions.
        notes: text below each column.
        classes: names to show for the predictions, instead of their numbers.
    """
    axes = panel.subplots(len(rows), len(rows[0].images), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        pixels = row.images.detach().float().nan_to_num(1.0).cpu().permute(0, 2, 3, 1).numpy()  # [n, H, W, C]
        for column, (axis, image) in enumerate(zip(line, pixels, strict=True)):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row.predictions is not None:
                predicted = row.predictions[column]
                color = RIGHT if predicted == labels[column] else WRONG
                said = "NaN" if predicted < 0 else classes[predicted] if classes else str(predicted)
                axis.set_title(said, fontsize=8 if classes else 10, color=color, pad=3)
        line[0].set_ylabel(row.title, fontsize=9)
    for axis, note in zip(axes[-1], notes, strict=False):
        axis.set_xlabel(note, fontsize=7.5)
