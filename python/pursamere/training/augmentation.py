"""Random changes of training images that keep their class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augment"]


def augment(x: Tensor, shift: int, flip: bool, cutout: int, generator: torch.Generator) -> Tensor:
    """Return images [N, C, H, W] in [0, 1], each changed at random.

    Args:
        x: the images.
        shift: move each by up to this many pixels in each direction, with zero padding.
        flip: whether to flip half of them horizontally.
        cutout: make a square of this side mid-gray (cutout, arXiv 1708.04552); 0 for none. Its center is anywhere in
            the image, so a part of it may be outside.
        generator: of the random numbers, on the device of ``x``.
    """
    moved = _shifted(x, shift, flip, generator)
    return moved.masked_fill(_squares(x, cutout, generator), 0.5) if cutout else moved


def _shifted(x: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    count, channels, height, width = x.shape
    moves = torch.randint(0, 2 * shift + 1, (2, count), generator=generator, device=x.device)
    rows, columns = (
        move.view(-1, 1) + torch.arange(size, device=x.device)
        for move, size in zip(moves, (height, width), strict=True)
    )
    if flip:
        mirrored = torch.rand((count, 1), generator=generator, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return functional.pad(x, (shift,) * 4)[images, planes, rows[:, None, :, None], columns[:, None, None, :]]


def _squares(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return which pixels are in the square of their image, bool [N, 1, H, W]."""
    inside = []
    for size in x.shape[2:]:
        center = torch.randint(0, size, (len(x), 1), generator=generator, device=x.device)
        start = center - side // 2
        places = torch.arange(size, device=x.device)
        inside.append((places >= start) & (places < start + side))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
