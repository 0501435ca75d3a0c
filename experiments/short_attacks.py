"""A few attacks on one model, for experiments that need no more; and the lines of a table that compares models so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from pursamere.attacks import apgd, pgd
from pursamere.evaluation.paired import paired_difference
from pursamere.pretrained import EPS

STEPS = 20
HEADER = ("clean", "PGD, BPDA", "PGD, exact", "APGD-T, exact", "worst case")

Model = Callable[[Tensor], Tensor]


def outcomes(exact: Model, bpda: Model, x: Tensor, labels: Tensor, *, stop_at_success: bool = True) -> Tensor:
    """Whether each image withstands no attack, and each of the attacks at CIFAR-10's radius: bool [4, B].

    Args:
        exact: the model with its exact gradient, which judges.
        bpda: the same model, with the identity for the purifier's derivative.
        x: images, [B, C, H, W].
        labels: [B].
        stop_at_success: attack no image that has fallen, in steps after that: faster, but batches become smaller.
    """
    (eps,) = EPS["cifar10"]
    common = {"images": x, "labels": labels, "eps": eps, "steps": STEPS, "stop_at_success": stop_at_success}
    attacks = (partial(pgd, bpda), partial(pgd, exact), partial(apgd, exact, loss="targeted_dlr"))
    found = [x, *(attack(**common) for attack in attacks)]
    with torch.no_grad():
        return torch.stack([exact(images).argmax(1) == labels for images in found])


def print_header(names: Sequence[str], against: str) -> None:
    cells = (*names, *HEADER, f"against {against}")
    print("| " + " | ".join(cells) + " |\n|" + "---|" * len(names) + "---:|" * (len(HEADER) + 1))


def print_line(names: Sequence[str], withstood: Tensor, reference: Tensor) -> None:
    """Print the shares that withstood attacks, and the difference of the worst case to the reference's."""
    worst, theirs = (each.all(0) for each in (withstood, reference))
    cells = [f"{share:.3f}" for share in (*withstood.float().mean(1).tolist(), float(worst.float().mean()))]
    difference = str(paired_difference(worst.tolist(), theirs.tolist()))
    print("| " + " | ".join((*names, *cells, difference)) + " |", flush=True)
