"""The number of CPU threads, on which the last bits of a network's results may depend."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["cpu_threads"]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context manager in which this thread's operations use ``count`` CPU threads; restores the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    # Python threads that run their first operation later also start with the number that was set last, by any thread.
    # So another thread sets the old number again.
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)
