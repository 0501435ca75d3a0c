"""Adversarial images to train a classifier on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.enable_grad()
def adversarial_images(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, steps: int) -> Tensor:
    """Return images within ``eps`` (Linf) of ``x`` and within [0, 1], at which the loss is larger than at ``x``.

    A single step, 1.25 ``eps`` long, is fast adversarial training (Wong et al., 2020, arXiv 2001.03994); several, of
    ``2 eps / steps`` each, are projected gradient descent (Madry et al., 2018, arXiv 1706.06083).

    Args:
        loss: images [N, C, H, W] to losses [N], differentiable; rows must not influence one another.
        x: [N, C, H, W] in [0, 1].
        start: offset of the first iterate in units of ``eps``, in [-1, 1], of the shape of ``x``.
        eps: radius in pixel units.
        steps: number of steps, at least 1.
    """
    length = 1.25 * eps if steps == 1 else 2 * eps / steps
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    adversarial = torch.clamp(x + eps * start, low, high)
    for _ in range(steps):
        point = adversarial.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point).sum(), point)
        adversarial = torch.clamp(point.detach() + length * gradient.sign(), low, high)
    return adversarial
