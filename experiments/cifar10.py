"""CIFAR-10 with the networks that ship: a sweep of settings on validation images."""

from __future__ import annotations

from typing import Any

from comparison import SWEEP, Experiment, Row, told

from pursamere.pretrained import TUNED, folder

ADVERSARIAL, PURIFIED = folder("cifar10") / "adversarial", folder("cifar10") / "classifier"

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


CIFAR10_SWEEP = Experiment(
    "cifar10-sweep",
    "cifar10",
    "validation",
    64,
    SWEEP,
    (
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        Row("adversarially trained, center", "pursamere", CENTER, classifier=ADVERSARIAL),
        Row("trained behind the purifier, no purifier", classifier=PURIFIED),
        *(Row(told(change) or "center", "pursamere", {**CENTER, **change}) for change in CHANGES),
    ),
)
