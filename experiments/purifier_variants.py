"""Variants of CIFAR-10's purifier that were tried on validation images, behind it the classifier that ships.

With "cosine step size" the length of step t is proportional to 1 + cos(pi t / steps); together the steps are as long as
the others'. "Mean logits" averages the logits behind two purifiers with different noise seeds, at twice the passes;
"twice the draws" has the same passes in one purifier.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch
from short_attacks import outcomes, print_header, print_line
from torch import Tensor, nn

import pursamere as ps
from pursamere.descent import descend
from pursamere.pretrained import TUNED, Pretrained, make_purifier
from pursamere.stepping import StepMode

SETTINGS = TUNED["cifar10"]
VARIANTS = ("center", "cosine step size", "mean logits of two noise seeds", "twice the draws")


class CosineStepSize(ps.Purifier):
    """Plain descent whose unit steps become shorter like a cosine; ``step_size`` is their mean length."""

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
    images = ps.datasets.load("cifar10", "validation").head(arguments.samples)
    x, labels = images.images.to(arguments.device), images.labels.to(arguments.device)
    print_header(("variant", "passes"), VARIANTS[0])
    reference = None
    for name in VARIANTS:
        chosen = purifiers(name, networks)
        exact, bpda = (model(chosen, networks, gradient) for gradient in ("exact", "identity"))
        withstood = outcomes(exact, bpda, x, labels)
        reference = withstood if reference is None else reference
        passes = sum(purifier.network_passes.total for purifier in chosen)
        print_line((name, str(passes)), withstood, reference)


def purifiers(name: str, networks: Pretrained) -> list[ps.Purifier]:
    """The purifier of a variant, or those whose logits are averaged."""
    center = make_purifier("cifar10", networks.denoiser)
    if name == "cosine step size":
        settings = {key: value for key, value in SETTINGS.items() if key != "draws"}
        return [CosineStepSize(networks.denoiser, noise=center.noise, **settings)]
    if name == "mean logits of two noise seeds":
        other = ps.determinism.copy_with(center, noise=replace(center.noise, seed=center.noise.seed + 1))
        return [center, other]
    if name == "twice the draws":
        return [make_purifier("cifar10", networks.denoiser, draws=2 * SETTINGS["draws"])]
    return [center]


def model(chosen: list[ps.Purifier], networks: Pretrained, gradient: str) -> nn.Module:
    return MeanLogits(*(ps.PurifiedClassifier(purifier, networks.classifier, gradient) for purifier in chosen)).eval()
