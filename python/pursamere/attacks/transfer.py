"""Attacks found on other models, which need nothing of the one attacked but its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ._balls import check_problem, logits_of
from .losses import margin
from .pgd import Model, pgd


def transfer(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    sources: Iterable[Model],
    eps: float,
    steps: int = 100,
    norm: str = "linf",
    loss: str = "margin",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Return, of each image and what :func:`pgd` finds for it on every source, the one of smallest margin on ``model``.

    On a source the attack goes on after its success, deep into a wrong class, so that it transfers better.

    Args:
        model: images [N, C, H, W] to logits [N, classes]; no gradient is taken.
        images: [B, C, H, W] in [0, 1].
        labels: [B], int64.
        sources: models of the same classes to attack in its place, differentiable.
        eps: radius of the ball in pixel units.
        steps: gradient steps on each source.
        norm: "linf" or "l2".
        loss: see :func:`pgd`.
        seed: of the random starts.
        progress: called with numbers of gradient steps done, ``steps`` for each source.

    Raises what :func:`pgd` raises.
    """
    images = check_problem(images, labels)
    best = images.detach().clone()
    with torch.no_grad():
        best_margin = margin(logits_of(model, best, labels), labels)
    for source in sources:
        found = pgd(
            source,
            images,
            labels,
            eps=eps,
            steps=steps,
            norm=norm,
            loss=loss,
            seed=seed,
            stop_at_success=False,
            progress=progress,
        )
        with torch.no_grad():
            reached = margin(logits_of(model, found, labels), labels)
        better = reached < best_margin
        best[better], best_margin[better] = found[better], reached[better]
    return best
