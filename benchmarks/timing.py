"""Interleaved timing: every candidate runs in every round, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians(candidates: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float = 0.01) -> dict[str, float]:
    """Return the median time of one call of each candidate, in microseconds.

    Args:
        candidates: functions by name; each is warmed up first.
        rounds: number of times that each is measured.
        seconds: a measurement repeats the call until about this much time has passed.
    """
    repeats = {}
    for name, call in candidates.items():
        for _ in range(3):  # compilation, caches, threads
            call()
        repeats[name] = max(1, round(seconds / max(1e-7, _seconds(call, 3))))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            samples[name].append(_seconds(call, repeats[name]))
    return {name: 1e6 * statistics.median(times) for name, times in samples.items()}


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
