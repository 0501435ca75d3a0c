"""The end of a step: the descent of M8 and the pixel range, with or without their projections.

Without them a step has the derivative that the "straight_through" gradient takes.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from . import functional

__all__ = ["DescentOptions", "descend", "in_pixel_range"]


class DescentOptions(TypedDict):
    """How a step descends, see :func:`pursamere.functional.accumulate_descend`."""

    step_rule: str
    step_size: float
    norm: str
    radius: float


def descend(
    x: Tensor,
    x0: Tensor,
    per_draw: Tensor,
    direct: Tensor | None,
    projected: bool,
    *,
    step_rule: str,
    step_size: float,
    norm: str,
    radius: float,
) -> Tensor:
    """Return the descent of M8, :func:`pursamere.functional.accumulate_descend`, projected if ``projected``."""
    if projected:
        return functional.accumulate_descend(
            x, x0, per_draw, direct, step_rule=step_rule, step_size=step_size, norm=norm, radius=radius
        )
    if step_rule == "unit":  # an ascent by a negative length
        ascended: Tensor = torch.ops.pursamere.accumulate_ascend(x, per_draw, direct, -step_size)[0]
        return ascended
    gradient = torch.ops.pursamere.sum_draws(per_draw, x.dtype)
    if direct is not None:
        gradient = gradient + direct
    moved: Tensor = x - step_size * (gradient.sign() if step_rule == "sign" else gradient)
    return moved


def in_pixel_range(x: Tensor, projected: bool) -> Tensor:
    """Return ``x`` clipped to [0, 1], if ``projected``."""
    if not projected:
        return x
    return torch.where(x.isfinite(), x.clamp(0.0, 1.0), torch.nan)  # clamping would turn infinity into a valid pixel
