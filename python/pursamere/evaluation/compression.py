"""How much a purifier shrinks random perturbations, after arXiv 2505.22839: without any gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pursamere.attacks._balls import Ball

from .halving import nan_where_not_finite
from .target import Target

__all__ = ["compression"]

_SAMPLES = 32  # purified once as they are and once for every radius


@torch.no_grad()
def compression(
    target: Target, images: Tensor, eps: Sequence[float], norm: str, seed: int
) -> dict[float, tuple[float, int]]:
    """Return, by radius, the median of ||P(x + delta) - P(x)||_2 / ||delta||_2 and the number of samples.

    P is the purifier, and delta random: a corner of the ball for "linf", a uniform direction for "l2", clipped to
    [0, 1]. Samples are left out on which the purifier is not finite, or whose perturbation is clipped to nothing.

    Args:
        target: the model.
        images: [B, C, H, W] in [0, 1], of which the first 32 are used.
        eps: the radii in pixel units.
        norm: "linf" or "l2".
        seed: seed of the perturbations, which are the same on every device.

    Returns:
        Nothing for a radius without samples, and for models without a purifier or with a random one.
    """
    purifier = target.purifier
    if purifier is None or target.is_random:
        return {}
    images = images[:_SAMPLES]
    generator = torch.Generator("cpu").manual_seed(seed)
    direction = torch.randn(images.shape, generator=generator, dtype=images.dtype, device="cpu").to(images.device)

    def purified(batch: Tensor) -> Tensor:
        return nan_where_not_finite(purifier, batch, tuple(batch.shape[1:]))

    clean, found = purified(images), {}
    for radius in eps:
        perturbed = Ball(norm, radius, images).step(images, direction, radius)
        ratio = _distance(purified(perturbed), clean) / _distance(perturbed, images)
        ratio = ratio[torch.isfinite(ratio)]
        if len(ratio):
            found[radius] = float(ratio.quantile(0.5)), len(ratio)
    return found


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return torch.linalg.vector_norm((one - other).flatten(1), dim=1)
