"""Theorem 1 (M4): do minimizers of the expected reconstruction error (ERE) approach modes as sigma goes to zero?

Two mixtures in two dimensions: one with separate components, whose log density is nearly symmetric around its modes,
and one with overlapping components, where it is not. For each sigma there are the minimizers of the exact ERE that are
found from the modes, and the points where the library's purifier ends from many starts, with and without ascent. As
sigma goes to zero, the ERE's minimizers go to those of 2 div s + ||s||^2 (M2), which need not be modes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mixtures import Mixture, as_images
from output import rounded, tidy
from torch import Tensor

import pursamere as ps
from pursamere.report.drawing import COLORS, RIGHT, WRONG, new_figure

SIGMAS = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.0175)


def make(means: list[list[float]], stds: list[list[float]], weights: list[float]) -> Mixture:
    means_, stds_, weights_ = (torch.tensor(values, dtype=torch.float64) for values in (means, stds, weights))
    return Mixture(means_, stds_, weights_, torch.eye(2, dtype=torch.float64))


PRIORS = {
    "separate": make(
        [[0.25, 0.3], [0.75, 0.25], [0.5, 0.75]], [[0.08, 0.06], [0.06, 0.08], [0.07, 0.07]], [0.3, 0.3, 0.4]
    ),
    "overlapping": make(
        [[0.3, 0.35], [0.5, 0.55], [0.7, 0.35]], [[0.08, 0.12], [0.14, 0.1], [0.1, 0.1]], [0.4, 0.3, 0.3]
    ),
}  # fmt: skip


def denoiser_of(mixture: Mixture) -> ps.denoisers.GaussianMixture:
    return ps.denoisers.GaussianMixture(as_images(mixture.means), as_images(mixture.stds), mixture.weights)


def minimize(function: Callable[[Tensor], Tensor], x: Tensor, steps: int = 50) -> Tensor:
    """The local minima of a function [N, 2] -> [N] by Newton's method, each step made to descend and halved at need."""
    hessian = torch.func.vmap(torch.func.hessian(lambda point: function(point[None])[0]))
    gradient = torch.func.grad(lambda points: function(points).sum())
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(hessian(x))
        slopes = (vectors.mT @ gradient(x)[:, :, None]).squeeze(2)
        step = (vectors @ (slopes / values.abs().clamp(min=1e-9))[:, :, None]).squeeze(2)
        step = step / (step.norm(dim=1, keepdim=True) / 0.02).clamp(min=1)  # stay in the basin
        before = function(x)
        for _ in range(5):
            worse = function(x - step) > before
            if not bool(worse.any()):
                break
            step[worse] *= 0.5
        x = x - step
        if float(step.norm(dim=1).max()) < 1e-9:
            break
    return x


def modes_of(mixture: Mixture) -> Tensor:
    """The local maxima of the density that ascents from the components' means find, without duplicates."""
    log_density = torch.func.vmap(mixture.log_density)
    found: list[Tensor] = []
    for mode in minimize(lambda x: -log_density(x), mixture.means):
        if all(float((mode - other).norm()) > 1e-6 for other in found):
            found.append(mode)
    return torch.stack(found)


def distance(x: Tensor, points: Tensor) -> Tensor:
    """From each row of x to the nearest of the points."""
    return torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def starts_of(mixture: Mixture, count: int, generator: torch.Generator) -> Tensor:
    """Draws of the prior, blurred by 0.05, in [0, 1]."""
    chosen = torch.multinomial(mixture.weights, count, replacement=True, generator=generator)
    normals = torch.randn(2, count, 2, generator=generator, dtype=torch.float64)
    return (mixture.means[chosen] + mixture.stds[chosen] * normals[0] + 0.05 * normals[1]).clamp(0, 1)


def purifier(mixture: Mixture, sigma: float, ascent_radius: float, draws: int, steps: int, batch: int) -> ps.Purifier:
    """Steps as long as a Gaussian prior of the mixture's mean variance asks for, M3."""
    total = float(mixture.stds.square().mean()) + sigma**2
    return ps.Purifier(
        denoiser_of(mixture),
        sigma=sigma,
        radius=float("inf"),
        steps=steps,
        step_rule="gradient",
        step_size=0.1 * total**2 / (2 * sigma**4),
        ascent_radius=ascent_radius,
        noise=ps.GaussianNoise(draws=draws),
        micro_batch=batch,
    )


