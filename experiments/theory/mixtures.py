"""Gaussian mixtures whose expected reconstruction error (ERE) is known to rounding, in any dimension.

The means differ within a subspace of one or two dimensions only, and so do the standard deviations. Orthogonal to it
the posterior mean is linear, so the ERE has a closed form (M3); within it, Gauss-Hermite quadrature in the noise
converges exponentially fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pursamere.denoisers import Denoiser

__all__ = ["Mixture", "as_images", "random_mixture"]


def as_images(points: Tensor) -> Tensor:
    """Points [N, d] as images [N, 1, 1, d]."""
    return points[:, None, None, :]


@dataclass(frozen=True)
class Mixture:
    """sum_i weights_i N(means_i, diag(stds_i^2)) in float64.

    Attributes:
        means: [M, d].
        stds: [M, d]; equal for all components, and in all directions, outside of the subspace.
        weights: [M].
        basis: [d, k], orthonormal directions of the subspace; the means are in ``means[0]`` plus its span.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor
    basis: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """At one point [d], up to a constant."""
        square = ((x - self.means) / self.stds).square().sum(1)
        return torch.logsumexp(self.weights.log() - self.stds.log().sum(1) - 0.5 * square, 0)

    def score(self, x: Tensor) -> Tensor:
        """The gradient of the log density at points [N, d]."""
        return torch.func.vmap(torch.func.grad(self.log_density))(x)

    def hessian(self, x: Tensor) -> Tensor:
        """The Hessian [N, d, d] of the log density."""
        return torch.func.vmap(torch.func.hessian(self.log_density))(x)

    def second_order(self, x: Tensor) -> Tensor:
        """2 div s + ||s||^2 at points [N, d], the coefficient of sigma^4 in M2."""
        divergence = self.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
        return 2 * divergence + self.score(x).square().sum(1)

    def ere(self, denoiser: Denoiser, x: Tensor, sigma: float, nodes: int = 40) -> Tensor:
        """R(x; sigma) at points [N, d], differentiable; ``denoiser`` is the mixture's posterior mean."""
        k, d = self.basis.shape[1], x.shape[1]
        one, weight = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
        grid = torch.cartesian_prod(*[one] * k).reshape(-1, k)
        weights = torch.cartesian_prod(*[weight / weight.sum()] * k).reshape(-1, k).prod(1)
        y = x + sigma * (grid @ self.basis.T)[:, None]  # [nodes^k, N, d]
        residual = (x - denoiser(as_images(y.flatten(0, 1)), sigma).view_as(y)) @ self.basis
        inside = torch.einsum("n,nbk->b", weights, residual.square())
        if k == d:
            return inside
        tau2 = self._outer_variance()
        offset = x - self.means[0]
        outside = offset.square().sum(1) - (offset @ self.basis).square().sum(1)
        return inside + (sigma**4 * outside + sigma**2 * tau2**2 * (d - k)) / (sigma**2 + tau2) ** 2

    def _outer_variance(self) -> float:
        # The last pixel is outside of the subspace, unless all standard deviations are equal anyway.
        return float(self.stds[0, -1]) ** 2


def random_mixture(components: int, d: int, generator: torch.Generator, *, std: float, alike: bool) -> Mixture:
    """Components around 0.5; ``alike`` in their standard deviations and weights, which makes a kernel density.

    Otherwise means and standard deviations differ in the first two pixels only.
    """
    k = min(d, 2, max(1, components - 1)) if alike else min(d, 2)
    spread = 1.5 * std * torch.randn(components, k, generator=generator, dtype=torch.float64)
    if alike:
        spread -= spread[:1].clone()  # k + 1 points span k dimensions
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0][:, :k]
    else:
        basis = torch.eye(d, k, dtype=torch.float64)
    means = 0.5 + spread @ basis.T
    stds = torch.full((components, d), std, dtype=torch.float64)
    weights = torch.ones(components, dtype=torch.float64)
    if not alike:
        stds[:, :k] *= 0.75 + 0.5 * torch.rand(components, k, generator=generator, dtype=torch.float64)
        weights += torch.rand(components, generator=generator, dtype=torch.float64)
    return Mixture(means, stds, weights / math.fsum(weights.tolist()), basis)
