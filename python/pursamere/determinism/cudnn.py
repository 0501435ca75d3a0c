"""Repeatable cuDNN algorithms."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["repeatable_algorithms"]


@contextmanager
def repeatable_algorithms(device: torch.device) -> Iterator[None]:
    """Context manager in which cuDNN uses deterministic algorithms, not chosen by timing. No effect unless on CUDA.

    These settings are process-wide, so they hold from when the first thread enters until the last one leaves.
    """
    if device.type != "cuda":
        yield
        return
    _PINNED_CUDNN.enter()
    try:
        yield
    finally:
        _PINNED_CUDNN.leave()


class _PinnedCudnn:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (False, False)

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._settings()
            self._inside += 1
            self._set(*_REPEATABLE)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._settings() == _REPEATABLE:  # otherwise someone else has set them since
                self._set(*self._before)

    @staticmethod
    def _settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    @staticmethod
    def _set(benchmark: bool, deterministic: bool) -> None:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic


_REPEATABLE = (False, True)  # benchmark, deterministic
_PINNED_CUDNN = _PinnedCudnn()
