"""Adversarial images for training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.enable_grad()
def adversarial_images(loss: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, eps: float, steps: int) -> Tensor:
    """Increase the loss by sign-gradient steps within ``eps`` (Linf) of ``x`` and within [0, 1].

    A single step of length 1.25 ``eps`` is fast adversarial training (Wong et al., 2020, arXiv 2001.03994); several
    steps of length ``2 eps / steps`` are projected gradient descent (Madry et al., 2018, arXiv 1706.06083).

    Args:
        loss: differentiable function from images [N, C, H, W] to losses [N]; rows must be independent.
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
