"""``pursamere compare``: which of several evaluated defenses withstands more, on the same samples."""

from __future__ import annotations

import argparse
from typing import Any

from pursamere._text import aligned, printable, radius
from pursamere.cli import types
from pursamere.cli.progress import tell

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Compare finished runs of pursamere evaluate with a reference: the same samples and attacks, another defense. Prints, for
clean images and every radius, how many samples only one of the two withstood, the difference of the accuracies with its
95 % confidence interval, and the p-value of McNemar's exact test. Overlapping intervals of two accuracies don't show
that the defenses are equal.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "compare",
        parents=[common],
        help="compare evaluated defenses, sample by sample",
        description=_DESCRIPTION,
        formatter_class=types.HelpFormatter,
    )
    parser.add_argument("runs", type=types.path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--reference", type=types.path, required=True, default=argparse.SUPPRESS, metavar="FOLDER",
        help="folder of the run that the others are compared with",
    )  # fmt: skip
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table with a line for each run and radius."""
    from pursamere.evaluation import compare

    rows: list[tuple[str, ...]] = [("run", "eps", "samples", "run only", "reference only", "difference")]
    for folder in arguments.runs:
        for eps, found in compare(folder, arguments.reference).items():
            counts = map(str, (found.samples, found.won, found.lost))
            rows.append((printable(folder), radius(eps) if eps else "clean", *counts, str(found)))
    tell(aligned(rows))
    return 0
