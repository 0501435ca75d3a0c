"""Proposition 1 (M2): (R - sigma^2 d) / sigma^4 against 2 div s + ||s||^2, and how fast the difference vanishes.

R comes from quadrature with the library's denoisers in float64, the right-hand side from derivatives of the log
density. The library's estimator R_K is compared too, with sigma^2 (1/K) sum_k ||xi_k||^2 in the place of its mean
sigma^2 d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mixtures import Mixture, as_images, random_mixture
from output import tidy

import pursamere as ps
from pursamere.report.drawing import COLORS, new_figure

STD = 0.3
SIGMAS = (0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)


def prior(kind: str, d: int, generator: torch.Generator) -> tuple[Mixture, torch.nn.Module]:
    """A prior and its denoiser."""
    if kind == "kernel density":
        mixture = random_mixture(3, d, generator, std=STD, alike=True)
        return mixture, ps.denoisers.KernelDensity(as_images(mixture.means), STD)
    mixture = random_mixture(1 if kind == "Gaussian" else 3, d, generator, std=STD, alike=False)
    denoiser = ps.denoisers.GaussianMixture(as_images(mixture.means), as_images(mixture.stds), mixture.weights)
    return mixture, denoiser


def fitted_order(sigmas: tuple[float, ...], values: list[float]) -> float:
    """The slope of log values against log sigma."""
    return float(np.polyfit(np.log(sigmas), np.log(values), 1)[0])


def compute(
    dimensions: tuple[int, ...] = (1, 2, 16, 64),
    sigmas: tuple[float, ...] = SIGMAS,
    points: int = 8,
    draws: int = 8000,
    seed: int = 0,
) -> dict[str, Any]:
    """``points`` draws of each prior; the estimator with ``draws`` draws at the middle one of ``sigmas``."""
    generator = torch.Generator().manual_seed(seed)
    noise, middle = ps.GaussianNoise(draws=draws), sigmas[len(sigmas) // 2]
    cases = []
    for kind in ("Gaussian", "mixture", "kernel density"):
        for d in dimensions:
            mixture, denoiser = prior(kind, d, generator)
            x = mixture.means[0] + STD * torch.randn(points, d, generator=generator, dtype=torch.float64)
            exact = mixture.second_order(x)
            quotients = [(mixture.ere(denoiser, x, sigma) - sigma**2 * d) / sigma**4 for sigma in sigmas]
            # Over the points, since at some of them the leading term of the remainder is nearly zero.
            remainder = [float((quotient - exact).abs().mean()) for quotient in quotients]
            square = noise.sample((d,), dtype=x.dtype).square().sum(1).mean()
            estimate = ps.expected_reconstruction_error(denoiser, as_images(x), middle, noise)
            cases.append(
                {
                    "prior": kind,
                    "d": d,
                    "exact": exact,
                    "quadrature": quotients[len(sigmas) // 2],
                    "estimate": (estimate - middle**2 * square) / middle**4,
                    "remainder": remainder,
                    "order": fitted_order(sigmas, remainder),
                }
            )
    return {"sigmas": list(sigmas), "estimated_at": middle, "draws": draws, "cases": cases}


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 6.4)
    axes = figure.subplots(2, 2).flatten()
    sigmas = np.array(numbers["sigmas"])
    for axis, kind in zip(axes, ("Gaussian", "mixture", "kernel density"), strict=False):
        cases = [case for case in numbers["cases"] if case["prior"] == kind]
        for color, case in zip(COLORS, cases, strict=False):
            label = f"d = {case['d']}: order {case['order']:.2f}"
            axis.loglog(sigmas, case["remainder"], "o-", color=color, markersize=4, label=label)
        last = max(case["remainder"][-1] for case in cases)
        axis.loglog(sigmas, 3 * last * (sigmas / sigmas[-1]) ** 2, "--", color=COLORS[7], label="slope 2")
        axis.set_title(f"{kind}: mean |(R - sigma² d) / sigma⁴ - (2 div s + |s|²)|", fontsize=9)
        axis.set_xlabel("sigma")
        axis.set_xticks(sigmas[::2], [f"{sigma:g}" for sigma in sigmas[::2]])
        axis.set_xticks([], minor=True)
        axis.legend(frameon=False, fontsize=8)
    for marker, key, color in ((".", "estimate", COLORS[1]), ("+", "quadrature", COLORS[0])):
        exact, found = (
            np.concatenate([np.array(case[name]) / case["d"] for case in numbers["cases"]]) for name in ("exact", key)
        )
        axes[3].plot(exact, found, marker, color=color, label=key)
    low, high = axes[3].get_xlim()
    axes[3].plot([low, high], [low, high], color=COLORS[7], linewidth=0.8)
    axes[3].set_xlabel("(2 div s + |s|²) / d")
    axes[3].set_title(f"(R - sigma² d) / (sigma⁴ d) at sigma {numbers['estimated_at']:g}, all priors", fontsize=9)
    axes[3].legend(frameon=False, fontsize=8)
    for axis in axes:
        tidy(axis)
    return figure
