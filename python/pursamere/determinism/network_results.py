"""Results of checks that are kept as long as the network is the same."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from .snapshot import Snapshot, contents_of, hold_the_same

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NetworkResults"]

Result = TypeVar("Result")


class _Structure:
    """How a network runs: its modules and functions, with their modes, dtypes and memory formats; not its weights."""

    def __init__(self, network: object) -> None:
        seen = Snapshot(network)
        self._network, self._modules = network, seen.modules
        self._functions: list[object] = [
            part for part in seen.others if callable(part)
        ]  # other objects may be results of a call
        self._children = [list(module._modules.values()) for module in self._modules]
        self._contents = [contents for part in seen.others for contents in contents_of(part)]
        self._form = self._present_form()

    def is_that_of(self, network: object) -> bool:
        """Whether it is the structure of ``network``; fast enough for every call. Errs on the side of no."""
        return (
            network is self._network
            and [list(module._modules.values()) for module in self._modules] == self._children
            and self._present_form() == self._form
            and hold_the_same(self._contents)
        )

    def is_like(self, other: _Structure) -> bool:
        """Whether networks run the same code in the same way."""
        mine, others = ([*each._modules, *each._functions] for each in (self, other))
        same = len(mine) == len(others) and all(a is b for a, b in zip(mine, others, strict=True))
        return same and self._form == other._form

    def _present_form(self) -> list[object]:
        tensors = (t for m in self._modules for held in (m._parameters, m._buffers) for t in held.values())
        return [*[module.training for module in self._modules], *[_layout(t) for t in tensors if t is not None]]


def _layout(tensor: Tensor) -> tuple[object, ...]:
    """Return what decides, beside its shape, which algorithm runs on a tensor."""
    try:
        contiguous = tensor.is_contiguous()
    except RuntimeError:  # a layout without strides
        contiguous = None
    return tensor.dtype, contiguous


class NetworkResults(Generic[Result]):
    """Base class of checks of a network that are made once, and again when the network runs differently."""

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._network: _Structure | None = None  # the network that the results belong to
        self._results: dict[tuple[Any, ...], Result] = {}
        self._is_replica = False

    def _results_of(self, network: object) -> dict[tuple[Any, ...], Result]:
        """Return the results for ``network`` as it is now; none if it ran differently before."""
        if not self._is_replica and (self._network is None or not self._network.is_that_of(network)):
            now = _Structure(network)
            if self._network is None or not self._network.is_like(now):
                self._results = {}
            self._network = now
        return self._results

    def of_replica(self, network: object) -> Self:
        """Return the check for a replica of ``network``: DataParallel makes new ones, of its modules, in every call."""
        self._results_of(network)
        check = copy.copy(self)
        check._network, check._results, check._is_replica = self._network, self._results, True
        return check

    def __getstate__(self) -> dict[str, Any]:
        """Return what to copy or pickle: results hold on one machine."""
        return {name: value for name, value in vars(self).items() if name not in ("_network", "_results")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a copy."""
        self._start_anew()
        vars(self).update(state)
