"""AutoAttack (Croce and Hein, ICML 2020) and its Square attack (Andriushchenko et al., ECCV 2020), by pyautoattack."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pursamere._validation import check_integer
from pursamere.classifier import PurifiedClassifier

from ._balls import Ball, check_problem, logits_of
from ._pyautoattack import NORMS, OwnGradient, as_float32, check_size, isolated, outside, package
from .pgd import Model


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

    The standard version: APGD-CE, targeted APGD-DLR and targeted FAB against up to 9 other classes, and Square, each on
    the samples that withstood the ones before. Images that withstand all are returned as they were. With fewer than
    the four classes that the targeted DLR loss needs, APGD-DLR (for three) or nothing, and untargeted FAB, stand in.

    Args:
        model: images [N, C, H, W] to logits [N, classes].
        images: [B, C, H, W] in [0, 1]; the package works in float32.
        labels: [B], int64.
        eps: radius of the ball in pixel units.
        norm: "linf" or "l2".
        seed: of the random starts.
        batch_size: samples attacked together. What is found for one depends on the others in the last resort: the
            package draws its starts for a batch.
        queries: of Square.
        on_warning: gets the warnings of the package's own checks (random or dynamic defense, zero gradients, Square
            having found what the others missed); by default they are given as ``RuntimeWarning``. A purifier is taken
            for a dynamic defense, since it differentiates inside; the warning is left out for a
            :class:`pursamere.PurifiedClassifier`, whose gradients account for that.

    Raises:
        MissingExtraError: pyautoattack is not installed.
        TypeError: an argument of the wrong type, or the model does not return a floating tensor.
        ValueError: an argument out of its range, or the model does not return logits.
        RuntimeError: logits are NaN or infinite.
    """
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
        _Inside(model, images.dtype), eps=float(eps), norm=NORMS[norm], seed=seed, device=images.device
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


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int = 5000,
    norm: str = "linf",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Return adversarial images [B, C, H, W] found by Square's random search, or the given ones; no gradient is taken.

    Arguments and errors as for :func:`autoattack`; ``progress`` is called with numbers of queries made.
    """
    images = check_problem(images, labels)
    ball = Ball(norm, eps, images.detach())
    check_integer("seed", seed, low=0)
    check_integer("queries", queries, low=1)
    module = package("square")
    check_size(images, norm)
    with torch.no_grad():
        right = logits_of(model, images, labels).argmax(1) == labels
    result = images.detach().clone()
    if not bool(right.any()):
        progress(queries)
        return result
    made = 0

    def advance() -> None:
        nonlocal made
        step = min(1, queries - made)
        made += step
        progress(step)

    # The size of the squares falls on a schedule for 10,000 queries, which the package rescales to ``queries``.
    attack = module.SquareAttack(
        _Inside(model, images.dtype, advance), n_queries=queries, eps=float(eps), norm=NORMS[norm], seed=seed
    )
    with isolated(images.device), torch.no_grad():
        found = attack.perturb(as_float32(images[right]), labels[right].clone())
    progress(queries - made)
    result[right] = ball.rows(right).project(found.to(images.dtype))
    return result


class _Inside(nn.Module):
    """The model as the package sees it: float32 at both ends, checked logits of its own to overwrite."""

    def __init__(self, model: Model, dtype: torch.dtype, called: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.model, self.dtype, self.called = model, dtype, called

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``, in which the package may leave [0, 1] by a rounding error."""
        self.called()
        if not (x.requires_grad and torch.is_grad_enabled()):
            with outside():
                return self._logits(x)
        logits: Tensor = OwnGradient.apply(x, self._logits)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return logits_of(self.model, x.to(self.dtype).clamp(0, 1), labels).float().clone()


class _Flags(logging.Logger):
    """Hands on the package's warnings."""

    def __init__(self, on_warning: Callable[[str], None], purifies: bool) -> None:
        super().__init__("pursamere.autoattack", logging.WARNING)
        self.on_warning, self.purifies = on_warning, purifies

    def handle(self, record: logging.LogRecord) -> None:
        """Pass the message on, but for what has been seen to: a purifier's own gradient, and too few classes."""
        message = record.getMessage()
        answered = "with only" in message or (self.purifies and "dynamic defense" in message)
        if not answered:
            self.on_warning(f"AutoAttack: {message}")
