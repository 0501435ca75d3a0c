"""Bias and spread of the estimator R_K and of its gradient against the number K of draws, independent and antithetic.

Over many seeds of the noise, for two priors whose expected reconstruction error R is known: a Gaussian in 64 dimensions
(M3) and a mixture in 2 (quadrature). All errors are relative to R, and to the length of its gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mixtures import Mixture, as_images, random_mixture
from output import tidy
from torch import Tensor

import pursamere as ps
from pursamere.report.drawing import COLORS, new_figure

SIGMA, STD = 0.2, 0.3


def priors() -> dict[str, Mixture]:
    generator = torch.Generator().manual_seed(0)
    return {
        "Gaussian, d = 64": random_mixture(1, 64, generator, std=STD, alike=True),
        "mixture, d = 2": random_mixture(3, 2, generator, std=STD, alike=False),
    }


def with_gradient(values: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return values.detach(), torch.autograd.grad(values.sum(), x)[0]


def errors(mixture: Mixture, draws: int, antithetic: bool, seeds: int) -> dict[str, float]:
    """Relative errors of R_K and its gradient, at one point that the prior is likely to have produced."""
    denoiser = ps.denoisers.GaussianMixture(as_images(mixture.means), as_images(mixture.stds), mixture.weights)
    generator = torch.Generator().manual_seed(1)
    offset = mixture.stds[:1] * torch.randn(1, mixture.means.shape[1], generator=generator, dtype=torch.float64)
    x = (mixture.means[:1] + offset).requires_grad_()
    exact, exact_gradient = with_gradient(mixture.ere(denoiser, x, SIGMA), x)
    found = []
    for seed in range(seeds):
        noise = ps.GaussianNoise(seed=seed, draws=draws, antithetic=antithetic)
        found.append(with_gradient(ps.expected_reconstruction_error(denoiser, as_images(x), SIGMA, noise), x))
    values = torch.cat([value for value, _ in found]) / exact - 1
    gradients = torch.cat([gradient for _, gradient in found]) - exact_gradient
    scale = exact_gradient.norm()
    spread = gradients.std(0).norm() / scale
    return {
        "bias": float(values.mean()),
        "spread": float(values.std()),
        "bias_of_gradient": float(gradients.mean(0).norm() / scale),
        "spread_of_gradient": float(spread),
    }


def compute(counts: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256), seeds: int = 200) -> dict[str, Any]:
    """For ``seeds`` seeds; the mean of so many unbiased values still has an error of spread / sqrt(seeds)."""
    rows = []
    for name, mixture in priors().items():
        for antithetic in (False, True):
            found = [errors(mixture, draws, antithetic, seeds) for draws in counts]
            rows.append(
                {"prior": name, "antithetic": antithetic, **{key: [row[key] for row in found] for key in found[0]}}
            )
    return {"draws": list(counts), "seeds": seeds, "sigma": SIGMA, "rows": rows}


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 6.2)
    axes = figure.subplots(2, 2)
    draws, seeds = np.array(numbers["draws"]), numbers["seeds"]
    for line, name in zip(axes, dict.fromkeys(row["prior"] for row in numbers["rows"]), strict=True):
        for axis, of, what in ((line[0], "", "R_K"), (line[1], "_of_gradient", "its gradient")):
            for row in numbers["rows"]:
                if row["prior"] != name:
                    continue
                label, color = ("antithetic", COLORS[8]) if row["antithetic"] else ("independent", COLORS[0])
                spread = np.array(row[f"spread{of}"])
                if spread.max() < 1e-6:
                    axis.plot([], [], color=color, label=f"{label}: exact but for rounding")
                    continue
                axis.loglog(draws, spread, "o-", color=color, markersize=4, label=f"{label}: spread")
                axis.loglog(draws, np.abs(row[f"bias{of}"]), ".", color=color, label=f"{label}: |mean error|")
                axis.loglog(draws, spread / np.sqrt(seeds), ":", color=color)
            axis.set_title(f"{name}: relative error of {what}", fontsize=10)
            axis.set_xlabel("draws K")
            axis.set_xticks(draws, [str(count) for count in draws])
            axis.set_xticks([], minor=True)
            axis.legend(frameon=False, fontsize=7.5)
            tidy(axis)
    return figure
