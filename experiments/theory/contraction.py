"""How much the purifier shrinks the distance between two images, step by step and in all, against robustness.

The distance is that of a perturbed digit from its original, in L2: after a step, or after all steps, divided by that
before. Perturbations have random signs, or come from PGD with the exact gradient, at eps 0.15. arXiv 2505.22839 finds
that compression predicts the robustness of diffusion models under fixed randomness; here are settings of PurSAMERE.
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

# Changes of the tuned settings.
SETTINGS: dict[str, dict[str, Any]] = {
    "tuned": {},
    "no steps": {"steps": 0},
    "2 steps": {"steps": 2},
    "no ascent": {"ascent_radius": 0.0},
    "ascent 0.4": {"ascent_radius": 0.4},
    "radius 0.1": {"radius": 0.1},
    "radius 0.3": {"radius": 0.3},
    "sigma 0.1": {"sigma": 0.1},
    "sigma 0.3": {"sigma": 0.3},
    "score": {"direction": "score"},
}


def distances(purifier: ps.Purifier, one: Tensor, other: Tensor) -> Tensor:
    """[steps + 1, B]: the L2 distances of two batches of images after every step."""
    difference = purifier.trace(one).images - purifier.trace(other).images
    return torch.linalg.vector_norm(difference.flatten(2), dim=2)


def ratios(purifier: ps.Purifier, images: Tensor, perturbed: Tensor) -> dict[str, Any]:
    """Medians over the perturbed images of the ratio of distances, in all and after every step."""
    found = distances(purifier, perturbed, images)
    found = found[:, found[0] > 0]
    relative = found / found[0]
    return {"in_all": relative[-1].quantile(0.5), "after_step": relative.quantile(0.5, dim=1)}


def random_signs(images: Tensor, eps: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (images + eps * torch.randn(images.shape, generator=generator).sign()).clamp(0, 1)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, ties counted by their mean rank."""

    def ranks(values: list[float]) -> Any:
        ordered = np.array(values)
        return (ordered[:, None] > ordered).sum(1) + 0.5 * (ordered[:, None] == ordered).sum(1)

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def compute(names: tuple[str, ...] = tuple(SETTINGS), samples: int = 64, attack_steps: int = 20) -> dict[str, Any]:
    """For some of ``SETTINGS`` and the first ``samples`` test digits; ``attack_steps`` steps of each attack."""
    digits, images, labels = load(samples)
    rows = []
    for name in names:
        purifier, standing, adversarial = robustness(digits, images, labels, attack_steps, **SETTINGS[name])
        rows.append(
            {
                "setting": name,
                "random": ratios(purifier, images, random_signs(images, EPS)),
                "adversarial": ratios(purifier, images, adversarial),
                "robust": share(standing),
            }
        )
    accuracies = [row["robust"]["accuracy"] for row in rows]
    correlation = {
        kind: rank_correlation([float(row[kind]["in_all"]) for row in rows], accuracies)
        for kind in ("random", "adversarial")
    }
    return {"samples": samples, "eps": EPS, "attack_steps": attack_steps, "rank_correlation": correlation, "rows": rows}


def draw(numbers: dict[str, Any]) -> Any:
    figure = new_figure(8.6, 3.8)
    left, right = figure.subplots(1, 2)
    for kind, marker, style in (("random", "o", "-"), ("adversarial", "^", "--")):
        for color, row in zip(COLORS, numbers["rows"], strict=True):
            left.plot(row[kind]["after_step"], style, marker=marker, color=color, markersize=4, linewidth=1)
            low, high = row["robust"]["interval_95"]
            accuracy = row["robust"]["accuracy"]
            right.errorbar(
                row[kind]["in_all"],
                accuracy,
                yerr=[[accuracy - low], [high - accuracy]],
                fmt=marker,
                color=color,
                elinewidth=0.6,
                label=row["setting"] if kind == "random" else None,
            )
        label = f"{kind} (rank correlation with accuracy {numbers['rank_correlation'][kind]:.2f})"
        left.plot([], [], style, marker=marker, color=COLORS[7], label=label)
    left.set_xlabel("step")
    left.set_title("distance after / before, median", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    left.set_ylim(0, None)
    right.set_xlabel("distance after / before, all steps")
    right.set_title(f"accuracy under PGD, eps {numbers['eps']:g}, {numbers['samples']} digits", fontsize=10)
    handles = right.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    for axis in (left, right):
        tidy(axis)
    return figure
