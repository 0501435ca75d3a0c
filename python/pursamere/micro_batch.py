"""Batches of one fixed size, so that a sample's result does not depend on the batch it came in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def default_micro_batch(device: torch.device) -> int:
    """One image on a CPU, which is batch-invariant by construction; enough to fill it on an accelerator."""
    return 1 if device.type == "cpu" else 64


def map_micro_batches(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Apply ``function`` to ``x`` [B, *] in micro-batches of exactly ``size`` rows, and join its results by rows.

    Libraries choose their algorithms by shape, so a fixed shape is what makes results independent of B. The last
    micro-batch is padded with copies of its last row; an empty batch is one micro-batch of zeros, so that the results
    have the right shapes.
    """
    results = []
    for part in x.split(size):
        rows = part.shape[0]
        filler = part[-1:] if rows else part.new_zeros((1, *part.shape[1:]))
        # Always a new tensor: a view's memory alignment, which kernels go by, would depend on its place in the batch.
        padded = torch.cat([part, filler.expand(size - rows, *part.shape[1:])])
        results.append([result[:rows] for result in function(padded)])
    return tuple(torch.cat(joined) for joined in zip(*results, strict=True))