def compute_prior(
    mixture: Mixture, sigmas: tuple[float, ...], starts: int, draws: int, steps: int, paths: int, grid: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    denoiser, modes = denoiser_of(mixture), modes_of(mixture)
    x0 = starts_of(mixture, starts, generator)
    limit = minimize(mixture.second_order, modes)
    ends: dict[float, list[Tensor]] = {0.0: [], 0.05: []}
    distances = []
    for sigma in sigmas:
        exact = minimize(lambda x, sigma=sigma: mixture.ere(denoiser, x, sigma, 16) / sigma**4, modes)
        distances.append((exact - modes).norm(dim=1))
        for rho, found in ends.items():
            end = purifier(mixture, sigma, rho, draws, steps, starts)(as_images(x0))[:, 0, 0]
            found.append(distance(end, modes).quantile(torch.tensor([0.1, 0.5, 0.9], dtype=end.dtype)))
    walked = {
        rho: purifier(mixture, 0.1, rho, draws, steps, paths).trace(as_images(x0[:paths])).images[:, :, 0, 0]
        for rho in ends
    }
    line = torch.linspace(0, 1, grid, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    landscape = mixture.ere(denoiser, points, 0.1, 12).view(grid, grid)
    density = torch.func.vmap(mixture.log_density)(points).exp().view(grid, grid)
    return {
        "modes": modes,
        "limit": limit,
        "limit_distance": (limit - modes).norm(dim=1),
        "exact_distance": torch.stack(distances),
        "purified_distance": {rho: torch.stack(found) for rho, found in ends.items()},
        "paths": {rho: rounded(path[:: max(1, steps // 30)].transpose(0, 1), 4) for rho, path in walked.items()},
        "density": rounded(density, 3),
        "ere": rounded(landscape, 3),
    }


def compute(
    sigmas: tuple[float, ...] = SIGMAS,
    starts: int = 64,
    draws: int = 64,
    steps: int = 150,
    paths: int = 10,
    grid: int = 49,
) -> dict[str, Any]:
    """``starts`` purifications for each sigma; ``paths`` of them are kept at sigma 0.1, ``grid`` points to a side."""
    priors = {
        name: compute_prior(mixture, sigmas, starts, draws, steps, paths, grid) for name, mixture in PRIORS.items()
    }
    return {"sigmas": list(sigmas), "starts": starts, "draws": draws, "steps": steps, "priors": priors}


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 6.0)
    for line, (name, found) in zip(figure.subplots(2, 3), numbers["priors"].items(), strict=True):
        for axis, key, title in ((line[0], "density", f"{name}: density"), (line[1], "ere", "R at sigma 0.1")):
            shown = np.array(found[key]).T
            top = np.quantile(shown, 0.8) if key == "ere" else None  # or its corners would take all of the scale
            axis.imshow(shown, origin="lower", extent=(0, 1, 0, 1), cmap="Greys", vmax=top, alpha=0.6)
            for color, paths in zip((COLORS[0], COLORS[8]), found["paths"].values(), strict=True):
                for path in np.array(paths):
                    axis.plot(path[:, 0], path[:, 1], color=color, linewidth=0.9)
                    axis.plot(*path[-1], ".", color=color, markersize=5)
            axis.plot(*np.array(found["modes"]).T, "+", color=RIGHT, markersize=9, markeredgewidth=1.8)
            axis.plot(*np.array(found["limit"]).T, "x", color=WRONG, markersize=6)
            axis.set_title(title, fontsize=10)
            axis.set_xticks([0, 0.5, 1])
            axis.set_yticks([0, 0.5, 1])
        _distances(line[2], numbers["sigmas"], found)
    handles, labels = line[2].get_legend_handles_labels()
    (mode,), (limit,) = (
        line[0].plot([], [], marker, color=color, linestyle="") for marker, color in (("+", RIGHT), ("x", WRONG))
    )
    handles += [mode, limit]
    labels += ["modes", "minimizers of 2 div s + |s|² next to them"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _distances(axis: Any, sigmas: list[float], found: dict[str, Any]) -> None:
    exact = np.median(np.array(found["exact_distance"]), axis=1)
    axis.loglog(sigmas, exact, "s--", color=COLORS[9], markersize=4, label="exact minimizer of R")
    for color, (rho, values) in zip((COLORS[0], COLORS[8]), found["purified_distance"].items(), strict=True):
        low, middle, high = np.array(values).T
        axis.loglog(sigmas, middle, "o-", color=color, markersize=4, label=f"purified, ascent radius {float(rho):g}")
        axis.fill_between(sigmas, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_title("median distance from a mode", fontsize=10)
    axis.set_xlabel("sigma")
    axis.set_xticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
    axis.set_xticks([], minor=True)
    axis.set_ylim(1e-7, 1)
    tidy(axis)
