"""CIFAR-10 with the networks that ship: a sweep of settings on validation images."""

from __future__ import annotations

from typing import Any

from comparison import SWEEP, Experiment, Row, told

from pursamere.pretrained import TUNED, folder

ADVERSARIAL, PURIFIED = folder("cifar10") / "adversarial", folder("cifar10") / "classifier"

# Network passes for an image, of every baseline and of the center.
PASSES = 8

# The sweep changes one setting at a time from what the classifier was trained behind.
CENTER = TUNED["cifar10"]
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
# Before the adversarially trained classifier, which has seen no purified images.
BASELINES: list[tuple[str, dict[str, Any]]] = [
    *(("diffpure_fixed_noise", {"sigma_max": value}) for value in (0.1, 0.2)),
    *(("scoreopt_o", {"sigma": 0.2, "learning_rate": value}) for value in (0.005, 0.01)),
    *(("likelihood_maximization", {"radius": 0.06, "learning_rate": value}) for value in (0.005, 0.01)),
]
MILDER: list[dict[str, Any]] = [{}, {"sigma": 0.1}, {"radius": 0.03}, {"step_size": 0.3}, ERE]


def before_adversarial(name: str, defense: str, options: dict[str, Any], passes: int | None = None) -> Row:
    return Row(f"adversarially trained, {name}", defense, options, passes, ADVERSARIAL)


CIFAR10_SWEEP = Experiment(
    "cifar10-sweep",
    "cifar10",
    "validation",
    64,
    SWEEP,
    (
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        Row("trained behind the purifier, no purifier", classifier=PURIFIED),
        *(Row(told(change) or "center", "pursamere", {**CENTER, **change}) for change in CHANGES),
        *(before_adversarial(told(change) or "center", "pursamere", {**CENTER, **change}) for change in MILDER),
        *(before_adversarial(f"{name} {told(options)}", name, options, PASSES) for name, options in BASELINES),
    ),
)
