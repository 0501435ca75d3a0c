"""Whether a function of a batch treats its rows alike and apart, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .noise import GaussianNoise


def depends_on_companions(
    function: Callable[[Tensor], Sequence[Tensor]], shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> bool:
    """Return whether a row's result depends on its position or on the other rows.

    ``function`` maps images [B, C, H, W] to tensors whose first dimension is B; it is run on four arrangements of
    made-up images: as they are, reversed, rotated by one, and one image in every row.

    Args:
        function: deterministic; called four times.
        shape: [B, C, H, W], the fixed shape to check.
        device: of the images.
        dtype: of the images.
    """
    size = shape[0]
    bank = GaussianNoise(seed=0, draws=size, antithetic=False).sample(tuple(shape[1:]), device, dtype)
    images = (0.5 + 0.25 * bank).clamp(0.0, 1.0)
    expected = function(images)
    rows = torch.arange(size, device=device)
    for order in (rows.flip(0), rows.roll(1), torch.zeros_like(rows)):
        for got, want in zip(function(images[order]), expected, strict=True):
            if not torch.equal(got, want[order]):
                return True
    return False
