"""The smallest piece of an evaluation: one attack at one radius on one chunk of the samples."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pursamere import attacks
from pursamere._validation import NotFiniteError, check_real
from pursamere.evaluation.course import Course, joined
from pursamere.evaluation.halving import in_halves
from pursamere.evaluation.protocol import Attack
from pursamere.evaluation.target import Target
from pursamere.purifier import Purifier

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Unit:
    """Which piece.

    Attributes:
        attack: what is done.
        eps: radius in pixel units, 0 for the images as they are.
        chunk: number of the chunk.
        rows: positions of its samples among all that are evaluated, as ``range(first, end)``.
    """

    attack: Attack
    eps: float
    chunk: int
    rows: range

    @property
    def meant(self) -> range:
        """Those of its rows that the attack is meant for: all, or the first of all samples."""
        end = self.rows.stop if self.attack.samples is None else min(self.rows.stop, self.attack.samples)
        return range(self.rows.start, end)

    @property
    def name(self) -> str:
        """Unique in a run, and a file's name."""
        return f"{self.attack.name}-eps{self.eps!r}-{self.chunk:05d}"

    def seed(self, seed: int) -> int:
        """A seed of its own, so that units neither share random starts nor depend on their order."""
        digest = hashlib.sha256(f"{seed} {self.name}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


@dataclass
class Outcome:
    """What a unit found; a list has an entry for every sample.

    Attributes:
        attacked: whether the attack was run on the sample (not on one that had fallen, for attacks on survivors).
        prediction: the class predicted for the adversarial image, the image as it is where not attacked.
        correct: whether that is the label.
        margin: the label's logit minus the largest other.
        linf: distance from the image as it is, in pixel units.
        l2: the same in the L2 norm.
        finite: whether the logits of the adversarial image are neither NaN nor infinite; a sample is not ``correct``
            else.
        course: of the attack, on the samples that it could see on.
        flags: warnings of the attack itself.
        blind: whether the attack could not see on the sample (NaN logits or gradients), so that the sample's image is
            unchanged. Such a sample is never ``correct``: nobody knows whether it is robust.
        blind_reason: what the attack said, of the last of these samples.
        seconds: it took; not part of what is compared between runs.
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

    def to_json(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], samples: int) -> Outcome:
        """The outcome of which these are the values.

        Raises:
            KeyError, TypeError, ValueError: they are not those of an outcome of so many samples.
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
    progress: Progress,
) -> tuple[Outcome, Tensor]:
    """Attack a chunk and judge what was found by the model as it is deployed.

    Args:
        target: what is attacked.
        unit: which piece; its rows are those of ``images``.
        images: [n, C, H, W] in [0, 1].
        labels: [n], int64.
        survivors: bool [n], the samples that withstood everything before.
        norm: "linf" or "l2".
        seed: of the evaluation.
        progress: called with numbers of steps done, at least ``restarts * steps`` in total.

    Returns:
        The outcome and the adversarial images [n, C, H, W].
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
        return _attack(target, unit, images[part], labels[part], norm, seed, progress, course, flags), course, flags

    courses = []
    rows = chosen.nonzero().squeeze(1)
    for part, found in in_halves(attacked, rows[:0] if attack.kind == "none" else rows):
        if isinstance(found, NotFiniteError):
            outcome.blind[int(part)], outcome.blind_reason = True, str(found)
        else:
            adversarial[part], course, flags = found
            courses.append(course)
            outcome.flags += flags
    outcome.course = joined(courses)
    progress(attack.steps * attack.restarts)  # not every attack tells, and some end early
    _check_legal(attack.name, images, adversarial, norm, unit.eps)
    target.reset(unit.seed(seed) ^ 1)  # noise that the attack has not seen
    _judge(target, images, adversarial, labels, outcome)
    outcome.seconds = time.perf_counter() - start
    return outcome, adversarial


def _attack(
    target: Target,
    unit: Unit,
    images: Tensor,
    labels: Tensor,
    norm: str,
    seed: int,
    progress: Progress,
    course: Course,
    flags: list[str],
) -> Tensor:
    attack, model = unit.attack, target.attacked(unit.attack.gradient)
    common: dict[str, Any] = {"eps": unit.eps, "norm": norm, "seed": unit.seed(seed)}
    if attack.kind == "random_search":
        return attacks.random_search(model, images, labels, queries=attack.steps, **common)
    if attack.kind == "autoattack":
        return attacks.autoattack(model, images, labels, queries=attack.steps, on_warning=flags.append, **common)
    common["progress"] = progress
    if attack.kind == "square":
        return attacks.square(model, images, labels, queries=attack.steps, **common)
    common["steps"] = attack.steps
    if attack.kind == "transfer":
        return attacks.transfer(model, images, labels, sources=target.sources(attack.sources), **common)
    # What misleads a random defense once may not do so again, so the attack goes on.
    common |= {
        "loss": attack.loss,
        "restarts": attack.restarts,
        "stop_at_success": not target.is_random,
        "observe": course.observe,
    }
    if attack.kind == "apgd":
        return attacks.apgd(model, images, labels, **common)
    if attack.ere_weight and isinstance(target.purifier, Purifier):
        common["penalty"] = attacks.ere_penalty(target.purifier, attack.ere_weight)
    return attacks.pgd(model, images, labels, **common)


@torch.no_grad()
def _judge(target: Target, images: Tensor, adversarial: Tensor, labels: Tensor, outcome: Outcome) -> None:
    logits = target.logits(adversarial)
    finite = torch.isfinite(logits).all(dim=1)
    margin = torch.where(finite, attacks.margin(logits, labels), -torch.inf)
    blind = torch.tensor(outcome.blind, device=labels.device)
    offset = (adversarial - images).flatten(1)
    outcome.prediction = logits.argmax(dim=1).tolist()
    # Where the label's logit is the largest but shared the prediction depends on the classes' order, so that is wrong.
    outcome.correct = ((margin > 0) & ~blind).tolist()
    outcome.margin = margin.tolist()
    outcome.finite = finite.tolist()
    outcome.linf = offset.abs().amax(dim=1).tolist()
    outcome.l2 = torch.linalg.vector_norm(offset, dim=1).tolist()


def _check_legal(name: str, images: Tensor, adversarial: Tensor, norm: str, eps: float) -> None:
    """A backstop: an attack that cheats would make a defense look worse than it is."""
    offset = (adversarial - images).flatten(1)
    length = offset.abs().amax() if norm == "linf" else torch.linalg.vector_norm(offset, dim=1).amax()
    if float(length) > eps * (1 + 1e-5) + 1e-6 or float(adversarial.min()) < 0 or float(adversarial.max()) > 1:
        raise RuntimeError(f"attack {name} returned images outside the ball of radius {eps:g} or outside [0, 1]")
