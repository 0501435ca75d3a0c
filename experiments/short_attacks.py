"""Three attacks and a table of their outcomes, for experiments that need no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pursamere.attacks import apgd, pgd
from pursamere.evaluation.paired import PairedDifference, paired_difference
from pursamere.pretrained import EPS

STEPS = 20
HEADER = ("clean", "PGD, BPDA", "PGD, exact", "APGD-T, exact", "worst case")

Model = Callable[[Tensor], Tensor]


def outcomes(exact: Model, bpda: Model, x: Tensor, labels: Tensor, *, stop_at_success: bool = True) -> Tensor:
    """Whether each image is classified correctly without an attack and under each attack at CIFAR-10's radius: [4, B].

    Args:
        exact: the model with its exact gradient; it judges.
        bpda: the same model, with the identity for the purifier's derivative.
        x: images, [B, C, H, W].
        labels: [B].
        stop_at_success: stop attacking an image once it is misclassified; later batches are then smaller.
    """
    (eps,) = EPS["cifar10"]
    common = {"images": x, "labels": labels, "eps": eps, "steps": STEPS, "stop_at_success": stop_at_success}
    attacks = (partial(pgd, bpda), partial(pgd, exact), partial(apgd, exact, loss="targeted_dlr"))
    found = [x, *(attack(**common) for attack in attacks)]
    with torch.no_grad():
        return torch.stack([exact(images).argmax(1) == labels for images in found])


def difference(withstood: Tensor, reference: Tensor) -> PairedDifference:
    """The difference of two models in the share of images that withstand all attacks."""
    return paired_difference(withstood.all(0).tolist(), reference.all(0).tolist())


def print_header(names: Sequence[str], against: str) -> None:
    cells = (*names, *HEADER, f"against {against}")
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(names) + "---:|" * (len(HEADER) + 1))


def print_line(names: Sequence[str], withstood: Tensor, reference: Tensor) -> None:
    shares = (*withstood.float().mean(1).tolist(), float(withstood.all(0).float().mean()))
    cells = (*names, *(f"{share:.3f}" for share in shares), str(difference(withstood, reference)))
    print("| " + " | ".join(cells) + " |", flush=True)
