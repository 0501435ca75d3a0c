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
_ONE_AT_A_TIME = threading.RLock()  # captures and replays, whose buffers belong to one call at a time


class _Graph(NamedTuple):
    arguments: Sequence[Tensor]
    results: Sequence[Tensor]
    replay: Callable[[], None]


class CapturedCalls:
    """Captures functions that run a network, and replays them on new arguments of the same shapes.

    All graphs are dropped when anything in the network is written to or replaced, private attributes too.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._seen: Snapshot | None = None
        self._told: set[str] = set()
        self._given_up = False

    def __call__(self, network: object, function: _Function, key: Hashable, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return ``function(*arguments)``.

        Args:
            network: what the function runs.
            function: neither waits for the device nor allocates but through PyTorch.
            key: what the function depends on beside its arguments and the network.
            arguments: tensors on one CUDA device.
        """
        with _ONE_AT_A_TIME:
            graph = None if self._given_up else self._graph(network, function, key, arguments)
            if graph is not None:
                for static, given in zip(graph.arguments, arguments, strict=True):
                    static.copy_(given)
                graph.replay()
                return tuple(result.clone() for result in graph.results)
        return function(*arguments)

    def tell(self, reason: str) -> None:
        """Warn, once for each reason, that functions are called and not captured."""
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(f"cuda_graphs=True has no effect, since {reason}", RuntimeWarning, stacklevel=8)

    def give_up(self) -> None:
        """Capture nothing from now on."""
        self._given_up = True

    def _graph(self, network: object, function: _Function, key: Hashable, arguments: Sequence[Tensor]) -> _Graph | None:
        if self._seen is None or not self._seen.is_untouched(network):
            self._seen, self._graphs = Snapshot(network), {}
        shapes = tuple((a.shape, a.dtype, a.device) for a in arguments)
        whole_key = (key, shapes, _stream(arguments[0].device))
        if whole_key not in self._graphs:
            try:
                self._graphs[whole_key] = _capture(function, arguments)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._graphs[whole_key] = None
                self.tell(f"the capture failed ({error})")
        return self._graphs[whole_key]


def _stream(device: torch.device) -> int:
    """A graph's memory is reused by the next replay, so replays must be ordered, as they are on one stream."""
    return torch.cuda.current_stream(device).cuda_stream


def _capture(function: _Function, arguments: Sequence[Tensor]) -> _Graph:
    static = [argument.clone() for argument in arguments]
    device, dtype = static[0].device, torch.get_autocast_dtype("cuda")
    # Weights in autocast's cache are freed when its context ends, and a graph would go on reading their memory.
    uncached = torch.autocast("cuda", dtype, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False)
    with torch.cuda.device(device), uncached:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                function(*static)
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating and copying meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = function(*static)
    return _Graph(static, results, graph.replay)
