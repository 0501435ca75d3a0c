"""Projected gradient descent (Madry et al., ICLR 2018) with random restarts and a decaying step size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pursamere._validation import NotFiniteError, check_choice, check_integer, check_nonnegative
from pursamere.determinism import check_evaluation_mode
from pursamere.objective import expected_reconstruction_error
from pursamere.purifier import Purifier

from ._balls import Ball, check_problem, logits_of
from .attack import GradientAttack, Hooks, Model, Observer, Target
from .losses import FEWEST_CLASSES, loss_of_restart, margin

__all__ = ["PGD", "ere_penalty", "pgd"]


@torch.inference_mode(False)
def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 100,
    norm: str = "linf",
    loss: str = "margin",
    restarts: int = 1,
    seed: int = 0,
    penalty: Callable[[Tensor], Tensor] | None = None,
    stop_at_success: bool = True,
    progress: Callable[[int], None] = lambda _: None,
    observe: Observer = lambda *_: None,
) -> Tensor:
    """Return adversarial images [B, C, H, W] within ``eps`` of ``images`` and within [0, 1].

    Ascends the loss from a uniformly random start, by the sign of its gradient for "linf" and by the unit gradient for
    "l2". The step size falls from ``eps / 2`` (more for fewer than 7 steps, so that every point of the ball is within
    reach) to 0 along a half cosine. Of all iterates of all restarts, and of the image itself if it is misclassified,
    the one with the smallest margin is returned for each sample, whatever the loss, or with ``stop_at_success`` the
    first one that is misclassified: misclassified images are then returned unchanged.

    Args:
        model: images [N, C, H, W] to logits [N, classes]; rows must not influence one another.
        images: [B, C, H, W] in [0, 1].
        labels: [B], int64.
        eps: radius of the ball in pixel units.
        steps: gradient steps of each restart, at least 1.
        norm: "linf" or "l2".
        loss: "margin", "cross_entropy", "dlr", or "targeted_dlr", with which each restart targets another class, the
            likeliest wrong one first.
        restarts: number of random starts, at least 1.
        seed: seed of the starts, which are the same on every device.
        penalty: subtracted from the loss, images [N, C, H, W] to [N]: :func:`ere_penalty`.
        stop_at_success: stop attacking a sample once it is misclassified. This saves time and, if samples do not
            influence one another, changes no outcome; without it the attack pushes samples deep into a wrong class,
            where they transfer better.
        progress: called with the number of gradient steps done, ``restarts * steps`` in total.
        observe: called after every forward pass of the model, ``steps + 1`` per restart; see
            :data:`pursamere.attacks.attack.Observer`.

    Raises:
        TypeError: an argument of the wrong type, or the model does not return a floating tensor.
        ValueError: an argument out of its range, or the model does not return logits, is not differentiable or has a
            layer in training mode that is random, mixes samples or updates itself.
        NotFiniteError: logits or gradients are NaN or infinite; a blind attack would make samples look robust.
    """
    check_evaluation_mode("model", model)
    images = check_problem(images, labels)
    images, labels = images.detach().clone(), labels.clone()
    check_integer("steps", steps, low=1)
    check_integer("restarts", restarts, low=1)
    check_choice("loss", loss, FEWEST_CLASSES)
    generator = torch.Generator("cpu").manual_seed(check_integer("seed", seed, low=0))
    ball = Ball(norm, eps, images)
    first_length = 0.5 * eps * max(1.0, 8 / (steps + 1))
    with torch.no_grad():
        clean_logits = logits_of(model, images, labels)
        clean = margin(clean_logits, labels)
    best, best_margin = images.clone(), torch.where(clean < 0, clean, math.inf)
    rows = torch.arange(len(images), device=images.device)  # the samples under attack, which ``current`` holds
    if stop_at_success:
        rows = rows[clean >= 0]
    if len(rows) == 0:
        observe(best_margin, None)
    for restart in range(restarts):
        objective = loss_of_restart(loss, clean_logits, labels, restart)
        # Drawn for the whole batch, so that a start does not depend on which samples have fallen.
        current = ball.random(generator)[rows]
        left = steps
        for step in range(steps + 1):
            if len(rows) == 0:
                break
            wants_gradient = step < steps
            current = current.detach().requires_grad_(wants_gradient)
            with torch.set_grad_enabled(wants_gradient):
                logits = logits_of(model, current, labels[rows])
                value = objective(logits, rows)
                if penalty is not None:
                    value = value - _checked(penalty(current), value)
                total = value.sum()  # its gradient is that of each row, since rows do not influence one another
            found = margin(logits.detach(), labels[rows])
            better = found < best_margin[rows]
            best[rows[better]] = current.detach()[better]
            best_margin[rows[better]] = found[better].to(best_margin.dtype)
            keep = found >= 0 if stop_at_success else torch.ones_like(better)
            gradient = _gradient(total, current) if wants_gradient else None
            observe(best_margin, gradient)
            if gradient is not None:
                length = 0.5 * first_length * (1 + math.cos(math.pi * step / steps))
                current = ball.rows(rows).step(current.detach(), gradient, length)[keep]
                left -= 1
                progress(1)
            rows = rows[keep]
        progress(left)
    return best


def _checked(penalty: Tensor, value: Tensor) -> Tensor:
    if penalty.shape != value.shape:
        raise ValueError(f"penalty must return shape {tuple(value.shape)}, got {tuple(penalty.shape)}")
    return penalty


def _gradient(total: Tensor, images: Tensor) -> Tensor:
    if not total.requires_grad:
        raise ValueError("model must be differentiable in its input, but its result has no gradient")
    (gradient,) = torch.autograd.grad(total, images)
    if not bool(torch.isfinite(gradient).all()):
        raise NotFiniteError("the gradient of the model is NaN or infinite")
    return gradient


def ere_penalty(purifier: Purifier, weight: float) -> Callable[[Tensor], Tensor]:
    """Return a penalty for :func:`pgd`: ``weight`` times the expected reconstruction error (ERE) of an image.

    With it, the attack looks for adversarial images that the purifier has little reason to move.

    Args:
        purifier: provides the denoiser, sigma and noise.
        weight: at least 0; the ERE is in squared pixel units.
    """
    scale = check_nonnegative("weight", weight)

    def penalty(images: Tensor) -> Tensor:
        size = purifier.micro_batch_sizes(images)[0]
        ere = expected_reconstruction_error(purifier.denoiser, images, purifier.sigma, purifier.noise, micro_batch=size)
        return scale * ere

    return penalty


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """:func:`pgd` as an attack of a protocol.

    Attributes:
        ere_weight: weight of the expected reconstruction error that is subtracted from the loss, see
            :func:`ere_penalty`.
    """

    ere_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_nonnegative("ere_weight", self.ere_weight)

    def run(
        self, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, hooks: Hooks
    ) -> Tensor:
        """Run :func:`pgd`."""
        penalty = None
        if self.ere_weight and isinstance(target.purifier, Purifier):
            penalty = ere_penalty(target.purifier, self.ere_weight)
        model, options = target.attacked(self.gradient), self._options(target, hooks)
        return pgd(model, images, labels, eps=eps, norm=norm, seed=seed, penalty=penalty, **options)

    def reason_against(self, target: Target) -> str | None:
        """The penalty needs a purifier that minimizes the expected reconstruction error."""
        if self.ere_weight and not isinstance(target.purifier, Purifier):
            return "the defense does not minimize an expected reconstruction error"
        return super().reason_against(target)
