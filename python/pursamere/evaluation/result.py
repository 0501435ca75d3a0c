"""What an evaluation found: results of attacks, worst case and masking checks, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pursamere._text import radius
from pursamere.attacks import Attack

__all__ = ["AttackResult", "MaskingCheck", "Proportion", "Result", "wilson_interval"]

Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


def wilson_interval(correct: int, count: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of the proportion ``correct / count``, 95 % by default.

    Unlike the normal approximation, it has positive length and stays in [0, 1] even at 0 and ``count``.
    """
    if not 0 <= correct <= count or count < 1:
        raise ValueError(f"expected 0 <= correct <= count and count >= 1, got {correct} of {count}")
    share, weight = correct / count, z * z / count
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    # Exact at the ends, where rounding would leave a few ulp.
    return (0.0 if correct == 0 else center - half), (1.0 if correct == count else center + half)


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"Proportion({self.count}/{self.samples}: {self})"

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {"correct": self.count, "samples": self.samples, "accuracy": self.value, "interval_95": self.interval}


@dataclass(frozen=True)
class AttackResult:
    """The result of one attack at one radius, over all chunks.

    Attributes:
        attack: the attack.
        eps: radius in pixel units; 0 for clean images.
        rows: positions of the samples that the attack applies to (all, or the first ones).
        attacked: bool [n], which of them were attacked.
        correct: bool [n], which of them the model still classifies correctly.
        curve: mean smallest margin after 1, 2, ... forward passes, over the attacked samples that are not blind.
        gradients: count of gradients seen, count of zero ones, median and largest L2 norm.
        flags: warnings of the attack itself, and of NaN or infinite logits.
        saw: bool [n], False for blind samples, on which the attack met NaN; these are not correct.
        blind_reason: the attack's error message for a blind sample, or ``None``.
        seconds: wall time.
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
        """Bool [n], the samples that were attacked and are not blind."""
        return self.attacked & self.saw

    @property
    def withstood(self) -> Tensor:
        """Bool [n], the samples that still count as robust. A sample that wasn't attacked does."""
        return self.correct | ~self.attacked

    @property
    def blind(self) -> int:
        """The number of blind samples."""
        return int((~self.saw).sum())

    @property
    def share(self) -> Proportion:
        """Accuracy on the attacked samples; for attacks on survivors, the share of these that survived again."""
        return Proportion(int((self.correct & self.attacked).sum()), max(1, int(self.attacked.sum())))


@dataclass(frozen=True)
class MaskingCheck:
    """A check for masked gradients.

    Attributes:
        name: what was checked.
        passed: False for a warning.
        detail: the figures and their bounds.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, repr=False)
class Result:
    """The result of an evaluation.

    Attributes:
        config: what defines the run.
        environment: versions and machine.
        norm: norm of the radii.
        eps: the radii in pixel units.
        lines: the results of all attacks at all radii.
        clean: clean accuracy.
        worst_case: by radius, the share of samples that are classified correctly and withstood every attack.
        withstood: by radius, bool [B], these samples.
        checks: the checks for masked gradients.
        skipped: attacks that were not run, and why.
        cost: network passes of a purification, images per second, peak memory in MiB.
        compression: by radius, the median ratio of L2 distances between an image and a random perturbation of it, after
            and before purification, and the number of samples. Empty without a purifier and for a random one.
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
    compression: dict[float, tuple[float, int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Result({self.verdict})"

    @property
    def clean_line(self) -> AttackResult:
        """The result on clean images."""
        return next(line for line in self.lines if not line.attack.perturbs)

    def attacks_at(self, eps: float) -> list[AttackResult]:
        """The results that count for the worst case at a radius, without the clean images."""
        return [line for line in self.lines if line.eps == eps and not line.attack.sweep]

    @property
    def sweeps(self) -> dict[str, list[AttackResult]]:
        """The results of attacks that were run at many radii, by name, in the order of the radii."""
        return sweeps_of(self.lines)

    @property
    def verdict(self) -> str:
        """The worst case in one line."""
        if not any(map(self.attacks_at, self.worst_case)):
            return f"no attack was run; clean {self.clean}"
        worst = ", ".join(f"{share} at eps {radius(eps)}" for eps, share in self.worst_case.items())
        warned = [check.name for check in self.checks if not check.passed]
        doubt = f"; {len(self.checks)} masking checks pass"
        if warned:
            doubt = f"; {len(warned)} of {len(self.checks)} masking checks warn: {', '.join(warned)}"
        return f"worst case per sample over all attacks ({self.norm}): {worst}; clean {self.clean}{doubt}"


def sweeps_of(lines: Sequence[AttackResult]) -> dict[str, list[AttackResult]]:
    """The results of attacks with ``sweep=True``, by name, in the order of the radii."""
    found: dict[str, list[AttackResult]] = {}
    for line in sorted(lines, key=lambda line: line.eps):
        if line.attack.sweep:
            found.setdefault(line.attack.name, []).append(line)
    return found
