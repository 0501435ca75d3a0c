"""What an evaluation found: proportions with their intervals, the result of each attack, masking checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pursamere.evaluation.protocol import Attack

_Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


def wilson_interval(correct: int, count: int, z: float = _Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion ``correct / count``, 95 % by default.

    Unlike the normal approximation it is never empty and never leaves [0, 1], also at 0 or ``count`` correct.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"expected 0 <= correct <= count and count >= 1, got {correct} of {count}")
    share, weight = correct / count, z * z / count
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    # Exact at the ends, where rounding would leave a few ulp.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == count else center + half)


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
class MaskingCheck:
    """Whether a sign of masking was absent, and the figures."""

    name: str
    passed: bool
    detail: str


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
