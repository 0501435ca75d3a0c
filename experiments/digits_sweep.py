"""Parameters of the purifier and the baselines on the digits' validation split, by the worst case over short attacks.

python experiments/digits_sweep.py -o FOLDER --table docs/results/digits-sweep.csv
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from digits import denoiser, target
from runs import MICRO_BATCH, SWEEP, Setting, parser, run_all, told, worst_cases, write_table

import pursamere as ps

# One parameter at a time is changed from here.
CENTER = {
    "direction": "ere", "bandwidth": 0.25, "sigma": 0.2, "steps": 5, "step_size": 0.4, "ascent_radius": 0.05,
    "radius": 0.2, "draws": 8,
}  # fmt: skip
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
    *({"direction": "score", "ascent_radius": 0.0, "radius": value} for value in (0.15, 0.3)),
    *({"direction": "score", "ascent_radius": 0.0, "sigma": value} for value in (0.15, 0.3)),
    {"direction": "score", "ascent_radius": 0.0, "step_size": 0.8},
    {"direction": "score", "ascent_radius": 0.0, "steps": 10, "step_size": 0.2},
    {"direction": "score", "ascent_radius": 0.0, "bandwidth": 0.3},
    # Round two, from what was best so far.
    {"step_size": 0.64},
    {"step_size": 0.8, "radius": 0.3},
    *({"step_size": 0.8, "ascent_radius": value} for value in (0.0, 0.2)),
    {"step_size": 0.8, "draws": 4},
    {"direction": "score", "ascent_radius": 0.0, "step_size": 0.8, "radius": 0.3},
    {"direction": "score", "ascent_radius": 0.0, "step_size": 1.2},
    {"direction": "score", "ascent_radius": 0.05, "step_size": 0.8},
    {"direction": "score", "ascent_radius": 0.0, "step_size": 0.8, "draws": 16},
    {"direction": "score", "ascent_radius": 0.0, "step_size": 0.8, "steps": 10},
]


# The baselines' own parameters, at as many network passes as PurSAMERE with 4 draws takes.
PASSES = 80
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
    # Round two, where the best so far was at the end of what had been tried.
    ("scoreopt_n", {"sigma": 0.3, "learning_rate": 0.005}),
    *(("scoreopt_n", {"sigma": 0.4, "learning_rate": value}) for value in (0.005, 0.02)),
    ("likelihood_maximization", {"radius": 0.2, "learning_rate": 0.05}),
    ("likelihood_maximization", {"radius": 0.3, "learning_rate": 0.02}),
    ("scoreopt_o", {"sigma": 0.25, "learning_rate": 0.02}),
    ("diffpure_fixed_noise", {"sigma_max": 0.25, "solver": "euler"}),
]


def purifier(bandwidth: float, draws: int, **options: Any) -> ps.Purifier:
    noise = ps.GaussianNoise(draws=draws)
    return ps.Purifier(denoiser(bandwidth), noise=noise, micro_batch=MICRO_BATCH, **options)


def baseline(name: str, options: dict[str, Any]) -> ps.IterativePurifier:
    # A baseline runs its network on one draw at a time, so a larger micro-batch costs no more memory.
    return ps.baselines.with_passes(name, denoiser(0.25), PASSES, micro_batch=4 * MICRO_BATCH, **options)


def main() -> None:
    arguments_parser = parser(__doc__ or "", samples=128)
    arguments_parser.add_argument("--table", type=Path, help="write the table there, as CSV")
    arguments = arguments_parser.parse_args()
    settings = [Setting(told(change) or "center", partial(purifier, **{**CENTER, **change})) for change in CHANGES]
    settings += [Setting(f"{name} {told(options)}", partial(baseline, name, options)) for name, options in BASELINES]
    rows = worst_cases(run_all(settings, target("validation"), SWEEP, arguments))
    if arguments.table:
        write_table(arguments.table, rows)


if __name__ == "__main__":
    main()
