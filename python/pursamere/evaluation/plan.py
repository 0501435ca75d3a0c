"""Which units a run consists of."""

from __future__ import annotations

from dataclasses import dataclass

from pursamere.evaluation.protocol import CLEAN, Protocol, sweep_radii
from pursamere.evaluation.target import Target
from pursamere.evaluation.units import Unit

# What a step of an attack costs beside one of the exact gradient, for the estimate of the time left.
_COST = {"identity": 0.3, "square": 0.25, "random_search": 0.25, "none": 0.25}
_SURVIVORS = 0.6  # a guess of how many are left, for the same purpose


@dataclass(frozen=True)
class Plan:
    """All units of a run, chunk by chunk in the order in which they are run, and what is not run and why."""

    chunks: list[list[Unit]]
    skipped: dict[str, str]


def make_plan(
    protocol: Protocol, target: Target, radii: tuple[float, ...], norm: str, samples: int, chunk: int, classes: int
) -> Plan:
    """Divide a protocol on so many samples into units."""
    reasons = {attack.name: target.reason_against(attack, classes) for attack in protocol.attacks}
    attacks = [attack for attack in protocol.attacks if reasons[attack.name] is None]
    clean = [(attack, 0.0) for attack in attacks if attack.name == CLEAN]
    main = [(attack, radius) for radius in radii for attack in attacks if attack.name != CLEAN and not attack.sweep]
    sweep = [(attack, radius) for attack in attacks if attack.sweep for radius in sweep_radii(norm, radii)]
    chunks = []
    for number, first in enumerate(range(0, samples, chunk)):
        rows = range(first, min(first + chunk, samples))
        chunks.append(
            [
                Unit(attack, radius, number, rows)
                for attack, radius in (*clean, *main, *sweep)
                if attack.samples is None or first < attack.samples
            ]
        )
    return Plan(chunks, {name: reason for name, reason in reasons.items() if reason is not None})


def cost_of(unit: Unit) -> int:
    """Roughly how many evaluations of the exact gradient a unit costs."""
    attack = unit.attack
    share = _COST.get(attack.kind, _COST.get(attack.gradient, 1.0)) * (_SURVIVORS if attack.survivors_only else 1.0)
    return max(1, round(len(unit.meant) * steps_of(unit) * share))


def steps_of(unit: Unit) -> int:
    """How many steps a unit's attack reports."""
    return unit.attack.steps * unit.attack.restarts * max(1, len(unit.attack.sources))
