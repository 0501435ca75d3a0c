"""MNIST with the networks that ship: a sweep of settings on validation images, and a comparison on test images."""

from __future__ import annotations

from typing import Any

from comparison import MICRO_BATCH, SWEEP, Experiment, Row, describe

from pursamere.pretrained import TUNED

# The sweep's rows take 16 network passes for an image; where there is no ascent, with twice the draws.
ERE = {
    "direction": "ere", "sigma": 0.5, "steps": 2, "step_size": 4.0, "ascent_radius": 0.05, "radius": 0.3, "draws": 2,
}  # fmt: skip
SCORE = {**ERE, "direction": "score", "steps": 4, "step_size": 3.0}
SWEPT: list[dict[str, Any]] = [
    ERE,
    SCORE,
    {**ERE, "sigma": 0.8},
    {**SCORE, "sigma": 0.8},
    {**ERE, "ascent_radius": 0.0, "draws": 4},
    {**SCORE, "ascent_radius": 0.0, "draws": 4},
    {**ERE, "ascent_radius": 0.5},
    {**SCORE, "ascent_radius": 0.5},
]


def row(name: str, options: dict[str, Any]) -> Row:
    return Row(name, "pursamere", {**options, "micro_batch": max(1, MICRO_BATCH // options["draws"])})


MNIST_SWEEP = Experiment(
    "mnist-sweep", "mnist", "validation", 32, SWEEP, tuple(row(describe(options), options) for options in SWEPT)
)

CHOSEN = TUNED["mnist"]
MNIST_TABLE = Experiment(
    "mnist",
    "mnist",
    "test",
    64,
    "quick",
    (
        Row("no purifier"),
        row("ERE without SAM", {**ERE, "ascent_radius": 0.0, "draws": 4}),
        row("PurSAMERE, ERE, rho 0.05", ERE),
        row("score without SAM", {**CHOSEN, "ascent_radius": 0.0, "draws": 4}),
        row("PurSAMERE, score, rho 0.05", {**CHOSEN}),
    ),
    """\
# MNIST: PurSAMERE with the networks that ship

```
$ python experiments/run.py mnist-table -o FOLDER --write docs/results
```

The first {samples} images of the test set, {conditions}

Denoiser and classifier are those of `ps.load_pretrained("mnist")`; the purifiers' settings are in \
`experiments/mnist.py` and were chosen on 32 validation images (`mnist-sweep.csv`). "Passes" are the network \
passes for an image, forward and backward. Worst case: per sample over all attacks of the preset, also those on \
survivors, which have no column; in brackets 95 % Wilson intervals. `mnist-outcomes.csv` has every sample with the \
first attack that it fell to.""",
)
