"""What a denoiser with less error, or less response to perturbations, would bring on CIFAR-10.

A control that no defender could run. D is the denoiser that ships, x the clean image and y_k = x + sigma xi_k its noisy
images; then E_k = D(y_k) - x is the error on the clean image, and for any other y

    D_bc(y) = x + b E_k + c (D(y) - D(y_k))

has b times that error, and responds c times as much to a change of y. D_11 is D. Since D_bc knows x, the figures are no
bound for real denoisers with such errors or responses. The classifier is the one that was trained behind the purifier.
That has its usual settings, but ``step_rule="gradient"``, because unit steps have the same length however small the
error is. The attacks differentiate D_bc.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from short_attacks import difference, outcomes, print_header, print_line
from torch import Tensor, nn

import pursamere as ps
from pursamere.functional import perturb
from pursamere.pretrained import TUNED, Pretrained, make_purifier

SHARES = (1.0, 0.5)
SIGMA, DRAWS = TUNED["cifar10"]["sigma"], TUNED["cifar10"]["draws"]
SETTINGS = {"step_rule": "gradient", "step_size": 0.25, "invariance": "off"}


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
        constant = self.constant
        if y.dtype == torch.float64:  # the check of derivatives, which takes any image
            constant = constant[: len(y)].double()
        if len(y) != len(constant):
            raise RuntimeError(f"expected the noisy images of all clean ones, {len(constant)}, got {len(y)}")
        mixed: Tensor = constant + self.c * self.denoiser(y, sigma)
        return mixed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    networks = ps.load_pretrained("cifar10", arguments.device)
    test = networks.test.head(arguments.samples)
    x, labels = test.images.to(arguments.device), test.labels.to(arguments.device)
    print_header(("b", "c"), "b = c = 1")
    found: dict[tuple[float, float], Tensor] = {}
    for b, c in product(SHARES, SHARES):
        exact, bpda = models(networks, x, b, c)
        # Images that leave the batch would no longer be denoised with their own clean images.
        found[b, c] = outcomes(exact, bpda, x, labels, stop_at_success=False)
        print_line((f"{b:g}", f"{c:g}"), found[b, c], found[1.0, 1.0])
    print(f"\nb = 1, c = 1/2 against b = 1/2, c = 1: {difference(found[1.0, 0.5], found[0.5, 1.0])}")


def models(networks: Pretrained, x: Tensor, b: float, c: float) -> list[ps.PurifiedClassifier]:
    """The model with D_bc for these clean images, with its exact gradient and with BPDA."""
    noise = make_purifier("cifar10", networks.denoiser).noise
    denoiser = Mixed(networks.denoiser, x, perturb(x, SIGMA, noise).flatten(0, 1), b, c)
    purifier = make_purifier("cifar10", denoiser, micro_batch=len(x), **SETTINGS)
    return [ps.PurifiedClassifier(purifier, networks.classifier, gradient) for gradient in ("exact", "identity")]
