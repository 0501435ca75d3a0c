"""The units of a run, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass

from .case import Case
from .protocol import sweep_radii
from .units import Unit

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """What a run consists of.

    Attributes:
        chunks: the units of each chunk, in the order in which they are run.
        skipped: the attacks that can't be run, by name, and why.
    """

    chunks: list[list[Unit]]
    skipped: dict[str, str]

    @property
    def units(self) -> list[Unit]:
        """The units of all chunks."""
        return [unit for units in self.chunks for unit in units]


def make_plan(case: Case) -> Plan:
    """Divide the case's protocol into units. The model has been checked, so that its classes are known."""
    reasons = {attack.name: attack.reason_against(case.target) for attack in case.protocol.attacks}
    clean, *attacks = (attack for attack in case.protocol.attacks if reasons[attack.name] is None)
    main = [(attack, radius) for radius in case.eps for attack in attacks if not attack.sweep]
    sweep = [(attack, radius) for attack in attacks if attack.sweep for radius in sweep_radii(case.norm, case.eps)]
    chunks = []
    for number, first in enumerate(range(0, len(case.images), case.chunk)):
        rows = range(first, min(first + case.chunk, len(case.images)))
        chunks.append(
            [
                Unit(attack, radius, number, rows)
                for attack, radius in ((clean, 0.0), *main, *sweep)
                if attack.samples is None or first < attack.samples
            ]
        )
    return Plan(chunks, {name: reason for name, reason in reasons.items() if reason is not None})
