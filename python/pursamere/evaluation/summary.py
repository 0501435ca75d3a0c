"""From the outcomes of all units to accuracies, the worst case and the files that tell it."""

from __future__ import annotations

import csv
import io
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pursamere._extras import require
from pursamere.derivative_check import Agreement
from pursamere.evaluation.checks import MaskingCheck, masking_checks
from pursamere.evaluation.course import joined
from pursamere.evaluation.folder import RunFolder
from pursamere.evaluation.html_page import html_page
from pursamere.evaluation.pictures import picture_grid
from pursamere.evaluation.plots import accuracy_plot, bar_plot, loss_plot
from pursamere.evaluation.protocol import CLEAN, Attack, Protocol
from pursamere.evaluation.report import ACCURACY, BARS, GRID, LOSS, markdown_report, title
from pursamere.evaluation.statistics import wilson_interval
from pursamere.evaluation.target import Target
from pursamere.evaluation.units import Outcome, Unit

OUTCOMES = "outcomes.csv"
_NAMED = 10  # so many samples are named one by one
_COLUMNS = ("sample", "label", "eps", "attack", "attacked", "blind", "prediction", "correct", "margin", "linf", "l2")


@dataclass(frozen=True)
class Proportion:
    """A number of samples out of all, with its 95 % Wilson interval."""

    count: int
    samples: int

    @property
    def value(self) -> float:
        """The proportion."""
        return self.count / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the proportion."""
        return wilson_interval(self.count, self.samples)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} - {high:.3f})"

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {"correct": self.count, "samples": self.samples, "accuracy": self.value, "interval_95": self.interval}


@dataclass(frozen=True)
class AttackResult:
    """What one attack did at one radius, over all chunks.

    Attributes:
        attack: of the protocol.
        eps: radius in pixel units; 0 for the images as they are.
        rows: positions of the samples that the attack was meant for (all, or the first ones).
        attacked: bool [n], which of them were attacked.
        correct: bool [n], which of them the model still gets right.
        curve: mean smallest margin after 1, 2, ... evaluations, over the attacked samples that the attack could see on.
        gradients: how many were seen, how many were zero, the median norm and the largest.
        flags: warnings of the attack itself, and of logits that are NaN or infinite.
        saw: bool [n], on which of them the attack could see, or was not run; the others are not correct.
        blind_reason: what the attack said of the others, or ``None``.
        seconds: of computation.
    """

    attack: Attack
    eps: float
    rows: list[int]
    attacked: Tensor
    correct: Tensor
    curve: list[float]
    gradients: dict[str, float]
    flags: list[str]
    saw: Tensor
    blind_reason: str | None
    seconds: float

    @property
    def tried(self) -> Tensor:
        """Bool [n], on which samples the attack was run and could see."""
        return self.attacked & self.saw

    @property
    def blind(self) -> int:
        """On how many samples the attack could not see."""
        return int((~self.saw).sum())

    @property
    def share(self) -> Proportion:
        """The accuracy on the samples that were attacked: for attacks on survivors, how many of these are left."""
        return Proportion(int((self.correct & self.attacked).sum()), max(1, int(self.attacked.sum())))


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
        config: what defines the run.
        environment: versions and machine.
        norm: of the radii.
        eps: the radii in pixel units.
        lines: what each attack did at each radius.
        clean: the accuracy on the images as they are.
        worst_case: by radius, the samples that withstood every attack and were right as they are.
        withstood: by radius, bool [B], which samples these are.
        checks: for masked gradients.
        skipped: attacks that were not run, and why.
        cost: network evaluations of a purification, images per second, peak memory in MiB.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    norm: str
    eps: tuple[float, ...]
    lines: list[AttackResult]
    clean: Proportion
    worst_case: dict[float, Proportion]
    withstood: dict[float, Tensor]
    checks: list[MaskingCheck]
    skipped: dict[str, str]
    cost: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One line that names the worst case."""
        worst = ", ".join(f"{share} at eps {eps:.4g}" for eps, share in self.worst_case.items())
        warned = [check.name for check in self.checks if not check.passed]
        doubt = f"; {len(warned)} masking check(s) warn: {', '.join(warned)}" if warned else "; masking checks pass"
        return f"worst case per sample over all attacks ({self.norm}): {worst}; clean {self.clean}{doubt}"


