"""Batches of few fixed sizes, so that a sample's result does not depend on the batch it came in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["candidate_sizes", "default_micro_batch", "map_micro_batches"]

_CPU_ROWS, _CPU_ELEMENTS = 64, 2**18  # of all draws together: with more, a CPU is no faster
_ACCELERATOR_IMAGES, _ACCELERATOR_ELEMENTS = 64, 2**22
_BYTES_PER_ELEMENT = 2**12  # of device memory, for the activations of a network and their gradients


def default_micro_batch(device: torch.device) -> int:
    """Return the size where rows are not checked: 1 on a CPU, batch-invariant by construction, otherwise 64."""
    return 1 if device.type == "cpu" else _ACCELERATOR_IMAGES


def candidate_sizes(draws: int, image_shape: Sequence[int], device: torch.device) -> tuple[int, ...]:
    """Return micro-batch sizes that suit the device, the largest first: powers of two, down to 1.

    The largest fills the device without using much memory: of its total memory, not of what is free. On a CPU whose
    number of threads is no power of two, there are also multiples of its odd factor, which threads can divide evenly.
    """
    elements = draws * max(1, torch.Size(image_shape).numel())
    if device.type == "cpu":
        most = min(_CPU_ROWS // draws, _CPU_ELEMENTS // elements)
    else:
        budget = _ACCELERATOR_ELEMENTS
        if device.type == "cuda":
            budget = min(budget, torch.cuda.get_device_properties(device).total_memory // _BYTES_PER_ELEMENT)
        most = min(_ACCELERATOR_IMAGES, budget // elements)
    powers = [2**power for power in range(max(1, most).bit_length())]
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    odd = threads // (threads & -threads)
    return tuple(sorted({*powers, *(odd * power for power in powers if odd * power <= most)}, reverse=True))


def map_micro_batches(
    function: Callable[..., tuple[Tensor, ...]], sizes: Sequence[int], *batches: Tensor
) -> tuple[Tensor, ...]:
    """Apply ``function`` to tensors [B, *] in micro-batches and concatenate its results.

    Libraries choose their algorithms by shape, so only fixed shapes make results independent of B. Every micro-batch
    has one of ``sizes``, which decrease; the last one is padded with copies of its last row if B is not a sum of them.
    An empty batch runs as one micro-batch of zeros, to get the shapes of the results.
    """
    results = []
    begin = 0
    for rows, size in _split(batches[0].shape[0], sizes):
        parts = (_padded(batch[begin : begin + rows], size) for batch in batches)
        # Without the memory of padding, as a caller may keep the results.
        results.append([result[:rows].clone() if rows < size else result for result in function(*parts)])
        begin += rows
    if len(results) == 1:
        return tuple(results[0])
    return tuple(torch.cat(joined) for joined in zip(*results, strict=True))


def _split(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the rows and the size of every micro-batch."""
    if count == 0:
        yield 0, sizes[-1]
    for size in sizes:
        while count >= size:
            yield size, size
            count -= size
    if count > 0:
        yield count, sizes[-1]


def _padded(part: Tensor, size: int) -> Tensor:
    filler = part[-1:] if part.shape[0] else part.new_zeros((1, *part.shape[1:]))
    # Always a copy: kernels go by memory alignment, and a view's depends on its position in the batch.
    return torch.cat([part, filler.expand(size - part.shape[0], *part.shape[1:])])
