"""Variants of CIFAR-10's purifier that were tried on validation images, behind it the classifier that ships.

With "cosine step size" the length of step t is proportional to 1 + cos(pi t / steps); together the steps are as long as
the others'. "Mean logits" averages the logits behind two purifiers with different noise seeds, at twice the passes;
"twice the draws" has the same passes in one purifier.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import torch
from short_attacks import outcomes, print_header, print_line
from torch import Tensor, nn

import pursamere as ps
from pursamere.descent import descend
from pursamere.determinism import copy_with
from pursamere.pretrained import TUNED, make_purifier
from pursamere.stepping import StepMode


class CosineStepSize(ps.Purifier):
    """Plain descent whose steps become shorter like a cosine; ``step_size`` is their mean length."""

    def __init__(self, denoiser: Any, **settings: Any) -> None:
        super().__init__(denoiser, **settings)
        if self.ascent_radius != 0:
            raise ValueError(f"ascent_radius must be 0, there is no ascent here, got {self.ascent_radius}")

    def _step(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        lengths = [1 + math.cos(math.pi * step / self.steps) for step in range(self.steps)]
        step_size = self._step_size(x) * lengths[t] * self.steps / sum(lengths)
        g = self._gradient(x, mode)
        return descend(
            x,
            x0,
            g.per_draw,
            g.direct,
            mode.projected,
            step_rule=self.step_rule,
            step_size=step_size,
            norm=self.norm,
            radius=self.radius,
        )


class MeanLogits(nn.Module):
    """The mean of some models' logits."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    networks = ps.load_pretrained("cifar10", arguments.device)
    images = ps.datasets.load(networks.test.name, "validation").head(arguments.samples)
    x, labels = images.images.to(arguments.device), images.labels.to(arguments.device)
    variants = purifiers(networks.denoiser)
    center = next(iter(variants))
    print_header(("variant", "passes"), center)
    found: dict[str, Tensor] = {}
    for name, chosen in variants.items():
        exact, bpda = (mean_logits(chosen, networks.classifier, gradient) for gradient in ("exact", "identity"))
        found[name] = outcomes(exact, bpda, x, labels)
        passes = sum(purifier.network_passes.total for purifier in chosen)
        print_line((name, str(passes)), found[name], found[center])


def purifiers(denoiser: Any) -> dict[str, list[ps.Purifier]]:
    """The purifiers of every variant; where there are several, their logits are averaged."""
    center = make_purifier("cifar10", denoiser)
    settings = {key: value for key, value in TUNED["cifar10"].items() if key != "draws"}
    other_noise = copy_with(center, noise=replace(center.noise, seed=center.noise.seed + 1))
    return {
        "center": [center],
        "cosine step size": [CosineStepSize(denoiser, noise=center.noise, **settings)],
        "mean logits of two noise seeds": [center, other_noise],
        "twice the draws": [make_purifier("cifar10", denoiser, draws=2 * center.noise.draws)],
    }


def mean_logits(chosen: list[ps.Purifier], classifier: nn.Module, gradient: str) -> MeanLogits:
    return MeanLogits(*(ps.PurifiedClassifier(purifier, classifier, gradient) for purifier in chosen)).eval()
