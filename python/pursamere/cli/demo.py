"""``pursamere demo``: attack a classifier of handwritten digits with and without purification."""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pursamere._extras import require
from pursamere._files import write_bytes
from pursamere._output import claim, require_own
from pursamere._text import printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import Advance, progress_bar, tell

_DESCRIPTION = """\
Train a small classifier on the 8x8 digits of scikit-learn and build a purifier from the same training images, or take
the networks for MNIST that come with the library; attack held-out images with and without the purifier, print a table,
and write demo.png and demo.json. Nothing is downloaded. Takes a minute on two cores, for mnist two; the accuracies are
the same every time.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="attack a classifier of handwritten digits with and without purification",
        description=_DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=("digits", "mnist"), default="digits", help="what is attacked")
    add("-o", "--output", type=types.path, default=Path("pursamere-demo"), help="folder for demo.png and demo.json")
    add("--seed", type=types.seed, default=0, help="of the digits' classifier and of the attacks' random starts")
    # Absent unless given: the defaults, which depend on the data, are in SETTINGS, which needs torch.
    add(
        "--samples",
        type=types.count,
        default=argparse.SUPPRESS,
        help="held-out images attacked, at most 512 (256, of mnist 32)",
    )
    add(
        "--attack-steps",
        type=types.count,
        default=argparse.SUPPRESS,
        help="gradient steps against the purifier (20, for mnist 10)",
    )
    add("--epochs", type=types.count, default=argparse.SUPPRESS, help="of the training of the digits' "
        "classifier (20)")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and write its files."""
    require_own(arguments.output, "demo")
    mnist = arguments.dataset == "mnist"
    if mnist and "epochs" in arguments:
        raise CommandError("--epochs: the networks for mnist are trained already")
    # Before the work: a missing extra should not be found out after a minute.
    for module in (*(("diffusers", "safetensors") if mnist else ("sklearn.datasets",)), "matplotlib.figure"):
        require(module, extra="demo")
    from pursamere.demo.plot import draw
    from pursamere.demo.report import headline, json_report, text_report
    from pursamere.demo.run import run_demo
    from pursamere.demo.settings import MOST_SAMPLES, SETTINGS

    if getattr(arguments, "samples", 1) > MOST_SAMPLES:
        raise CommandError(f"--samples: there are {MOST_SAMPLES} images, got {arguments.samples}")
    options = ("seed", "samples", "attack_steps", "epochs")
    chosen = {name: getattr(arguments, name) for name in options if name in arguments}

    def bar(total: int, description: str, unit: str) -> AbstractContextManager[Advance]:
        return progress_bar(total, description, unit=unit, quiet=arguments.quiet)

    start = time.perf_counter()
    with claim(arguments.output, "demo"):
        demo = run_demo(replace(SETTINGS[arguments.dataset], **chosen), bar)
        report = text_report(demo)
        try:
            with demo.timed("picture"):
                picture = draw(demo)
            demo.seconds["total"] = time.perf_counter() - start
            files = {"demo.png": picture, "demo.json": json_report(demo).encode()}
            for name, content in files.items():
                write_bytes(arguments.output / name, content, overwrite=True)
        finally:  # nothing that goes wrong with the files loses the report, nor the reverse
            tell(f"{report}\n")
    tell(headline(demo))
    written = " and ".join(printable(arguments.output / name) for name in files)
    tell(f"wrote {written} ({demo.seconds['total']:.0f} s)")
    return 0
