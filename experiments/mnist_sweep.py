"""Parameters of the purifier on MNIST's validation images, by the worst case over short attacks.

    python experiments/mnist_sweep.py -o FOLDER --table docs/results/mnist-sweep.csv

With two cores, run it twice at the same time with --part 0/2 and --part 1/2, and then once more to write the table.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mnist import purifier, target
from runs import SWEEP, Setting, parser, run_all, told, worst_cases, write_table

# One parameter at a time is changed from these. All take 16 network passes for an image; where there is no ascent, with
# twice the draws.
ERE = {
    "direction": "ere", "sigma": 0.5, "steps": 2, "step_size": 4.0, "ascent_radius": 0.05, "radius": 0.3, "draws": 2,
}  # fmt: skip
SCORE = {**ERE, "direction": "score", "steps": 4, "step_size": 3.0}
CHANGES: list[dict[str, Any]] = [
    ERE,
    SCORE,
    {**ERE, "sigma": 0.8},
    {**SCORE, "sigma": 0.8},
    {**ERE, "ascent_radius": 0.0, "draws": 4},
    {**SCORE, "ascent_radius": 0.0, "draws": 4},
    {**ERE, "ascent_radius": 0.5},
    {**SCORE, "ascent_radius": 0.5},
]


def main() -> None:
    arguments_parser = parser(__doc__ or "", samples=32)
    arguments_parser.add_argument("--table", type=Path, help="write the table there, as CSV")
    arguments = arguments_parser.parse_args()
    settings = [Setting(told(options), partial(purifier, **options)) for options in CHANGES]
    rows = worst_cases(run_all(settings, target("validation"), SWEEP, arguments))
    if arguments.table:
        write_table(arguments.table, rows)


if __name__ == "__main__":
    main()
