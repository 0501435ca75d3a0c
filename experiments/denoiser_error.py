"""Whether the denoiser's error is what limits the worst case on CIFAR-10.

A control that no defender could run: D_a(y) = x + a (D(y) - x), where x is the clean image, has ``a`` times the error
of the denoiser D that ships. The purifier has its usual settings, but follows the gradient itself, so that it ends
nearer to x as ``a`` falls: steps of a fixed length don't. The attacks know D_a and differentiate it.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

import pursamere as ps
from pursamere.attacks import pgd
from pursamere.functional import perturb
from pursamere.pretrained import EPS, TUNED, Pretrained, make_purifier

SHARES = (1.0, 0.75, 0.5, 0.25)
STEPS = 20
(RADIUS,) = EPS["cifar10"]
SIGMA, DRAWS = TUNED["cifar10"]["sigma"], TUNED["cifar10"]["draws"]
HEADER = ("classifier", "a", "root mean squared error", "clean", "PGD, BPDA", "PGD, exact", "worst case")


class Mixed(nn.Module):
    """D_a for these clean images, which must be purified together and in this order."""

    def __init__(self, denoiser: nn.Module, clean: Tensor, share: float) -> None:
        super().__init__()
        self.denoiser, self.share = denoiser, share
        self.clean = clean

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        clean = self.clean.repeat(DRAWS, 1, 1, 1)[: len(y)].to(y.dtype)  # the rows of a draw are contiguous
        mixed: Tensor = torch.lerp(clean, self.denoiser(y, sigma), self.share)
        return mixed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    networks = ps.load_pretrained("cifar10", arguments.device)
    test = networks.test.head(arguments.samples)
    x, labels = test.images.to(arguments.device), test.labels.to(arguments.device)
    print("| " + " | ".join(HEADER) + " |\n|---|" + "---:|" * (len(HEADER) - 1))
    for name, share in product(("classifier", "undefended"), SHARES):
        cells = [f"{figure:.3f}" for figure in figures(networks, getattr(networks, name), x, labels, share)]
        print(f"| {name} | {share:g} | {' | '.join(cells)} |", flush=True)


def figures(networks: Pretrained, classifier: nn.Module, x: Tensor, labels: Tensor, share: float) -> list[float]:
    """The columns of the table after ``a``."""
    denoiser = Mixed(networks.denoiser, x, share)
    options = {"step_rule": "gradient", "step_size": 0.25, "micro_batch": len(x), "invariance": "off"}
    purifier = make_purifier("cifar10", denoiser, **options)
    model = ps.PurifiedClassifier(purifier, classifier)
    bpda = ps.PurifiedClassifier(purifier, classifier, gradient="identity")
    # Without stop_at_success, which would take images out of the batch.
    attack = partial(pgd, images=x, labels=labels, eps=RADIUS, steps=STEPS, stop_at_success=False)
    images = [x, attack(bpda), attack(model)]
    with torch.no_grad():
        noisy = perturb(x, SIGMA, purifier.noise)
        error = (denoiser(noisy.flatten(0, 1), SIGMA).unflatten(0, (DRAWS, -1)) - x).square().mean().sqrt()
        withstood = torch.stack([model(each).argmax(1) == labels for each in images])
    return [float(error), *withstood.float().mean(1).tolist(), float(withstood.all(0).float().mean())]
