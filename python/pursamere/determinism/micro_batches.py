"""Batches of one fixed size, so that a sample's result does not depend on the batch it came in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["default_micro_batch", "map_micro_batches"]


def default_micro_batch(device: torch.device) -> int:
    """Return 1 on a CPU, which is batch-invariant by construction, and 64 on an accelerator."""
    return 1 if device.type == "cpu" else 64


def map_micro_batches(function: Callable[..., tuple[Tensor, ...]], size: int, *batches: Tensor) -> tuple[Tensor, ...]:
    """Apply ``function`` to tensors [B, *] in micro-batches of exactly ``size`` rows and concatenate its results.

    Libraries choose their algorithms by shape, so only a fixed shape makes results independent of B. The last
    micro-batch is padded with copies of its last row. An empty batch runs as one micro-batch of zeros, to get the
    shapes of the results.
    """
    results = []
    for parts in zip(*(batch.split(size) for batch in batches), strict=True):
        rows = parts[0].shape[0]
        results.append([result[:rows] for result in function(*(_padded(part, size) for part in parts))])
    return tuple(torch.cat(joined) for joined in zip(*results, strict=True))


def _padded(part: Tensor, size: int) -> Tensor:
    filler = part[-1:] if part.shape[0] else part.new_zeros((1, *part.shape[1:]))
    # Always a copy: kernels go by memory alignment, and a view's depends on its position in the batch.
    return torch.cat([part, filler.expand(size - part.shape[0], *part.shape[1:])])
