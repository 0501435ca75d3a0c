"""Auto-PGD (Croce and Hein, ICML 2020), by the package pyautoattack."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pursamere._validation import check_choice, check_integer
from pursamere.determinism import check_evaluation_mode
from pursamere.path_gradient import GradientOf

from ._balls import Ball, check_problem, logits_of
from ._pyautoattack import NORMS, OwnGradient, as_float32, check_gradient, isolated, outside, package
from .attack import GradientAttack, Hooks, Model, Observer, Target
from .losses import FEWEST_CLASSES, TARGETED_DLR, likeliest_wrong_class, margin, negative_margin

__all__ = ["APGD", "apgd"]

_NAMES = {"cross_entropy": "ce", "dlr": "dlr", "margin": "dlr", TARGETED_DLR: "dlr-targeted"}


@torch.inference_mode(False)
def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 100,
    norm: str = "linf",
    loss: str = "cross_entropy",
    restarts: int = 1,
    seed: int = 0,
    stop_at_success: bool = True,
    progress: Callable[[int], None] = lambda _: None,
    observe: Observer = lambda *_: None,
) -> Tensor:
    """Return adversarial images [B, C, H, W] within ``eps`` of ``images`` and within [0, 1].

    PGD with momentum that halves the step size when the loss stops rising. The steps are pyautoattack's (extra
    ``evaluation``), in float32. Random starts, the choice of iterates and early stopping are those of :func:`pgd`, and
    the arguments are its own without ``penalty``. A restart differentiates the model ``steps + 1`` times.

    Raises:
        MissingExtraError: pyautoattack is not installed.
        TypeError: an argument of the wrong type, or the model does not return a floating tensor.
        ValueError: an argument out of its range, too few classes for the loss, or the model does not return logits or
            has a layer in training mode that is random, mixes samples or updates itself.
        NotFiniteError: logits or gradients are NaN or infinite.
    """
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    check_integer("steps", steps, low=1)
    check_integer("restarts", restarts, low=1)
    check_choice("loss", loss, FEWEST_CLASSES)
    images, labels = images.detach().clone(), labels.clone()
    ball = Ball(norm, eps, images)
    generator = torch.Generator("cpu").manual_seed(check_integer("seed", seed, low=0))
    module = package("autopgd_base")
    with torch.no_grad():
        clean_logits = logits_of(model, images, labels)
    classes = clean_logits.shape[1]
    if classes < (needed := FEWEST_CLASSES[loss]):
        raise ValueError(f"loss={loss!r} needs at least {needed} classes, got {classes}")
    seen = _Seen(model, ball, labels, margin(clean_logits, labels), stop_at_success, observe)
    if len(seen.rows) == 0:
        observe(seen.best_margin, None)
    with isolated(images.device):
        for restart in range(restarts):
            # Drawn for the whole batch, so that a start does not depend on which samples have fallen.
            start = ball.random(generator)
            rows = seen.rows = seen.left()
            seen.progress = progress
            if len(rows) == 0:
                progress(steps)
                continue
            kind = module.APGDAttack_targeted if loss == TARGETED_DLR else module.APGDAttack
            attack = kind(seen, n_iter=steps, norm=NORMS[norm], eps=float(eps), device=images.device)
            attack.loss = _NAMES[loss]
            if loss == "margin":  # the package has no such loss; its DLR loss is one function of (logits, labels)
                attack.dlr_loss = negative_margin
            if loss == TARGETED_DLR:
                attack.y_target = likeliest_wrong_class(clean_logits, labels, restart)[rows]
            # Silences warnings of zero gradients, which are those of samples no longer attacked.
            attack.logger = logging.Logger("pursamere.apgd", logging.CRITICAL)
            attack.init_hyperparam(images)
            seen.calls = 0
            try:
                attack.attack_single_run(as_float32(images[rows]), labels[rows].clone(), as_float32(start[rows]))
            except _AllFound:
                progress(steps + 1 - seen.calls)
    return seen.best


@dataclass(frozen=True, kw_only=True)
class APGD(GradientAttack):
    """:func:`apgd` as an attack of a protocol."""

    loss: str = "cross_entropy"

    packages: ClassVar[tuple[str, ...]] = ("pyautoattack",)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`apgd`."""
        model, options = target.attacked(self.gradient), self._options(target, hooks)
        return apgd(model, images, labels, eps=eps, norm=norm, seed=seed, **options)


class _AllFound(Exception):  # noqa: N818 (it is no error)
    """Ends a run of the package, which would go on when all samples are misclassified."""


class _Seen:
    """The model as the package sees it, which keeps the image of the smallest margin for each sample.

    With ``stop_at_success`` the model does not run on misclassified samples. Their logits and gradients are zero
    instead, which affects no other sample.
    """

    def __init__(
        self, model: Model, ball: Ball, labels: Tensor, clean: Tensor, stop_at_success: bool, observe: Observer
    ) -> None:
        self.model, self.ball, self.labels, self.observe = model, ball, labels, observe
        self.stop_at_success = stop_at_success
        self.best = ball.center.clone()
        self.best_margin = torch.where(clean < 0, clean, math.inf)
        self.rows = self.left()
        self.calls = 0
        self.progress: Callable[[int], None] = lambda _: None

    def left(self) -> Tensor:
        """The samples to attack."""
        everything = torch.arange(len(self.labels), device=self.labels.device)
        return everything[self.best_margin >= 0] if self.stop_at_success else everything

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of ``x``, images of the samples ``rows``."""
        here = (self.best_margin[self.rows] >= 0).nonzero().squeeze(1) if self.stop_at_success else None
        if here is not None and len(here) == 0:
            raise _AllFound
        rows = self.rows if here is None else self.rows[here]
        # The package may leave the ball by a rounding error. The gradient is taken as if the projection were the
        # identity: its own derivative would be zero wherever a pixel is just outside.
        seen = (x if here is None else x[here]).to(self.ball.center.dtype)
        images = GradientOf.apply(seen, self.ball.rows(rows).project(seen.detach()))
        answers = self.labels[rows]
        if x.requires_grad and torch.is_grad_enabled():
            logits = OwnGradient.apply(images, lambda images: logits_of(self.model, images, answers))
        else:
            with outside():
                logits = logits_of(self.model, images, answers)
        found = margin(logits.detach(), self.labels[rows])
        better = found < self.best_margin[rows]
        self.best[rows[better]] = images.detach()[better]
        self.best_margin[rows[better]] = found[better].to(self.best_margin.dtype)
        if x.requires_grad:
            x.register_hook(lambda gradient: self._saw(gradient if here is None else gradient[here]))
        if self.calls:  # the first call is the start, before any step
            self.progress(1)
        self.calls += 1
        logits = logits.to(x.dtype)
        if here is None:
            return logits
        return torch.zeros(len(x), logits.shape[1], dtype=x.dtype, device=x.device).index_put((here,), logits)

    def _saw(self, gradient: Tensor) -> None:
        check_gradient(gradient)
        self.observe(self.best_margin, gradient)
