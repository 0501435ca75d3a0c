"""What an attack is to an evaluation: settings, how to run it, what it costs, and how a report describes it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from pursamere._validation import check_choice, check_integer
from pursamere.stepping import IterativePurifier, check_gradient

from .losses import FEWEST_CLASSES

__all__ = ["GRADIENTS", "Attack", "GradientAttack", "Hooks", "Model", "Observer", "Target"]

Model = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] to logits [N, classes]."""
Observer = Callable[[Tensor, Tensor | None], None]
"""Called after every forward pass of the model with the smallest margin so far of every sample, [B], infinite where the
attack has not looked yet, and the gradients of the samples still under attack, [n, C, H, W], if they were taken; called
once if there is nothing to attack because every image is misclassified already."""

GRADIENTS = ("exact", "identity", "straight_through")
_FORWARD, _IDENTITY = 0.25, 0.3  # cost of a forward pass, and of a step of BPDA, in steps with the exact gradient
_SURVIVORS = 0.6  # a guess at the share of samples left for attacks on survivors


class Target(Protocol):
    """The model under attack, as :class:`pursamere.evaluation.target.Target` provides it.

    Attributes:
        purifier: the model's purifier, if it is a :class:`pursamere.PurifiedClassifier`.
        classes: number of logits.
    """

    purifier: IterativePurifier | None
    classes: int

    @property
    def is_random(self) -> bool:
        """Whether the defense draws fresh noise in every call."""

    def attacked(self, gradient: str = "exact") -> Model:
        """The model, differentiated as in :class:`pursamere.PurifiedClassifier`."""

    def sources(self, names: tuple[str, ...]) -> list[Model]:
        """The models to transfer from that exist for this target; see :class:`pursamere.attacks.Transfer`."""


class Hooks(NamedTuple):
    """What an attack reports while it runs.

    Attributes:
        progress: called with the number of steps done, :attr:`Attack.work` in total.
        observe: see :data:`Observer`.
        warn: called with the text of a warning.
    """

    progress: Callable[[int], None] = lambda _: None
    observe: Observer = lambda *_: None
    warn: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Attack(ABC):
    """An attack of a protocol. A subclass is a frozen dataclass whose fields are the attack's settings.

    A run's ``config.json`` and its report show these fields as they are.

    Attributes:
        name: unique in its protocol; the attack's random seeds and file names depend on it.
        survivors_only: attack only samples that withstood all attacks before it. Saves time, but such an attack has no
            accuracy of its own; only the worst case does.
        samples: attack only this many samples, the first ones.
        sweep: run at several radii to show accuracy as a function of eps; does not count for the worst case.
    """

    name: str
    _: KW_ONLY
    survivors_only: bool = False
    samples: int | None = None
    sweep: bool = False

    perturbs: ClassVar[bool] = True  # whether it changes images at all
    packages: ClassVar[tuple[str, ...]] = ()  # modules of the extra "evaluation" that it needs

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise ValueError(f"name must be 1 to 64 letters, digits, '-', '_' and '.', got {self.name!r}")
        if self.samples is not None:
            check_integer("samples", self.samples, low=1)
        if self.sweep and self.survivors_only:
            raise ValueError("sweep needs an attack on all samples, got survivors_only=True")

    @abstractmethod
    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Return adversarial images [B, C, H, W] within ``eps`` of ``images`` and within [0, 1].

        Args:
            target: the model under attack.
            images: [B, C, H, W] in [0, 1].
            labels: [B], int64.
            eps: radius of the ball in pixel units.
            norm: "linf" or "l2".
            seed: seed of everything random.
            hooks: where to report progress, gradients and warnings.

        Raises:
            NotFiniteError: logits or gradients are NaN or infinite, so that the attack is blind.
        """

    @property
    def gradient(self) -> str | None:
        """How the target is differentiated, one of :data:`GRADIENTS`; ``None`` if no gradient of it is taken."""
        return None

    @property
    def differentiates_purifier(self) -> bool:
        """Whether it needs derivatives of purification steps, of the target's purifier or of a similar one."""
        return self.gradient not in (None, "identity")

    @property
    def work(self) -> int:
        """Steps that :meth:`run` reports in total."""
        return 1

    @property
    def forward_passes(self) -> int:
        """Forward passes of the model from one start that :data:`Observer` sees; 0 if it is not called."""
        return 0

    def cost(self, samples: int) -> int:
        """Rough cost of an attack on this many samples, in steps with the exact gradient; for progress bars."""
        share = _SURVIVORS if self.survivors_only else 1.0
        return max(1, round(samples * self.work * self._cost_of_step * share))

    @property
    def _cost_of_step(self) -> float:
        return {None: _FORWARD, "identity": _IDENTITY}.get(self.gradient, 1.0)

    def check_images(self, images: Tensor, norm: str) -> None:  # noqa: B027 (most attacks take images of any size)
        """Raise a ``ValueError`` if the attack can't run on images of this size; called before any work."""

    def reason_against(self, target: Target) -> str | None:
        """Why the attack can't be run on this target, or ``None``."""
        if self.gradient not in (None, "exact") and target.purifier is None:
            return "the model is not a PurifiedClassifier, so it has only one gradient"
        return None

    def settings(self) -> dict[str, Any]:
        """The class and all fields, as values for JSON."""
        return {"class": type(self).__name__, **asdict(self)}

    def describe(self) -> str:
        """The method and its settings in words, for reports. Attacks that differ in the gradient share it."""
        common = {"gradient", *(field.name for field in fields(Attack))}
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}
        told = [f"{name} {_words(value)}".replace("_", " ") for name, value in own.items() if value]
        return f"{type(self).__name__}{': ' if told else ''}{', '.join(told)}"


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """An attack that ascends a loss by gradients of the model, from one or more starts.

    Attributes:
        gradient: how to differentiate the purifier: "exact", "identity" (BPDA) or "straight_through".
        loss: "margin", "cross_entropy", "dlr" or "targeted_dlr"; see :func:`pursamere.attacks.pgd`.
        steps: gradient steps per start.
        restarts: number of starts; for "targeted_dlr", of target classes.
    """

    gradient: str = "exact"
    loss: str = "margin"
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradient(self.gradient, GRADIENTS)
        check_choice("loss", self.loss, FEWEST_CLASSES)
        check_integer("steps", self.steps, low=1)
        check_integer("restarts", self.restarts, low=1)

    @property
    def work(self) -> int:
        """Steps of all starts together."""
        return self.steps * self.restarts

    @property
    def forward_passes(self) -> int:
        """One for each step, and one to see where the last one led."""
        return self.steps + 1

    def reason_against(self, target: Target) -> str | None:
        """Some losses need more than two classes, and only purifiers have more than one gradient."""
        needed = FEWEST_CLASSES[self.loss]
        if target.classes < needed:
            return f"its loss needs at least {needed} classes, and there are {target.classes}"
        return super().reason_against(target)

    def _options(self, target: Target, hooks: Hooks) -> dict[str, Any]:
        """What the functions of all gradient attacks take."""
        return {
            "loss": self.loss,
            "steps": self.steps,
            "restarts": self.restarts,
            # What misleads a random defense once may not do so again, so the attack goes on.
            "stop_at_success": not target.is_random,
            "progress": hooks.progress,
            "observe": hooks.observe,
        }


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