def summarize(
    run: RunFolder,
    units: list[Unit],
    labels: Tensor,
    eps: tuple[float, ...],
    norm: str,
    skipped: dict[str, str],
    target: Target,
    images: Tensor,
    derivative: Agreement | None,
) -> Result:
    """Merge the outcomes of all units, write the table of per-sample outcomes, and draw the conclusions."""
    found = [(unit, run.load(unit)) for unit in units]
    run.write(OUTCOMES, _table(found, labels.tolist()).encode())
    lines = _merge(found)
    clean = next(line for line in lines if line.attack.name == CLEAN)
    withstood = {}
    for radius in eps:
        alive = clean.correct.clone()
        for line in lines:
            if line.eps == radius and not line.attack.sweep:
                rows = torch.tensor(line.rows, device="cpu")
                alive[rows] &= line.correct | ~line.attacked
        withstood[radius] = alive
    return Result(
        config=run.config,
        environment=run.environment,
        norm=norm,
        eps=eps,
        lines=lines,
        clean=clean.share,
        worst_case={radius: Proportion(int(alive.sum()), len(alive)) for radius, alive in withstood.items()},
        withstood=withstood,
        checks=masking_checks(lines, eps, target.is_random, derivative),
        skipped=skipped,
        cost=_cost(target, images),
    )


def summary_json(result: Result) -> dict[str, Any]:
    """Everything but the per-sample outcomes, as values for JSON."""
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
        "skipped": result.skipped,
        "left_out": result.config["protocol"]["left_out"],
        "cost": result.cost,
    }


def require_packages(protocol: Protocol) -> None:
    """Raise a ``MissingExtraError`` before hours of work rather than after them."""
    from_package = any(attack.kind in ("apgd", "autoattack", "square") for attack in protocol.attacks)
    for module in ("safetensors", "matplotlib.figure", "markdown", *(["pyautoattack"] if from_package else [])):
        require(module, extra="evaluation")


def write_summary(
    run: RunFolder, result: Result, units: Sequence[Unit], target: Target, images: Tensor, labels: Tensor
) -> None:
    """Write the summary, and the report in Markdown and HTML with its pictures.

    Args:
        run: the folder.
        result: what to tell.
        units: all of the run's, done.
        target: what was attacked, for the picture grid.
        images: [B, C, H, W] in [0, 1], all that were evaluated.
        labels: [B], int64.
    """
    run.write("summary.json", (json.dumps(summary_json(result), indent=1) + "\n").encode())
    drawn = {
        ACCURACY: accuracy_plot(result),
        BARS: bar_plot(result),
        LOSS: loss_plot(result),
        GRID: picture_grid(result, run, units, target, images, labels),
    }
    pictures = {name: content for name, content in drawn.items() if content is not None}
    for name, content in pictures.items():
        run.write(name, content)
    kept = next((unit.name for unit in units if run.has_adversarial(unit)), None)
    text = markdown_report(result, pictures, kept)
    run.write("report.md", text.encode())
    run.write("report.html", html_page(title(result), text, pictures).encode())


def _table(found: Sequence[tuple[Unit, Outcome]], labels: list[int]) -> str:
    """The per-sample outcomes as CSV; the same bytes whoever ran the units, and in whatever order."""
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
    """The positions of some samples, in words."""
    positions = [rows[i] for i in chosen.nonzero().flatten().tolist()]
    names = ", ".join(map(str, positions[:_NAMED]))
    more = f" and {len(positions) - _NAMED} more" if len(positions) > _NAMED else ""
    return f"{'sample' if len(positions) == 1 else 'samples'} {names}{more}"


def _cost(target: Target, images: Tensor) -> dict[str, Any]:
    part = images[:128]
    start = time.perf_counter()
    target.logits(part)
    if part.device.type == "cuda":
        torch.cuda.synchronize(part.device)
        peak = torch.cuda.max_memory_allocated(part.device) / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    rate = len(part) / (time.perf_counter() - start)
    cost: dict[str, Any] = {"images_per_second": round(rate, 1), "peak_memory_mib": round(peak, 1)}
    passes = getattr(target.purifier, "network_passes", None)
    if passes is not None:
        cost |= {"forward_passes": passes.forward, "backward_passes": passes.backward}
    return cost
