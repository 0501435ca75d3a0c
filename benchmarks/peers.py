"""Peers' purification loops in plain eager PyTorch: torch.randn, torch.optim.Adam and autograd, on the whole batch.

Written from the papers' equations. ``pursamere.baselines`` has the same defenses with fixed noise and exact gradients;
these loops have neither, and show what a defense costs that is written in the usual way. A denoiser is a callable
``(y, sigma) -> denoised`` whose parameters are frozen, so that no loop computes their gradients.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
LEARNING_RATE = 0.05


def scoreopt_o(denoiser: Denoiser, images: Tensor, *, steps: int, sigma: float) -> Tensor:
    """ScoreOpt-O (Zhang, Luo and Zhang, 2023): Adam on ||D(x + sigma xi) - x||^2, with a new xi in every step."""
    return _adam(denoiser, images, steps, sigma, lambda x: x).clamp(0, 1)


def likelihood_maximization(
    denoiser: Denoiser, images: Tensor, *, steps: int, sigma: float, radius: float = 0.3
) -> Tensor:
    """Likelihood maximization (Chen et al., 2023): the same loss, each step projected onto a ball and [0, 1]."""
    return _adam(denoiser, images, steps, sigma, lambda x: (images + (x - images).clamp(-radius, radius)).clamp(0, 1))


def _adam(denoiser: Denoiser, images: Tensor, steps: int, sigma: float, project: Callable[[Tensor], Tensor]) -> Tensor:
    """Take steps of Adam, each with one forward and one backward pass."""
    x = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=LEARNING_RATE)
    for _ in range(steps):
        level = random.uniform(0.8, 1.2) * sigma
        loss = (denoiser(x + level * torch.randn_like(x), level) - x).square().flatten(1).mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.copy_(project(x))
    return x.detach()


@torch.no_grad()
def diffpure(denoiser: Denoiser, images: Tensor, *, steps: int, sigma: float) -> Tensor:
    """DiffPure (Nie et al., 2022): add noise, then the reverse SDE dx = -2 sigma s dsigma + sqrt(2 sigma |dsigma|) xi.

    Euler-Maruyama steps, s(x, sigma) = (D(x, sigma) - x) / sigma^2; a step is one forward pass.
    """
    lowest = 0.2 * sigma
    levels = [sigma + (lowest - sigma) * t / steps for t in range(steps + 1)]
    x = images + sigma * torch.randn_like(images)
    for level, following in itertools.pairwise(levels):
        width = level - following
        score = (denoiser(x, level) - x) / level**2
        x = x + 2 * level * width * score + (2 * level * width) ** 0.5 * torch.randn_like(x)
    return x.clamp(0, 1)


FORWARD_AND_BACKWARD = {"ScoreOpt-O": scoreopt_o, "likelihood maximization": likelihood_maximization}
FORWARD_ONLY = {"DiffPure": diffpure}
