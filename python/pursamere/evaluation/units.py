"""A unit of work: one attack at one radius on one chunk of the samples."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pursamere._validation import NotFiniteError, check_real
from pursamere.attacks import Attack, Hooks, margin

from .course import Course, joined
from .halving import in_halves
from .target import Target

__all__ = ["Outcome", "Unit", "run_unit"]


@dataclass(frozen=True)
class Unit:
    """One attack at one radius on one chunk.

    Attributes:
        attack: the attack.
        eps: radius in pixel units, 0 for clean images.
        chunk: number of the chunk.
        rows: positions of its samples among all that are evaluated, as ``range(first, end)``.
    """

    attack: Attack
    eps: float
    chunk: int
    rows: range

    @property
    def meant(self) -> range:
        """The rows that the attack applies to; fewer than ``rows`` if it attacks only the first samples."""
        end = self.rows.stop if self.attack.samples is None else min(self.rows.stop, self.attack.samples)
        return range(self.rows.start, end)

    @property
    def name(self) -> str:
        """Unique in a run; used as a file name."""
        return f"{self.attack.name}-eps{self.eps!r}-{self.chunk:05d}"

    @property
    def cost(self) -> int:
        """Rough cost in steps with the exact gradient; for progress bars."""
        return self.attack.cost(len(self.meant))

    def seed(self, seed: int) -> int:
        """The unit's own seed: no two units share random starts, and the order of units doesn't matter."""
        digest = hashlib.sha256(f"{seed} {self.name}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


@dataclass
class Outcome:
    """What a unit found; each list has an entry per sample.

    Attributes:
        attacked: whether the attack ran on the sample (attacks on survivors leave out those that have fallen).
        prediction: class predicted for the adversarial image, or for the clean image where not attacked.
        correct: whether the prediction is right. Ties, blind samples and non-finite logits count as misclassified.
        margin: the label's logit minus the largest other logit.
        linf: Linf distance from the clean image, in pixel units.
        l2: L2 distance from the clean image, in pixel units.
        finite: whether the logits of the adversarial image are finite.
        course: statistics of the attack, over the samples where it wasn't blind.
        flags: warnings of the attack itself.
        blind: whether the attack met NaN logits or gradients on the sample. Its image is unchanged then.
        blind_reason: the attack's error message for the last blind sample.
        seconds: wall time; not compared between runs.
    """

    attacked: list[bool]
    prediction: list[int] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    linf: list[float] = field(default_factory=list)
    l2: list[float] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    course: Course = field(default_factory=lambda: Course(0))
    flags: list[str] = field(default_factory=list)
    blind: list[bool] = field(default_factory=list)
    blind_reason: str | None = None
    seconds: float = 0.0

    @property
    def withstood(self) -> list[bool]:
        """Whether each sample still counts as robust. A sample that wasn't attacked does, whatever its prediction."""
        return [correct or not attacked for correct, attacked in zip(self.correct, self.attacked, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], samples: int) -> Outcome:
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: the values are not an outcome of this many samples.
        """
        outcome = cls(**{**values, "course": Course(**values["course"])})
        for name in ("attacked", "prediction", "correct", "margin", "linf", "l2", "finite", "blind"):
            entries = getattr(outcome, name)
            if len(entries) != samples or not all(isinstance(entry, int | float) for entry in entries):
                raise ValueError(f"{name} must be {samples} numbers")
        outcome.course.check()
        check_real("seconds", outcome.seconds)
        if not isinstance(outcome.flags, list) or not all(isinstance(flag, str) for flag in outcome.flags):
            raise TypeError("flags must be a list of str")
        if not isinstance(outcome.blind_reason, str | None):
            raise TypeError("blind_reason must be a str or null")
        return outcome


def run_unit(
    target: Target,
    unit: Unit,
    images: Tensor,
    labels: Tensor,
    survivors: Tensor,
    *,
    norm: str,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[Outcome, Tensor]:
    """Attack a chunk, and judge the adversarial images by the model as it is deployed.

    Args:
        target: the model.
        unit: the unit to run.
        images: [n, C, H, W] in [0, 1], the images of the unit's rows.
        labels: [n], int64.
        survivors: bool [n], the samples that withstood all attacks before.
        norm: "linf" or "l2".
        seed: seed of the evaluation.
        progress: called with the number of steps done, at least ``unit.attack.work`` in total.

    Returns:
        The outcome and the adversarial images [n, C, H, W].

    Raises:
        RuntimeError: the attack is faulty: it returned images of another shape, outside the ball or [0, 1], or NaN.
    """
    start = time.perf_counter()
    attack = unit.attack
    chosen = torch.tensor([row in unit.meant for row in unit.rows], device=images.device)
    if attack.survivors_only:
        chosen = chosen & survivors
    outcome = Outcome(chosen.tolist(), blind=[False] * len(labels))
    adversarial = images.clone()

    def attacked(part: Tensor) -> tuple[Tensor, Course, list[str]]:
        target.reset(unit.seed(seed))
        course, flags = Course(len(part)), list[str]()
        hooks = Hooks(progress, course.observe, flags.append)
        found = attack.run(
            target, images[part], labels[part], eps=unit.eps, norm=norm, seed=unit.seed(seed), hooks=hooks
        )
        shape, got = tuple(images[part].shape), tuple(found.shape)
        if got != shape:  # the assignment below would broadcast
            raise RuntimeError(f"attack {attack.name} must return images of shape {shape}, got {got}")
        return found, course, flags

    courses = []
    for part, found in in_halves(attacked, chosen.nonzero().squeeze(1)):
        if isinstance(found, NotFiniteError):
            outcome.blind[int(part)], outcome.blind_reason = True, str(found)
        else:
            adversarial[part], course, flags = found
            courses.append(course)
            outcome.flags += flags
    outcome.course = joined(courses)
    progress(attack.work)  # not every attack reports progress, and some end early
    _check_legal(attack.name, images, adversarial, norm, unit.eps)
    target.reset(unit.seed(seed) ^ 1)  # noise that the attack has not seen
    _judge(target, images, adversarial, labels, outcome)
    outcome.seconds = time.perf_counter() - start
    return outcome, adversarial


@torch.no_grad()
def _judge(target: Target, images: Tensor, adversarial: Tensor, labels: Tensor, outcome: Outcome) -> None:
    logits = target.logits(adversarial)
    finite = torch.isfinite(logits).all(dim=1)
    margins = torch.where(finite, margin(logits, labels), -torch.inf)
    blind = torch.tensor(outcome.blind, device=labels.device)
    offset = (adversarial - images).flatten(1)
    outcome.prediction = logits.argmax(dim=1).tolist()
    # Not prediction == label: for a tie, argmax depends on the order of the classes.
    outcome.correct = ((margins > 0) & ~blind).tolist()
    outcome.margin = margins.tolist()
    outcome.finite = finite.tolist()
    outcome.linf = offset.abs().amax(dim=1).tolist()
    outcome.l2 = torch.linalg.vector_norm(offset, dim=1).tolist()


def _check_legal(name: str, images: Tensor, adversarial: Tensor, norm: str, eps: float) -> None:
    """Guard against a faulty attack, which would make a defense look worse than it is."""
    offset = (adversarial - images).flatten(1)
    length = offset.abs().amax() if norm == "linf" else torch.linalg.vector_norm(offset, dim=1).amax()
    low, high = float(adversarial.min()), float(adversarial.max())
    # What must hold, not what must not: comparisons with NaN are false.
    if not (float(length) <= eps * (1 + 1e-5) + 1e-6 and low >= 0 and high <= 1):
        raise RuntimeError(
            f"attack {name} returned images outside the ball of radius {eps:g} or outside [0, 1], or NaN: in the norm "
            f"{norm} up to {float(length):g} away, in [{low:g}, {high:g}]"
        )
