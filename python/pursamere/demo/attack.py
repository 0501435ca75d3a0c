"""The demo's attack: projected gradient descent in the Linf ball, with a random start and a step-size schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each sample [B] is from being misclassified: the true class's logit minus the largest other logit.

    Unlike the cross-entropy it does not saturate for confident classifiers, so its gradient never vanishes.
    """
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return true - others


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    generator: torch.Generator,
    stop_at_success: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Adversarial images [B, C, H, W] within ``eps`` (Linf, pixel units) of ``images`` and within [0, 1].

    Descends the margin by the sign of its gradient from a uniformly random start, with a step size that falls from
    ``eps / 2`` to 0 along a half cosine. Every iterate is a legal adversarial image, so the one with the smallest
    margin is returned. With ``stop_at_success`` a sample is left alone once it is misclassified, which saves time and
    changes no outcome; without it the attack goes on to push the sample deep into a wrong class, so that it transfers
    better.
    ``progress`` is called with the number of gradient steps done, ``steps`` in total.
    """
    low, high = (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)
    # Drawn for the whole batch before anything else: the starts do not depend on which samples fall first.
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype)
    current = torch.minimum(torch.maximum(images + eps * (2 * noise - 1), low), high)
    best, best_margin = current.clone(), torch.full((len(images),), math.inf, dtype=images.dtype)
    rows = torch.arange(len(images))  # the samples still under attack; ``current`` holds these only
    for step in range(steps + 1):
        wants_gradient = step < steps
        current = current.detach().requires_grad_(wants_gradient)
        with torch.set_grad_enabled(wants_gradient):
            margins = margin(model(current), labels[rows])
            total = margins.sum()  # rows do not influence one another, so its gradient is every row's own
        found = margins.detach()
        better = found < best_margin[rows]
        best[rows[better]] = current.detach()[better]
        best_margin[rows[better]] = found[better]
        if not wants_gradient:
            break
        (gradient,) = torch.autograd.grad(total, current)
        size = 0.25 * eps * (1 + math.cos(math.pi * step / steps))
        moved = torch.minimum(torch.maximum(current.detach() - size * gradient.sign(), low[rows]), high[rows])
        keep = found >= 0 if stop_at_success else torch.ones_like(better)
        rows, current = rows[keep], moved[keep]
        progress(1)
        if len(rows) == 0:
            progress(steps - step - 1)
            break
    return best
