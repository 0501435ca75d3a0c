"""How sharp the expected reconstruction error (ERE) is where the purifier ends, by ascent radius, and robustness there.

Sharpness is the largest eigenvalue of the Hessian of R_K at the purified digits. Robustness is the accuracy under PGD
with the exact gradient and by BPDA, per sample over both, at eps 0.15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attacked_digits import EPS, load, robustness, share
from output import tidy
from torch import Tensor

import pursamere as ps
from pursamere.report.drawing import COLORS, new_figure


class Hessian:
    """The Hessians of R_K at images [B, C, H, W], as products with one vector for each."""

    def __init__(self, purifier: ps.Purifier, images: Tensor) -> None:
        self._x = images.detach().requires_grad_()
        ere = ps.expected_reconstruction_error(
            purifier.denoiser, self._x, purifier.sigma, purifier.noise, micro_batch=len(images)
        )
        (self._gradient,) = torch.autograd.grad(ere.sum(), self._x, create_graph=True)

    def times(self, v: Tensor) -> Tensor:
        return torch.autograd.grad((self._gradient * v).sum(), self._x, retain_graph=True)[0]


def largest_eigenvalues(hessian: Hessian, images: Tensor) -> Tensor:
    """[B], from the whole Hessians.

    Power iteration converges too slowly here: in half of the digits the eigenvalue of largest modulus is negative.
    """
    units = torch.eye(images[0].numel(), dtype=images.dtype).view(-1, 1, *images.shape[1:])
    rows = [hessian.times(unit.expand_as(images)).flatten(1) for unit in units]
    return torch.linalg.eigvalsh(torch.stack(rows, dim=1).double())[:, -1]


def compute(
    ascent_radii: tuple[float, ...] = (0.0, 0.05, 0.2, 0.4),
    samples: int = 128,
    attack_steps: int = 20,
) -> dict[str, Any]:
    """For the first ``samples`` test digits; ``attack_steps`` steps of each attack."""
    digits, images, labels = load(samples)
    rows = []
    for rho in ascent_radii:
        purifier, standing, _ = robustness(digits, images, labels, attack_steps, ascent_radius=rho)
        with torch.no_grad():
            ends = purifier(images)
        sharpness = largest_eigenvalues(Hessian(purifier, ends), ends)
        rows.append(
            {
                "ascent_radius": rho,
                "sharpness": sharpness,
                "ere": ps.expected_reconstruction_error(
                    digits.denoiser, ends, purifier.sigma, purifier.noise, micro_batch=len(ends)
                ),
                "withstood": standing.int(),
                "robust": share(standing),
            }
        )
    at_input = largest_eigenvalues(Hessian(purifier, images), images)
    return {"samples": samples, "eps": EPS, "attack_steps": attack_steps, "at_input": at_input, "rows": rows}


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 3.8)
    left, middle, right = figure.subplots(1, 3)
    rows = numbers["rows"]
    names = [f"{row['ascent_radius']:g}" for row in rows]
    left.boxplot([numbers["at_input"], *(row["sharpness"] for row in rows)], whis=(5, 95), showfliers=False)
    left.set_xticks(range(1, len(rows) + 2), ["input", *names])
    left.set_title("largest eigenvalue of the Hessian of R", fontsize=9)
    shares = [row["robust"]["accuracy"] for row in rows]
    low, high = np.array([row["robust"]["interval_95"] for row in rows]).T
    middle.errorbar(range(len(rows)), shares, yerr=[shares - low, high - shares], fmt="o", color=COLORS[0], capsize=4)
    middle.set_xticks(range(len(rows)), names)
    middle.set_title(f"accuracy under PGD, eps {numbers['eps']:g}, {numbers['samples']} digits", fontsize=9)
    for axis in (left, middle):
        axis.set_xlabel("ascent radius")
    position = np.arange(len(rows))
    for offset, color, value, label in ((-0.18, COLORS[3], 1, "withstood"), (0.18, COLORS[4], 0, "fell")):
        groups = [
            [sharp for sharp, standing in zip(row["sharpness"], row["withstood"], strict=True) if standing == value]
            for row in rows
        ]
        for place, group in zip(position + offset, groups, strict=True):
            if group:
                low, median, high = np.quantile(group, [0.25, 0.5, 0.75])
                right.errorbar(place, median, yerr=[[median - low], [high - median]], fmt="o", color=color, capsize=3)
        right.plot([], [], "o", color=color, label=label)
    right.set_xticks(position, names)
    right.set_xlabel("ascent radius")
    right.set_title("median and quartiles, by outcome", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    for axis in (left, middle, right):
        tidy(axis)
    return figure
