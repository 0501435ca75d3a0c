"""``pursamere evaluate``: attack a defended classifier with a whole protocol, and report the worst case."""

from __future__ import annotations

import argparse
import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pursamere._output import require_own
from pursamere._text import listed, printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import evaluation_bars, is_first_process, say, tell

if TYPE_CHECKING:
    from pursamere.datasets import Dataset

_DESCRIPTION = """\
Run a protocol of attacks on a classifier behind a purifier, and believe the worst case per sample. The folder OUTPUT
gets the configuration, the outcome of every attack on every sample (outcomes.csv), the adversarial images, and a report
in Markdown and HTML. A run that was killed goes on where it was when the same command is given again. Several processes
can share a run (--shard, or torchrun -m pursamere evaluate ...); the outcomes are the same as one process's.
"""
_DATA = (
    "digits, mnist or cifar10 (these two in the folder that PURSAMERE_DATA names), a folder with one subfolder of "
    "images per class, or an .npz file"
)
_SAMPLES = (
    "how many of its images (256, of mnist 64): of digits, mnist and cifar10 the first ones, of other data a random "
    "choice by a fixed seed, balanced over the classes"
)
_EPS = "radii of the attacks, in pixel units, like 0.1 or 8/255 (0.1 and 0.15, for mnist 0.2 and 0.3)"
_MODEL = (
    "a Python file and a function in it that takes nothing and returns the model, images [N, C, H, W] to logits; the "
    "file is executed. In place of a defense, a denoiser and a classifier; it must be on the device asked for"
)
_CLASSIFIER = (
    "mnist, for the one that comes with the library, or a checkpoint, see pursamere train; without it, mnist has the "
    "former, and digits are classified by a small network that is trained in seconds"
)
_DENOISER = (
    "mnist, or a checkpoint; without it, mnist has its own, and digits the kernel density of their training images"
)
_DEFENSE = "none, pursamere (if not given), or one of pursamere.baselines"
_OPTION = (
    "an argument of the defense's class, or draws, noise_seed or bandwidth (of the digits' kernel density, 0.25); may "
    "be repeated; what is not given is tuned for the digits, or with the denoiser mnist for MNIST"
)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="attack a defended classifier with a whole protocol, and report the worst case",
        description=_DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=types.path, required=True, default=argparse.SUPPRESS, help="folder of the run")
    add("--data", type=types.text, default="digits", metavar="WHAT", help=_DATA)
    add("--split", default="test", help="of the data")
    # Absent unless given, since the defaults depend on the data.
    add(
        "--samples",
        type=types.count,
        default=argparse.SUPPRESS,
        help=_SAMPLES,
    )
    add("--eps", type=types.positive, nargs="+", default=argparse.SUPPRESS, help=_EPS)
    add("--norm", choices=("linf", "l2"), default="linf", help="of the attacks")
    add("--preset", choices=("quick", "standard", "full"), default="quick", help="full is fifty times standard")
    add("--model", type=types.text, default=argparse.SUPPRESS, metavar="FILE.py:FUNCTION", help=_MODEL)
    add("--classifier", type=types.text, default=argparse.SUPPRESS, metavar="WHAT", help=_CLASSIFIER)
    add("--denoiser", type=types.text, default=argparse.SUPPRESS, metavar="WHAT", help=_DENOISER)
    add("--defense", type=types.text, default=argparse.SUPPRESS, metavar="NAME", help=_DEFENSE)
    add("--option", action="append", type=_option, default=[], metavar="NAME=VALUE", help=_OPTION)
    add("--passes", type=types.count, default=argparse.SUPPRESS, metavar="N", help="choose the defense's steps so "
        "that purifying an image takes at most N network passes")  # fmt: skip
    add("--seed", type=types.seed, default=0, help="of the attacks and of the digits' classifier")
    add("--chunk", type=types.count, default=128, help="samples attacked together")
    add("--micro-batch", type=types.batch, default=32, help="images that pass through the networks together")
    add("--threads", type=types.threads, default=argparse.SUPPRESS, help="CPU threads, PyTorch's if not given")
    add("--shard", type=_shard, default=argparse.SUPPRESS, metavar="I/N", help="run a share of the samples, like 0/2")
    types.add_device(parser)
    add("--no-adversarial", action="store_true", help="do not keep the adversarial images")
    add("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the evaluation, print the report's table and the verdict."""
    from pursamere import datasets
    from pursamere._evaluate import evaluate, require_packages
    from pursamere.cli.model import build_model
    from pursamere.cli.networks import find_device
    from pursamere.datasets.loading import representatives
    from pursamere.evaluation import PRESETS, IncompleteRunError
    from pursamere.evaluation.classes import classes_told
    from pursamere.pretrained import EPS
    from pursamere.report.terminal import text_table

    require_own(arguments.output, "evaluate")
    mnist = arguments.data == "mnist"
    samples = getattr(arguments, "samples", 64 if mnist else 256)
    eps = getattr(arguments, "eps", EPS["mnist" if mnist else "digits"])
    require_packages(PRESETS[arguments.preset])  # before data are loaded and a classifier is trained
    arguments.device = device = find_device(arguments.device)
    data = datasets.load(arguments.data, arguments.split)
    if samples > len(data):
        raise CommandError(f"--samples: {data.name} has {len(data)} in its split {arguments.split}")
    model = build_model(arguments, data)
    data, class_names = _match_classes(data, model)
    whole, data = len(data), representatives(data, arguments.data, samples)

    try:
        result = evaluate(
            model,
            data.images.to(device),
            data.labels.to(device),
            folder=arguments.output,
            eps=eps,
            norm=arguments.norm,
            preset=arguments.preset,
            seed=arguments.seed,
            chunk=arguments.chunk,
            micro_batch=arguments.micro_batch,
            threads=getattr(arguments, "threads", None),
            shard=getattr(arguments, "shard", None),
            data=f"{data.name}, {arguments.split} split, {_choice(arguments.data, samples, whole)}",
            class_names=class_names,
            keep_adversarial=not arguments.no_adversarial,
            bar=evaluation_bars(quiet=arguments.quiet),
        )
    except IncompleteRunError as error:
        tell(f"{error} in {printable(arguments.output)}")
        return 0
    if not is_first_process():
        return 0
    tell(f"{text_table(result)}\n")
    tell(printable(classes_told(result.config)))
    tell(result.verdict)
    tell(f"wrote {printable(arguments.output / 'report.html')}")
    return 0


def _match_classes(data: Dataset, model: Any) -> tuple[Dataset, tuple[str, ...] | None]:
    """The data with the model's labels, and the names of the labels where the model has none and the data do."""
    known = getattr(model, "class_names", None)
    if known is not None:
        try:
            return data.relabel(known), None
        except ValueError as error:
            raise CommandError(f"--data: {error}") from error
    if data.classes == tuple(map(str, range(len(data.classes)))):  # numbers, as the labels of a file without names have
        return data, None
    say(f"the model does not name its classes: its logits are taken to be in the order {listed(data.classes)}")
    return data, data.classes


def _choice(source: str, samples: int, whole: int) -> str:
    """Which images these are, for the report."""
    from pursamere.datasets.loading import is_built_in

    if is_built_in(source):
        return f"the first {samples}"
    if samples < whole:
        return f"{samples} of its {whole} images (a random choice by a fixed seed, balanced over the classes)"
    return f"all its {whole} images (in a random order by a fixed seed, balanced over the classes)"


def _option(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    if value in ("inf", "infinity"):
        return name, math.inf
    for read in (json.loads, types.number):
        with suppress(ValueError, argparse.ArgumentTypeError):
            return name, read(value)
    return name, value  # a word needs no quotes


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or not int(number) < int(count):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, got {text!r}")
    return int(number), int(count)
