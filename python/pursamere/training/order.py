"""Order and noise depend only on (seed, step); no RNG state is saved."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

_ORDER, _NOISE = 0, 1


def generator(seed: int, stream: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return an independent generator for one purpose (``stream``) and one step or epoch."""
    mixed = numpy.random.SeedSequence([seed, stream, number]).generate_state(1, numpy.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0] >> numpy.uint64(1)))


def noise_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Return the generator of a step's noise and augmentation, the same in every process."""
    return generator(seed, _NOISE, step, device)


class DataOrder:
    """Shuffles every epoch; batches may span epochs.

    Args:
        size: number of images, at least 1.
        batch_size: images per step.
        seed: seed of the permutations.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._epochs: dict[int, Tensor] = {}

    def batch(self, step: int) -> Tensor:
        """Return the rows [batch_size] of a step, counted from 0."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size, device="cpu")
        first, last = (int(positions[i]) // self.size for i in (0, -1))
        self._epochs = {e: self._epochs[e] if e in self._epochs else self._order(e) for e in range(first, last + 1)}
        return torch.cat([self._epochs[e][positions[positions // self.size == e] % self.size] for e in self._epochs])

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.size, generator=generator(self.seed, _ORDER, epoch), device="cpu")
