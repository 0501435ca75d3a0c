"""PyTorch's CPU threads, on which the last bits of a network may depend."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use so many CPU threads in this thread's operations inside the block, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    # The number also becomes that of every thread of Python's that runs its first operation later, and would stay it.
    # What another thread sets last is what those get.
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
