"""Interleaved timing: every candidate runs in every round, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from pursamere._environment import versions

Call = Callable[[], object]
CALLS = 20  # about as many in a batch on the GPU: fewer launches than its queue holds, also for the longest candidate
LONGEST_SLEEP = 2**29  # cycles, a quarter of a second


def machine(device: str) -> str:
    """Return what a report says of the machine that it was made on."""
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        hardware = f"{platform.machine()}, {torch.get_num_threads()} threads"
    known = versions()
    return f"{hardware}, torch {known['torch']}, Python {known['python']}"


def medians(candidates: Mapping[str, Call], *, rounds: int, seconds: float = 0.01) -> dict[str, float]:
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
    return _interleaved({name: partial(_seconds, call, repeats[name]) for name, call in candidates.items()}, rounds)


def long_medians(candidates: Mapping[str, Call], *, seconds: float, finish: Call = lambda: None) -> dict[str, float]:
    """Return the median time in seconds of candidates whose single calls are long enough to be measured.

    Args:
        candidates: functions by name; each is called once to warm up.
        seconds: rounds, at least 3 and at most 21, are repeated until about this much time has passed.
        finish: waits until the work of a call is done.
    """
    for call in candidates.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    for number in range(21):
        if number >= 3 and time.perf_counter() - start > seconds:
            break
        for name, call in candidates.items():
            finish()
            samples[name].append(_seconds(call, 1, finish))
    return {name: statistics.median(times) for name, times in samples.items()}


def cuda_medians(candidates: Mapping[str, Sequence[Call]], *, rounds: int) -> dict[str, float]:
    """Return the median time of one call of each candidate on the GPU, in microseconds, without the host's share.

    Args:
        candidates: by name a sequence of functions that do the same on different data, and take turns.
        rounds: number of times that a batch of each is measured, after one to warm up.
    """
    batches = {name: _CudaBatch(name, calls) for name, calls in candidates.items()}
    for batch in batches.values():
        batch.enqueue()  # the allocator's blocks, compilation
    torch.cuda.synchronize()
    return _interleaved({name: batch.seconds for name, batch in batches.items()}, rounds)


def host_medians(
    candidates: Mapping[str, Call],
    *,
    rounds: int,
    calls: int = 1000,
    contexts: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, float]:
    """Return the median time of one of many back-to-back calls on the GPU, in microseconds, by the host's clock.

    Args:
        candidates: functions by name.
        rounds: number of times that each is measured, after one to warm up.
        calls: in a measurement, before its one synchronization.
        contexts: what to enter around a measurement of the candidates named.
    """

    def measure(name: str) -> float:
        with (contexts or {}).get(name, nullcontext)():
            torch.cuda.synchronize()
            return _seconds(candidates[name], calls, finish=torch.cuda.synchronize)

    for name in candidates:
        measure(name)
    return _interleaved({name: partial(measure, name) for name in candidates}, rounds)


class _CudaBatch:
    """Back-to-back calls between two events."""

    def __init__(self, name: str, calls: Sequence[Call]) -> None:
        self._name = name
        self._calls = calls
        self._turns = max(1, round(CALLS / len(calls)))
        self._sleep = 2**20  # cycles

    def enqueue(self) -> None:
        # Results are held until their turn comes again: the allocator would give every call the same memory, which
        # then stays in the L2.
        results: list[object] = [None] * len(self._calls)
        for _ in range(self._turns):
            for number, call in enumerate(self._calls):
                results[number] = call()

    def seconds(self) -> float:
        """Return the time of one call."""
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # The GPU waits until the whole batch is in its queue. Otherwise it would wait for the host between calls
            # that take less time than it takes to launch them, and the host would be measured.
            torch.cuda._sleep(self._sleep)
            start.record()
            self.enqueue()
            end.record()
            host_was_ahead = not start.query()
            end.synchronize()
            if not host_was_ahead and self._sleep < LONGEST_SLEEP:
                self._sleep *= 2
                continue
            if not host_was_ahead:
                warnings.warn(f"{self._name}: the time includes launches, the host cannot keep ahead", stacklevel=2)
            return 1e-3 * start.elapsed_time(end) / (self._turns * len(self._calls))


def _interleaved(measurements: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Medians in microseconds of measurements in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            samples[name].append(measure())
    return {name: 1e6 * statistics.median(times) for name, times in samples.items()}


def _seconds(call: Call, repeats: int, finish: Call = lambda: None) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    finish()
    return (time.perf_counter() - start) / repeats
