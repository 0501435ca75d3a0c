"""CIFAR-10 with the networks in weights/cifar10: a sweep of settings on validation images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comparison import SWEEP, Experiment, Row, told

import pursamere as ps
from pursamere.cli.defenses import build_defense
from pursamere.pretrained import Pretrained

WEIGHTS = Path(__file__).parents[1] / "weights/cifar10"
ADVERSARIAL, PURIFIED = WEIGHTS / "classifier-adversarial", WEIGHTS / "classifier-purified"

# What the classifier "purified" was trained behind. The sweep changes one setting at a time from here.
CENTER: dict[str, Any] = {
    "direction": "score", "sigma": 0.2, "radius": 0.06, "steps": 4, "step_size": 0.6, "draws": 2, "ascent_radius": 0.0,
}  # fmt: skip
ERE = {"direction": "ere", "steps": 2, "step_size": 0.8}
CHANGES: list[dict[str, Any]] = [
    {},
    *({"ascent_radius": value} for value in (0.05, 0.2)),
    *({"radius": value} for value in (0.03, 0.1)),
    *({"sigma": value} for value in (0.1, 0.3)),
    *({"step_size": value} for value in (0.3, 1.2)),
    {"steps": 8, "step_size": 0.3},
    {"draws": 4},
    *({**ERE, "ascent_radius": value} for value in (0.0, 0.05)),
]


def networks(data: str, device: torch.device) -> Pretrained:
    """The denoiser, the classifier that knows its purifier, and that purifier."""
    denoiser, classifier = (ps.load_checkpoint(path, device) for path in (WEIGHTS / "denoiser", PURIFIED))
    purifier = build_defense("pursamere", denoiser, CENTER)
    return Pretrained(denoiser, classifier, purifier, ps.datasets.load(data, "test"))


CIFAR10_SWEEP = Experiment(
    "cifar10-sweep",
    "cifar10_jpeg",
    "validation",
    64,
    SWEEP,
    (
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        Row("adversarially trained, center", "pursamere", CENTER, classifier=ADVERSARIAL),
        Row("trained behind the purifier, no purifier"),
        *(Row(told(change) or "center", "pursamere", {**CENTER, **change}) for change in CHANGES),
    ),
    networks=networks,
    eps=(8 / 255,),
)
