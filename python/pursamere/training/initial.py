"""Initial weights that depend on a seed only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block PyTorch's random state is that of ``seed``, for initialisers that take no generator.

    The state is put back afterwards. Build networks on the CPU: other devices' states are left alone.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
