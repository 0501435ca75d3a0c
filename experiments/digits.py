"""Defenses of the 8x8 digits: a sweep of their settings on validation images, and a comparison on test images."""

from __future__ import annotations

from typing import Any

from comparison import MICRO_BATCH, SWEEP, Experiment, Row, describe

from pursamere.pretrained import TUNED
from pursamere.pretrained.digits import BANDWIDTH

# Network passes for an image, of every row that doesn't say otherwise: what PurSAMERE with 4 draws takes.
PASSES = 80

# The sweep changes one setting at a time from here.
CENTER = {**TUNED["digits"], "direction": "ere", "bandwidth": BANDWIDTH, "step_size": 0.4}
SCORE = {"direction": "score", "ascent_radius": 0.0}
CHANGES: list[dict[str, Any]] = [
    {},
    *({"ascent_radius": value} for value in (0.0, 0.2)),
    *({"radius": value} for value in (0.1, 0.3)),
    *({"sigma": value} for value in (0.15, 0.3)),
    *({"bandwidth": value} for value in (0.2, 0.3)),
    {"step_size": 0.8},
    {"steps": 10, "step_size": 0.2},
    {"draws": 4},
    *({"direction": "score", "ascent_radius": value} for value in (0.0, 0.05, 0.2)),
    *({**SCORE, "radius": value} for value in (0.15, 0.3)),
    *({**SCORE, "sigma": value} for value in (0.15, 0.3)),
    {**SCORE, "step_size": 0.8},
    {**SCORE, "steps": 10, "step_size": 0.2},
    {**SCORE, "bandwidth": 0.3},
    # Second round, from the best of the first.
    {"step_size": 0.64},
    {"step_size": 0.8, "radius": 0.3},
    *({"step_size": 0.8, "ascent_radius": value} for value in (0.0, 0.2)),
    {"step_size": 0.8, "draws": 4},
    {**SCORE, "step_size": 0.8, "radius": 0.3},
    {**SCORE, "step_size": 1.2},
    {**SCORE, "ascent_radius": 0.05, "step_size": 0.8},
    {**SCORE, "step_size": 0.8, "draws": 16},
    {**SCORE, "step_size": 0.8, "steps": 10},
]
BASELINES: list[tuple[str, dict[str, Any]]] = [
    *(("diffpure_fixed_noise", {"sigma_max": value, "solver": "euler"}) for value in (0.1, 0.2, 0.3, 0.4)),
    ("diffpure_fixed_noise", {"sigma_max": 0.2, "solver": "heun"}),
    ("diffpure_fixed_noise", {"sigma_max": 0.2, "solver": "euler", "stochasticity": 0.0}),
    *(("scoreopt_o", {"sigma": 0.2, "learning_rate": value}) for value in (0.005, 0.01, 0.02, 0.05)),
    ("scoreopt_o", {"sigma": 0.3, "learning_rate": 0.01}),
    ("scoreopt_o", {"sigma": 0.2, "learning_rate": 0.01, "regularization": 1.0}),
    *(("scoreopt_n", {"sigma": 0.2, "learning_rate": value}) for value in (0.005, 0.02, 0.05)),
    *(("scoreopt_n", {"sigma": value, "learning_rate": 0.02}) for value in (0.1, 0.3)),
    *(("likelihood_maximization", {"radius": 0.2, "learning_rate": value}) for value in (0.005, 0.01, 0.02)),
    ("likelihood_maximization", {"radius": 0.3, "learning_rate": 0.01}),
    ("likelihood_maximization", {"radius": 0.2, "learning_rate": 0.01, "sigma_min": 0.1}),
    # Second round, where the best of the first was at the end of a range.
    ("scoreopt_n", {"sigma": 0.3, "learning_rate": 0.005}),
    *(("scoreopt_n", {"sigma": 0.4, "learning_rate": value}) for value in (0.005, 0.02)),
    ("likelihood_maximization", {"radius": 0.2, "learning_rate": 0.05}),
    ("likelihood_maximization", {"radius": 0.3, "learning_rate": 0.02}),
    ("scoreopt_o", {"sigma": 0.25, "learning_rate": 0.02}),
    ("diffpure_fixed_noise", {"sigma_max": 0.25, "solver": "euler"}),
]


def baseline(name: str, defense: str, options: dict[str, Any], micro_batch: int) -> Row:
    return Row(name, defense, {"micro_batch": micro_batch, **options}, PASSES)


DIGITS_SWEEP = Experiment(
    "digits-sweep",
    "digits",
    "validation",
    128,
    (
        *(Row(describe(change) or "center", "pursamere", {"micro_batch": MICRO_BATCH, **CENTER, **change})
          for change in CHANGES),
        # A baseline runs its network on one draw at a time, so a larger micro-batch costs no more memory.
        *(baseline(f"{name} {describe(options)}", name, options, 4 * MICRO_BATCH) for name, options in BASELINES),
    ),
    protocol=SWEEP,
)  # fmt: skip


def purifier(name: str, draws: int, **options: Any) -> Row:
    common = {**TUNED["digits"], "step_size": 0.8, "draws": draws, "micro_batch": MICRO_BATCH * 8 // draws}
    return Row(name, "pursamere", {**common, **options})


# All settings below were chosen by the sweep.
CHOSEN: dict[str, dict[str, Any]] = {
    "diffpure": {"sigma_max": 0.2, "solver": "euler"},
    "diffpure_fixed_noise": {"sigma_max": 0.2, "solver": "euler"},
    "scoreopt_o": {"sigma": 0.2, "learning_rate": 0.02},
    "scoreopt_n": {"sigma": 0.3, "learning_rate": 0.02},
    "likelihood_maximization": {"radius": 0.2, "learning_rate": 0.02},
}
DIGITS_TABLE = Experiment(
    "digits",
    "digits",
    "test",
    256,
    (
        Row("no purifier"),
        *(baseline(name, name, options, 2 * MICRO_BATCH) for name, options in CHOSEN.items()),
        purifier("ERE without SAM", 8, ascent_radius=0.0),
        purifier("PurSAMERE, ERE, rho 0.05", 4),
        purifier("PurSAMERE, ERE, rho 0.2", 4, ascent_radius=0.2),
        purifier("PurSAMERE, ERE, rho 0.05, radius 0.1", 4, radius=0.1),
        purifier("PurSAMERE, ERE, rho 0.05, 160 passes", 8),
        purifier("score without SAM", 16, direction="score", ascent_radius=0.0),
        purifier("PurSAMERE, score, rho 0.05", 8, direction="score"),
        purifier("PurSAMERE, score, rho 0.2", 8, direction="score", ascent_radius=0.2),
        purifier("PurSAMERE, score, rho 0.05, radius 0.3", 8, direction="score", radius=0.3),
    ),
    f"""\
# Digits: PurSAMERE and the baselines

```
$ python experiments/run.py digits-table -o FOLDER --write docs/results
```

{{samples}} digits of the test split, {{conditions}}

A purifier takes at most {PASSES} passes through the denoiser for an image ("passes", forward and backward), \
unless its line says otherwise. The denoiser is a kernel density of the training images (bandwidth {BANDWIDTH}). \
Worst case: per sample over all attacks of the preset, also those on survivors, which have no column; in brackets 95 % \
Wilson intervals. `digits-outcomes.csv` has every sample with the first attack that it fell to. diffpure takes Euler's \
steps and draws fresh noise in every call; a sample counts as fallen when any one of the attacks' dozen judgements \
goes wrong, be it by luck.""",
    protocol="standard",
)
