"""Results of checks that are kept as long as the network is the same."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .snapshot import Snapshot

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NetworkResults"]


Result = TypeVar("Result")


class NetworkResults(Generic[Result]):
    """Base class of checks of a network that are made once, and again when the network runs differently."""

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._network: Snapshot | None = None  # the network that the results belong to
        self._results: dict[tuple[Any, ...], Result] = {}
        self._is_replica = False

    def _results_of(self, network: object) -> dict[tuple[Any, ...], Result]:
        """Return the results for ``network`` as it is now; none if :meth:`Snapshot.runs_like` doesn't hold."""
        if not self._is_replica and (self._network is None or not self._network.runs_as_before(network)):
            now = Snapshot(network)
            if self._network is None or not self._network.runs_like(now):
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
