"""What limits the worst case on CIFAR-10: the denoiser's error on clean images, or that it passes perturbations on.

A control that no defender could run. D is the denoiser that ships, x the clean image and y_k = x + sigma xi_k its noisy
images; then E_k = D(y_k) - x is the error on the clean image, and for any other y

    D_bc(y) = x + b E_k + c (D(y) - D(y_k))

has b times that error, and passes on c times what changes in y. D_11 is D. Since D_bc knows x, the figures are upper
bounds of what such a denoiser would give. The classifier is the one that was trained behind the purifier. That has its
usual settings, but ``step_rule="gradient"``, because unit steps have the same length however small the error is. The
attacks differentiate D_bc.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

import pursamere as ps
from pursamere.attacks import apgd, pgd
from pursamere.evaluation.paired import paired_difference
from pursamere.functional import perturb
from pursamere.pretrained import EPS, TUNED, Pretrained, make_purifier

SHARES = (1.0, 0.5)
STEPS = 20
(RADIUS,) = EPS["cifar10"]
SIGMA, DRAWS = TUNED["cifar10"]["sigma"], TUNED["cifar10"]["draws"]
SETTINGS = {"step_rule": "gradient", "step_size": 0.25, "invariance": "off"}
HEADER = ("b", "c", "clean", "PGD, BPDA", "PGD, exact", "APGD-T, exact", "worst case", "against b = c = 1")


class Mixed(nn.Module):
    """D_bc for these clean images, which must be purified together and in this order."""

    def __init__(self, denoiser: nn.Module, clean: Tensor, noisy: Tensor, b: float, c: float) -> None:
        super().__init__()
        self.denoiser, self.c = denoiser, c
        with torch.no_grad():
            denoised = denoiser(noisy, SIGMA)
        clean = clean.repeat(DRAWS, 1, 1, 1)  # the rows of a draw are contiguous
        self.constant = clean + b * (denoised - clean) - c * denoised

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        if len(y) not in (len(self.constant), DRAWS):  # the check of derivatives takes one image, whichever
            raise RuntimeError(f"expected the noisy images of all clean ones, {len(self.constant)}, got {len(y)}")
        mixed: Tensor = self.constant[: len(y)].to(y.dtype) + self.c * self.denoiser(y, sigma)
        return mixed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    networks = ps.load_pretrained("cifar10", arguments.device)
    test = networks.test.head(arguments.samples)
    x, labels = test.images.to(arguments.device), test.labels.to(arguments.device)
    print("| " + " | ".join(HEADER) + " |\n|" + "---:|" * len(HEADER))
    reference: list[bool] = []
    for b, c in product(SHARES, SHARES):
        withstood = outcomes(networks, x, labels, b, c)
        worst = withstood.all(0).tolist()
        reference = reference or worst
        cells = [f"{share:.3f}" for share in (*withstood.float().mean(1).tolist(), sum(worst) / len(worst))]
        print(f"| {b:g} | {c:g} | {' | '.join(cells)} | {paired_difference(worst, reference)} |", flush=True)


def outcomes(networks: Pretrained, x: Tensor, labels: Tensor, b: float, c: float) -> Tensor:
    """Whether each image withstands no attack, and each of the attacks: bool [4, B]."""
    noise = make_purifier("cifar10", networks.denoiser).noise
    denoiser = Mixed(networks.denoiser, x, perturb(x, SIGMA, noise).flatten(0, 1), b, c)
    purifier = make_purifier("cifar10", denoiser, micro_batch=len(x), **SETTINGS)
    model = ps.PurifiedClassifier(purifier, networks.classifier)
    bpda = ps.PurifiedClassifier(purifier, networks.classifier, gradient="identity")
    # Without stop_at_success, which would take images out of the batch.
    common = {"images": x, "labels": labels, "eps": RADIUS, "steps": STEPS, "stop_at_success": False}
    attacks = (partial(pgd, bpda), partial(pgd, model), partial(apgd, model, loss="targeted_dlr"))
    found = [x, *(attack(**common) for attack in attacks)]
    with torch.no_grad():
        return torch.stack([model(images).argmax(1) == labels for images in found])
