"""The paper's Figure 1: a density on [0, 1], and where the expected reconstruction error (ERE) is smallest.

The density is 0.5 N(0.25, 0.1^2) + 0.5 N(0.75, 0.1^2) truncated to [0, 1], with its exact posterior mean (M5). The
curves come from quadrature, the points from the library's estimator with many draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from output import tidy
from torch import Tensor

import pursamere as ps
from pursamere.report.drawing import COLORS, new_figure

MEANS, STD = (0.25, 0.75), 0.1
Array = NDArray[np.float64]


def prior(x: Array) -> Array:
    """The density of X at points of [0, 1]."""
    inside = sum(math.erf((1 - mean) / STD / math.sqrt(2)) + math.erf(mean / STD / math.sqrt(2)) for mean in MEANS) / 4
    bells = sum(np.exp(-0.5 * ((x - mean) / STD) ** 2) for mean in MEANS)
    return bells / (2 * STD * math.sqrt(2 * math.pi) * inside)


def posterior_mean(y: Tensor, sigma: float) -> Tensor:
    """E[X | X + sigma Xi = y] in closed form.

    Given y, a component is N(m, s^2) truncated to [0, 1], with 1 / s^2 = 1 / STD^2 + 1 / sigma^2 and m the weighted
    mean of y and the component's mean. Its weight is N(y; mean, STD^2 + sigma^2) times the mass of N(m, s^2) in [0, 1].
    """
    total = STD**2 + sigma**2
    s = STD * sigma / math.sqrt(total)
    numerator, denominator = torch.zeros_like(y), torch.zeros_like(y)
    for mean in MEANS:
        m = (y * STD**2 + mean * sigma**2) / total
        low, high = -m / s, (1 - m) / s
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        edge = ((-0.5 * low.square()).exp() - (-0.5 * high.square()).exp()) / math.sqrt(2 * math.pi)
        weight = (-0.5 * (y - mean).square() / total).exp()
        numerator += weight * (m * mass + s * edge)
        denominator += weight * mass
    return numerator / denominator


def ere_by_quadrature(x: Array, sigma: float) -> Array:
    """R(x; sigma) from the density alone: trapezoidal rule for the posterior mean, Gauss-Hermite for the noise."""
    support = np.linspace(0, 1, 2001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    values = []
    for point in x:
        y = point + sigma * nodes
        posterior = prior(support) * np.exp(-0.5 * ((y[:, None] - support) / sigma) ** 2)
        denoised = np.trapezoid(posterior * support) / np.trapezoid(posterior)
        values.append(weights @ (point - denoised) ** 2 / weights.sum())
    return np.array(values)


def minima(x: Array, values: Array) -> list[float]:
    """The local minima of values on a uniform grid, by the parabola through each and its neighbors."""
    found = []
    for i in range(1, len(x) - 1):
        before, here, after = values[i - 1 : i + 2]
        if here < before and here <= after:
            found.append(float(x[i] + 0.5 * (x[1] - x[0]) * (before - after) / (before - 2 * here + after)))
    return found


def compute(
    sigmas: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025), points: int = 321, draws: int = 4000, sampled: int = 33
) -> dict[str, Any]:
    """Density and ERE on ``points`` points of [0, 1]; the estimator with ``draws`` draws on ``sampled`` points."""
    x, few = np.linspace(0, 1, points), np.linspace(0, 1, sampled)
    images = torch.from_numpy(few).reshape(-1, 1, 1, 1)
    noise = ps.GaussianNoise(draws=draws)
    curves = []
    for sigma in sigmas:
        exact = ere_by_quadrature(x, sigma)
        estimate = ps.expected_reconstruction_error(posterior_mean, images, sigma, noise)
        curves.append({"sigma": sigma, "ere": exact, "minima": minima(x, exact), "estimate": estimate})
    density = prior(x)
    return {
        "x": x,
        "density": density,
        "maxima": minima(x, -density),
        "sampled_x": few,
        "draws": draws,
        "curves": curves,
    }


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 4.2)
    left, right = figure.subplots(1, 2)
    x = np.array(numbers["x"])
    left.plot(x, numbers["density"], color=COLORS[0], label="density p")
    left.plot(x, np.log(numbers["density"]), color=COLORS[1], label="log p")
    for axis in (left, right):
        for maximum in numbers["maxima"]:
            axis.axvline(maximum, color=COLORS[7], linewidth=0.8, linestyle=":")
        axis.set_xlabel("x")
        tidy(axis)
    left.set_title("density and its maxima (dotted)", fontsize=10)
    left.legend(frameon=False)
    for color, curve in zip(COLORS, numbers["curves"], strict=False):
        sigma = curve["sigma"]
        values = np.array(curve["ere"]) / sigma**2
        label = f"sigma {sigma:g}: " + ", ".join(f"{minimum:.3f}" for minimum in curve["minima"])
        right.plot(x, values, color=color, label=label)
        right.plot(curve["minima"], np.interp(curve["minima"], x, values), "v", color=color)
        right.plot(numbers["sampled_x"], np.array(curve["estimate"]) / sigma**2, ".", color=color, markersize=4)
    right.set_title("R(x; sigma) / sigma²", fontsize=10)
    right.set_yscale("log")
    right.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
    right.minorticks_off()
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
        title=f"minima (triangles); lines by quadrature, points from {numbers['draws']} draws",
        title_fontsize=8,
    )
    return figure
