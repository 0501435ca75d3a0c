"""From the outcomes of all units to accuracies, the worst case and ``outcomes.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pursamere.derivative_check import Agreement

from .case import Case
from .checks import masking_checks
from .course import joined
from .determinism import CHECKED
from .folder import RunFolder
from .measurements import measure
from .plan import Plan
from .result import AttackResult, Proportion, Result
from .units import Outcome, Unit

__all__ = ["summarize", "summary_json"]

_OUTCOMES = "outcomes.csv"
_NAMED = 10  # list at most this many samples
_COLUMNS = ("sample", "label", "eps", "attack", "attacked", "blind", "prediction", "correct", "margin", "linf", "l2")


def summarize(run: RunFolder, case: Case, plan: Plan, derivative: Agreement | None) -> Result:
    """Merge the outcomes of all units, write ``outcomes.csv``, and compute the worst case and the masking checks."""
    found = [(unit, run.load(unit)) for unit in plan.units]
    run.write(_OUTCOMES, _table(found, case.labels.tolist()).encode())
    lines = _merge(found)
    clean = next(line for line in lines if not line.attack.perturbs)
    withstood = {}
    for radius in case.eps:
        alive = clean.correct.clone()
        for line in lines:
            if line.eps == radius and not line.attack.sweep:
                alive[torch.tensor(line.rows, device="cpu")] &= line.withstood
        withstood[radius] = alive
    measured = run.measured(lambda: measure(case))
    return Result(
        config=run.config,
        environment=run.environment,
        norm=case.norm,
        eps=case.eps,
        lines=lines,
        clean=clean.share,
        worst_case={radius: Proportion(int(alive.sum()), len(alive)) for radius, alive in withstood.items()},
        withstood=withstood,
        checks=masking_checks(
            lines,
            case.eps,
            case.target.is_random,
            derivative,
            case.protocol.ladder,
            case.target.logits(case.images[:CHECKED]),
        ),
        skipped=plan.skipped,
        cost=measured.cost,
        compression=measured.compression,
    )


def summary_json(result: Result) -> dict[str, Any]:
    """The result without per-sample outcomes, as values for JSON."""
    return {
        "verdict": result.verdict,
        "norm": result.norm,
        "clean": result.clean.to_json(),
        "worst_case": [{"eps": eps, **share.to_json()} for eps, share in result.worst_case.items()],
        "attacks": [
            {
                "attack": line.attack.name,
                "eps": line.eps,
                **(line.share.to_json() if bool(line.attacked.any()) else {"samples": 0, "accuracy": None}),
                "survivors_only": line.attack.survivors_only,
                "sweep": line.attack.sweep,
                "gradients": line.gradients,
                "curve": line.curve,
                "flags": line.flags,
                "blind": line.blind,
                "seconds": round(line.seconds, 3),
            }
            for line in result.lines
        ],
        "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in result.checks],
        "compression": [
            {"eps": eps, "median_ratio": ratio, "samples": samples}
            for eps, (ratio, samples) in result.compression.items()
        ],
        "skipped": result.skipped,
        "left_out": result.config["protocol"]["left_out"],
        "cost": result.cost,
    }


def _table(found: Sequence[tuple[Unit, Outcome]], labels: list[int]) -> str:
    """The per-sample outcomes as CSV; the bytes don't depend on who ran the units, or in what order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    order: dict[str, int] = {}
    rows: list[tuple[Any, ...]] = []
    for unit, outcome in found:
        order.setdefault(unit.attack.name, len(order))
        for i, row in enumerate(unit.rows):
            said = (outcome.attacked[i], outcome.blind[i], outcome.prediction[i], outcome.correct[i])
            figures = (outcome.margin[i], outcome.linf[i], outcome.l2[i])
            rows.append((row, labels[row], unit.eps, unit.attack.name, *map(int, said), *figures))
    rows.sort(key=lambda values: (values[2], order[values[3]], values[0]))
    writer.writerows(rows)
    return text.getvalue()


def _merge(found: Sequence[tuple[Unit, Outcome]]) -> list[AttackResult]:
    groups: dict[tuple[str, float], list[tuple[Unit, Outcome]]] = {}
    for unit, outcome in found:
        groups.setdefault((unit.attack.name, unit.eps), []).append((unit, outcome))
    return [_line(group) for group in groups.values()]


def _line(group: list[tuple[Unit, Outcome]]) -> AttackResult:
    outcomes = [outcome for _, outcome in group]
    rows = [row for unit, _ in group for row in unit.rows]
    attacked, correct, finite, blind = (
        torch.tensor([value for outcome in outcomes for value in getattr(outcome, name)], device="cpu")
        for name in ("attacked", "correct", "finite", "blind")
    )
    course = joined([outcome.course for outcome in outcomes])
    flags = sorted({flag for outcome in outcomes for flag in outcome.flags})
    unnoticed = attacked & ~blind & ~finite
    if bool(unnoticed.any()):
        flags.append(f"NaN or infinite logits, which count as wrong, on {_named(rows, unnoticed)}")
    reason = next((outcome.blind_reason for outcome in outcomes if outcome.blind_reason), None)
    return AttackResult(
        attack=group[0][0].attack,
        eps=group[0][0].eps,
        rows=rows,
        attacked=attacked,
        correct=correct,
        curve=course.curve,
        gradients=course.gradients(),
        flags=flags,
        saw=~blind,
        blind_reason=None if reason is None else f"{reason} (on {_named(rows, blind)})",
        seconds=sum(outcome.seconds for outcome in outcomes),
    )


def _named(rows: list[int], chosen: Tensor) -> str:
    """The positions of the chosen samples, in words."""
    positions = [rows[i] for i in chosen.nonzero().flatten().tolist()]
    names = ", ".join(map(str, positions[:_NAMED]))
    more = f" and {len(positions) - _NAMED} more" if len(positions) > _NAMED else ""
    return f"{'sample' if len(positions) == 1 else 'samples'} {names}{more}"
