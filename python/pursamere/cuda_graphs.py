"""Capture of a function in CUDA graphs, one for each shape of its arguments."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .determinism import Snapshot

__all__ = ["CapturedCalls"]

_Function = Callable[..., tuple[Tensor, ...]]
_WARM_UPS = 2  # calls before the capture: they load kernels and fill caches, which a capture can't


class _Graph(NamedTuple):
    arguments: Sequence[Tensor]
    results: Sequence[Tensor]
    replay: Callable[[], None]


class CapturedCalls:
    """Captures a function that runs a network, and replays it on new arguments of the same shapes.

    Graphs are dropped when the network changes. Calls of several threads follow one another.

    Args:
        network: what the function runs.
    """

    def __init__(self, network: object) -> None:
        self._network = network
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: Snapshot | None = None
        self._refused = False
        self._lock = threading.Lock()

    def __call__(self, function: _Function, key: Hashable, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return ``function(*arguments)``.

        Args:
            function: neither waits for the device nor allocates but through PyTorch.
            key: what the function depends on beside its arguments and the network.
            arguments: tensors on one CUDA device.
        """
        with self._lock:
            if self._refused:
                return function(*arguments)
            if self._seen is None or not self._seen.still_holds(self._network):
                self._seen = Snapshot(self._network)
                self._graphs = {}
            shapes = tuple((a.shape, a.dtype, a.device) for a in arguments)
            graph_key = (key, shapes, _stream(arguments[0].device))
            if graph_key not in self._graphs:
                try:
                    self._graphs[graph_key] = _capture(function, arguments)
                except RuntimeError as error:
                    self.refuse(f"the capture failed ({error})")
                    return function(*arguments)
            graph = self._graphs[graph_key]
            for static, given in zip(graph.arguments, arguments, strict=True):
                static.copy_(given)
            graph.replay()
            return tuple(result.clone() for result in graph.results)

    def refuse(self, reason: str) -> None:
        """Warn, once, that functions are called and not captured, and why."""
        if not self._refused:
            self._refused = True
            message = f"cuda_graphs=True has no effect, since {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=8)


def _stream(device: torch.device) -> int:
    """A graph's memory is reused by the next replay, so replays must be ordered, as they are on one stream."""
    return torch.cuda.current_stream(device).cuda_stream


def _capture(function: _Function, arguments: Sequence[Tensor]) -> _Graph:
    static = [argument.clone() for argument in arguments]
    device = static[0].device
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*static)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = function(*static)
    return _Graph(static, results, graph.replay)
