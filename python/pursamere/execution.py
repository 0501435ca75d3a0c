"""How purifiers run their denoiser: precision, compilation and memory format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ._devices import has_bfloat16
from ._validation import check_choice
from ._warn import warn_user

__all__ = ["PRECISIONS", "Execution", "NetworkRunner", "Predict", "Run", "run_plainly"]

PRECISIONS = ("float32", "bfloat16")

_TOO_MANY = 4  # functions of one name, shape and noise level that are compiled without a warning

Predict = Callable[[Tensor, float], Tensor]
"""What a denoiser computes from noisy images [N, C, H, W] and their noise level."""

Run = Callable[[Predict, Tensor, float], Tensor]
"""Runs a denoiser's ``predict`` on noisy images."""


@dataclass(frozen=True)
class Execution:
    """How a purifier runs its denoiser. Everything is off by default, and recorded in ``repr`` and evaluations.

    Each setting changes the last bits of a result, which are as deterministic as without it. Which ones are faster
    depends on network, shape and machine; ``pursamere tune`` measures them.

    Args:
        precision: "float32" leaves the denoiser as it is; "bfloat16" runs its convolutions and matrix products in
            bfloat16 (``torch.autocast``), images and sums staying in float32.
        compile: compile the denoiser's passes during purification with ``torch.compile``, once for each of a few sizes
            of micro-batches and each noise level, so for DiffPure with 20 steps 40 times or more. The exact gradient
            differentiates them twice, which compiled networks don't support, so it runs uncompiled, in the same
            precision.
        channels_last: give the noisy images to the denoiser in the channels-last memory format. Convert a network's
            weights too: ``network.to(memory_format=torch.channels_last)``.
        cuda_graphs: on a CUDA device, capture a purification once per shape and replay it, which saves the time to
            launch its kernels. Falls back with one warning that names the reason.

    Raises:
        TypeError: a flag is not a bool.
        ValueError: ``precision`` is unknown.
    """

    precision: str = "float32"
    compile: bool = False
    channels_last: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("compile", "channels_last", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {type(getattr(self, name)).__name__}")

    def __repr__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Execution({', '.join(changed)})"

    @contextmanager
    def in_precision(self, device: torch.device) -> Iterator[None]:
        """Context manager of this thread in which networks run in the chosen precision."""
        if self.precision == "float32":  # the caller's autocast state holds
            yield
            return
        with torch.autocast(device.type, torch.bfloat16):
            yield


def run_plainly(predict: Predict, y: Tensor, sigma: float) -> Tensor:
    """Return ``predict(y, sigma)``."""
    return predict(y, sigma)


def _with_own_code(predict: Predict) -> Predict:
    """Return ``predict`` as a function with a code object of its own.

    Dynamo keeps at most 8 graphs of a code object, those of all purifiers together. It would run any further one
    uncompiled, so that bits depended on what else the process had purified.
    """

    def run(y: Tensor, sigma: float) -> Tensor:
        return predict(y, sigma)

    run.__code__ = run.__code__.replace()
    return run


class NetworkRunner:
    """Runs a denoiser's passes as an :class:`Execution` says."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self._compiled: dict[tuple[Any, ...], tuple[Predict, Predict]] = {}
        self._told: set[str] = set()

    def __call__(self, predict: Predict, y: Tensor, sigma: float) -> Tensor:
        """Run a pass of purification."""
        if not self.execution.compile:
            return self.differentiable(predict, y, sigma)
        key = (id(getattr(predict, "__self__", predict)), getattr(predict, "__name__", ""), y.shape, sigma)
        if key not in self._compiled:
            if sum(known[1:] == key[1:] for known in self._compiled) == _TOO_MANY:
                self._tell("the denoiser's network_call returns a new function every time, each of which is compiled")
            compiled = torch.compile(_with_own_code(predict), dynamic=False)
            self._compiled[key] = (predict, compiled)  # which keeps the object of this id
        return self.differentiable(self._compiled[key][1], y, sigma)

    def differentiable(self, predict: Predict, y: Tensor, sigma: float) -> Tensor:
        """Run a pass that the exact gradient differentiates, twice for the ERE."""
        if self.execution.channels_last:
            y = y.contiguous(memory_format=torch.channels_last)
        prediction = predict(y, sigma)
        if self.execution.precision == "bfloat16" and isinstance(prediction, Tensor):
            return prediction.to(y.dtype)
        return prediction

    def tell_if_slow(self, device: torch.device) -> None:
        """Warn once if the device has no instructions for the precision."""
        if self.execution.precision == "bfloat16" and not has_bfloat16(device):
            self._tell("this CPU has no bfloat16 instructions, so precision='bfloat16' is slower than 'float32' here")

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warn_user(message, RuntimeWarning)
