"""AutoAttack (Croce and Hein, ICML 2020) by the package pyautoattack."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pursamere._validation import check_integer
from pursamere.classifier import PurifiedClassifier
from pursamere.determinism import check_evaluation_mode
from pursamere.stepping import check_gradient

from ._balls import Ball, check_problem, logits_of
from ._pyautoattack import NORMS, Wrapped, as_float32, check_size, isolated, package
from .attack import GRADIENTS, Attack, Hooks, Model, Target

__all__ = ["AutoAttack", "autoattack"]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def autoattack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 250,
    queries: int = 5000,
    on_warning: Callable[[str], None] = _warn,
) -> Tensor:
    """Return adversarial images [B, C, H, W] within ``eps`` of ``images`` and within [0, 1].

    The standard version: APGD-CE, targeted APGD-DLR and targeted FAB against up to 9 classes, and Square, each on the
    samples that withstood those before. Images that withstand all are returned unchanged. With fewer than the four
    classes that the targeted DLR loss needs, APGD-DLR (three classes) or nothing (two) takes the place of APGD-T, and
    untargeted FAB that of targeted FAB.

    Args:
        model: images [N, C, H, W] to logits [N, classes].
        images: [B, C, H, W] in [0, 1]; the package works in float32.
        labels: [B], int64.
        eps: radius of the ball in pixel units.
        norm: "linf" or "l2".
        seed: seed of the random starts.
        batch_size: samples attacked together. Results depend on batch composition, since the package draws its starts
            per batch.
        queries: queries of Square per sample.
        on_warning: called with each warning of the package's own checks (random or dynamic defense, zero gradients,
            samples that fell to Square only); by default a ``RuntimeWarning``. The package takes a purifier for a
            dynamic defense because it differentiates internally; that warning is dropped for a
            :class:`pursamere.PurifiedClassifier`, whose gradients account for it.

    Raises:
        MissingExtraError: pyautoattack is not installed.
        TypeError: an argument of the wrong type, or the model does not return a floating tensor.
        ValueError: an argument out of its range, or the model does not return logits or has a layer in training mode
            that is random, mixes samples or updates itself.
        NotFiniteError: logits or gradients are NaN or infinite.
    """
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    ball = Ball(norm, eps, images.detach())
    check_integer("seed", seed, low=0)
    check_integer("batch_size", batch_size, low=1)
    check_integer("queries", queries, low=1)
    module = package("autoattack")
    check_size(images, norm)
    if len(images) == 0:
        return images.detach().clone()
    with torch.no_grad():
        classes = logits_of(model, images[:1], labels[:1]).shape[1]
    attack = module.AutoAttack(
        Wrapped(model, images.dtype), eps=float(eps), norm=NORMS[norm], seed=seed, device=images.device
    )
    attack.logger = attack.apgd.logger = attack.apgd_targeted.logger = _Flags(
        on_warning, isinstance(model, PurifiedClassifier)
    )
    attack.square.n_queries = queries
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
    if classes < 4:
        attack.attacks_to_run = ["apgd-ce", *["apgd-dlr"][: classes - 2], "fab", "square"]
    with isolated(images.device):
        found, _ = attack.run_standard_evaluation(as_float32(images), labels.clone(), batch_size=batch_size)
    return ball.project(found.to(images.dtype))


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """:func:`autoattack` as an attack of a protocol.

    Attributes:
        gradient: how to differentiate the purifier: "exact", "identity" (BPDA) or "straight_through".
        queries: queries of Square.
    """

    gradient: str = "exact"
    queries: int = 5000

    packages: ClassVar[tuple[str, ...]] = ("pyautoattack",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradient(self.gradient, GRADIENTS)
        check_integer("queries", self.queries, low=1)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`autoattack`."""
        options: dict[str, Any] = {"queries": self.queries, "on_warning": hooks.warn}
        return autoattack(target.attacked(self.gradient), images, labels, eps=eps, norm=norm, seed=seed, **options)

    @property
    def work(self) -> int:
        """Square's queries, which are the bulk of it."""
        return self.queries

    def check_images(self, images: Tensor, norm: str) -> None:
        """Refuse images that are too small for Square."""
        check_size(images, norm)

    def reason_against(self, target: Target) -> str | None:
        """The standard version attacks the same function in every call."""
        return (
            "its standard version is for deterministic defenses" if target.is_random else super().reason_against(target)
        )


class _Flags(logging.Logger):
    """Passes on the package's warnings."""

    def __init__(self, on_warning: Callable[[str], None], purifies: bool) -> None:
        super().__init__("pursamere.autoattack", logging.WARNING)
        self.on_warning, self.purifies = on_warning, purifies

    def handle(self, record: logging.LogRecord) -> None:
        """Pass the message on, unless it is about what is taken care of: a purifier's gradient, too few classes."""
        message = record.getMessage()
        answered = "with only" in message or (self.purifies and "dynamic defense" in message)
        if not answered:
            self.on_warning(f"AutoAttack: {message}")
