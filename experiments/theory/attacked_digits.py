"""Digits behind purifiers of several settings, and what attacks leave of their accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pursamere as ps
from pursamere.evaluation.result import Proportion
from pursamere.pretrained import Pretrained, make_purifier

__all__ = ["EPS", "load", "robustness", "share"]

EPS = 0.15


def load(samples: int) -> tuple[Pretrained, Tensor, Tensor]:
    """The networks, and the first test images with their labels."""
    digits = ps.load_pretrained("digits")
    return digits, digits.test.images[:samples], digits.test.labels[:samples]


def robustness(
    digits: Pretrained, images: Tensor, labels: Tensor, attack_steps: int, **settings: Any
) -> tuple[ps.Purifier, Tensor, Tensor]:
    """Attack the tuned purifier with these settings changed, by PGD on the margin, with the exact gradient and by BPDA.

    Returns:
        The purifier; bool [B], the samples that withstood both attacks; and the adversarial images of the attack with
        the exact gradient [B, C, H, W].
    """
    purifier = make_purifier("digits", digits.denoiser, micro_batch=len(images), **settings)
    standing, found = torch.ones(len(labels), dtype=torch.bool), {}
    judge = ps.PurifiedClassifier(purifier, digits.classifier)
    for gradient in ("exact", "identity"):
        model = ps.PurifiedClassifier(purifier, digits.classifier, gradient)
        found[gradient] = ps.attacks.pgd(model, images, labels, eps=EPS, steps=attack_steps)
        with torch.no_grad():
            standing &= judge(found[gradient]).argmax(1) == labels
    return purifier, standing, found["exact"]


def share(standing: Tensor) -> dict[str, Any]:
    """The share of samples that still stand, with its 95 % Wilson interval."""
    return Proportion(int(standing.sum()), len(standing)).to_json()
