"""Denoisers whose posterior mean, and mostly ERE, are known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def gaussian_denoiser(tau: float):
    """The posterior mean for X ~ N(0, tau^2 I)."""
    return lambda y, sigma: y * (tau**2 / (tau**2 + sigma**2))


def gaussian_prior(mean: float, tau: float):
    """The posterior mean for X ~ N(mean, tau^2 I)."""
    return lambda y, sigma: mean + gaussian_denoiser(tau)(y - mean, sigma)


def gaussian_ere(x: Tensor, sigma: float, tau: float) -> Tensor:
    """M3: (sigma^4 ||x||^2 + sigma^2 tau^4 d) / (sigma^2 + tau^2)^2."""
    flat = x.flatten(1)
    total = sigma**2 + tau**2
    return (sigma**4 * flat.square().sum(1) + sigma**2 * tau**4 * flat.shape[1]) / total**2


def gaussian_ere_gradient(x: Tensor, sigma: float, tau: float) -> Tensor:
    """M3: 2 sigma^4 x / (sigma^2 + tau^2)^2."""
    return 2 * sigma**4 * x / (sigma**2 + tau**2) ** 2


MEANS, STD = (0.25, 0.75), 0.1


def truncated_mixture_denoiser(y: Tensor, sigma: float) -> Tensor:
    """The exact posterior mean of Figure 1's density, 0.5 N(0.25, 0.1^2) + 0.5 N(0.75, 0.1^2) cut off outside [0, 1].

    Given y, a component is N(m, s^2) cut off likewise, s^2 = STD^2 sigma^2 / (STD^2 + sigma^2) and m the usual
    weighted mean; its weight is N(y; mean, STD^2 + sigma^2) times the mass of N(m, s^2) in [0, 1].
    """
    s = math.sqrt(STD**2 * sigma**2 / (STD**2 + sigma**2))
    numerator, denominator = torch.zeros_like(y), torch.zeros_like(y)
    for mean in MEANS:
        m = (y * STD**2 + mean * sigma**2) / (STD**2 + sigma**2)
        low, high = (0 - m) / s, (1 - m) / s
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        edge = ((-0.5 * low**2).exp() - (-0.5 * high**2).exp()) / math.sqrt(2 * math.pi)
        weight = (-0.5 * (y - mean) ** 2 / (STD**2 + sigma**2)).exp()
        numerator = numerator + weight * (m * mass + s * edge)
        denominator = denominator + weight * mass
    return numerator / denominator


def truncated_mixture_ere(x: np.ndarray, sigma: float) -> np.ndarray:
    """The ERE for that density by quadrature alone: on a grid of X, and in the noise by Gauss-Hermite."""
    grid = np.linspace(0, 1, 2001)
    prior = sum(np.exp(-0.5 * ((grid - mean) / STD) ** 2) for mean in MEANS)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    values = []
    for point in x:
        y = point + sigma * nodes
        posterior = prior * np.exp(-0.5 * ((y[:, None] - grid) / sigma) ** 2)
        denoised = np.trapezoid(posterior * grid, grid) / np.trapezoid(posterior, grid)
        values.append(np.sum(weights * (point - denoised) ** 2) / np.sum(weights))
    return np.array(values)
