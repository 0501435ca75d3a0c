"""The table of docs/results/digits.md: PurSAMERE and the baselines on 256 digits of the test split.

    python experiments/digits_table.py -o FOLDER --write docs/results

With two cores, run it twice at the same time with --part 0/2 and --part 1/2, and then once more to write the table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from digits import denoiser, target
from runs import MICRO_BATCH, Setting
from tables import conditions, make

import pursamere as ps
from pursamere.evaluation import Result

PRESET = "standard"
# Network passes for an image, of every line that does not say otherwise.
PASSES = 80
# Chosen by digits_sweep.py on the validation split, as are the purifiers' other parameters.
BANDWIDTH = 0.25
BASELINES: dict[str, dict[str, Any]] = {
    "diffpure": {"sigma_max": 0.2, "solver": "euler"},
    "diffpure_fixed_noise": {"sigma_max": 0.2, "solver": "euler"},
    "scoreopt_o": {"sigma": 0.2, "learning_rate": 0.02},
    "scoreopt_n": {"sigma": 0.3, "learning_rate": 0.02},
    "likelihood_maximization": {"radius": 0.2, "learning_rate": 0.02},
}
PURIFIERS: dict[str, dict[str, Any]] = {
    "ERE without SAM": {"ascent_radius": 0.0, "draws": 8},
    "PurSAMERE, ERE, rho 0.05": {"ascent_radius": 0.05, "draws": 4},
    "PurSAMERE, ERE, rho 0.2": {"ascent_radius": 0.2, "draws": 4},
    "PurSAMERE, ERE, rho 0.05, radius 0.1": {"ascent_radius": 0.05, "draws": 4, "radius": 0.1},
    "PurSAMERE, ERE, rho 0.05, 160 passes": {"ascent_radius": 0.05, "draws": 8},
    "score without SAM": {"direction": "score", "ascent_radius": 0.0, "draws": 16},
    "PurSAMERE, score, rho 0.05": {"direction": "score", "ascent_radius": 0.05, "draws": 8},
    "PurSAMERE, score, rho 0.2": {"direction": "score", "ascent_radius": 0.2, "draws": 8},
    "PurSAMERE, score, rho 0.05, radius 0.3": {
        "direction": "score", "ascent_radius": 0.05, "draws": 8, "radius": 0.3,
    },
}  # fmt: skip


def baseline(name: str, options: dict[str, Any]) -> ps.IterativePurifier:
    return ps.baselines.with_passes(name, denoiser(BANDWIDTH), PASSES, micro_batch=2 * MICRO_BATCH, **options)


def purifier(draws: int, radius: float = 0.2, **options: Any) -> ps.Purifier:
    noise = ps.GaussianNoise(draws=draws)
    common = {"sigma": 0.2, "steps": 5, "step_size": 0.8}
    micro_batch = MICRO_BATCH * 8 // draws
    return ps.Purifier(denoiser(BANDWIDTH), noise=noise, radius=radius, micro_batch=micro_batch, **common, **options)


def settings() -> list[Setting]:
    found = [Setting("no purifier", lambda: None)]
    found += [Setting(name, partial(baseline, name, options)) for name, options in BASELINES.items()]
    found += [Setting(name, partial(purifier, **options)) for name, options in PURIFIERS.items()]
    return found


def introduction(results: list[tuple[Setting, Result]], samples: int) -> str:
    return f"""\
# Digits: PurSAMERE and the baselines

```
$ python experiments/digits_table.py -o FOLDER --write docs/results
```

{samples} digits of the test split, {conditions(results, PRESET)}

A purifier takes at most {PASSES} passes through the denoiser for an image ("passes", forward and backward), \
unless its line says otherwise. The denoiser is a kernel density of the training images (bandwidth {BANDWIDTH}). \
Worst case: per sample over all attacks of the preset, also those on survivors, which have no column; in brackets 95 % \
Wilson intervals. `digits-outcomes.csv` has every sample with the first attack that it fell to. diffpure takes Euler's \
steps and draws fresh noise in every call; a sample counts as fallen when any one of the attacks' dozen judgements \
goes wrong, be it by luck."""


if __name__ == "__main__":
    make("digits", settings(), target("test"), PRESET, introduction, description=__doc__ or "", samples=256)
