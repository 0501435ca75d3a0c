"""``pursamere evaluate``: run a protocol of attacks on a defended classifier, and report the worst case."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pursamere._output import require_own
from pursamere._text import listed, printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import evaluation_bars, is_first_process, say, tell

if TYPE_CHECKING:
    from pursamere.datasets import Dataset

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Run a protocol of attacks on a classifier behind a purifier; the worst case per sample counts. OUTPUT gets the
configuration, the outcome of every attack on every sample (outcomes.csv), the adversarial images, and a report in
Markdown and HTML. A run that was killed resumes when the same command is given again. Several processes can share a run
(--shard, or torchrun -m pursamere evaluate ...); the outcomes are those of a single process.
"""
_DATA = (
    "digits, mnist, cifar10 or cifar10_jpeg (all but the first from the folder that PURSAMERE_DATA names), a folder "
    "with a subfolder of images for each class, or an .npz file"
)
_SAMPLES = (
    "number of images: the first ones of digits, mnist and cifar10; of other data a random choice by a fixed seed, "
    "balanced over the classes (default: 256; mnist and cifar10: 64)"
)
_EPS = (
    "radii of the attacks in pixel units, like 0.1 or 8/255; needed with --norm l2 (default: 0.1 and 0.15; mnist: 0.2 "
    "and 0.3; cifar10: 8/255)"
)
_MODEL = (
    "a Python file and a function in it without arguments that returns the model, images [N, C, H, W] to logits, on "
    "--device; the file is executed. Replaces the defense, its denoiser and the classifier"
)
_CLASSIFIER = (
    "mnist or cifar10 for the one that comes with the library, or a checkpoint of pursamere train; the default is that "
    "of the data (with --defense none, one trained on clean images), for digits a network trained in seconds"
)
_DENOISER = (
    "digits for the kernel density of their training images, mnist, cifar10, or a checkpoint; the default is that of "
    "the data"
)
_DEFENSE = "none, pursamere, or one of pursamere.baselines (default: pursamere)"
_OPTION = (
    "an argument of the defense's class (radius is needed with norm=l2); draws, noise_seed or antithetic of its noise; "
    "precision, compile, channels_last or cuda_graphs, as in pursamere purify; or bandwidth of the digits' kernel "
    "density (default: 0.25). May be repeated. PurSAMERE's defaults are the settings that the classifier was trained "
    "behind, or else those tuned for the denoiser or the data, or else for digits"
)


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "evaluate",
        parents=[common],
        help="evaluate a defended classifier with a protocol of attacks",
        description=_DESCRIPTION,
        formatter_class=types.HelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=types.path, required=True, default=argparse.SUPPRESS, help="output folder")
    add("--data", type=types.text, default="digits", metavar="DATA", help=_DATA)
    add("--split", default="test", help="split of the data")
    # Absent unless given, since the defaults depend on the data.
    add("--samples", type=types.count, default=argparse.SUPPRESS, help=_SAMPLES)
    add("--eps", type=types.positive, nargs="+", default=argparse.SUPPRESS, help=_EPS)
    add("--norm", choices=("linf", "l2"), default="linf", help="norm of the attacks")
    add("--preset", choices=("quick", "standard", "full"), default="quick", help="protocol; full takes fifty times as "
        "long as standard")  # fmt: skip
    add("--model", type=types.text, default=argparse.SUPPRESS, metavar="FILE.py:FUNCTION", help=_MODEL)
    add("--classifier", type=types.text, default=argparse.SUPPRESS, metavar="NETWORK", help=_CLASSIFIER)
    add("--denoiser", type=types.text, default=argparse.SUPPRESS, metavar="NETWORK", help=_DENOISER)
    add("--defense", type=types.text, default=argparse.SUPPRESS, metavar="NAME", help=_DEFENSE)
    add("--option", action="append", type=types.option, default=[], metavar="NAME=VALUE", help=_OPTION)
    add("--passes", type=types.count, default=argparse.SUPPRESS, metavar="N", help="choose the defense's steps so "
        "that an image takes at most N network passes")  # fmt: skip
    add("--seed", type=types.seed, default=0, help="seed of the attacks and of the digits' classifier")
    add("--chunk", type=types.count, default=128, help="samples attacked together")
    add("--micro-batch", type=types.batch, help="images per call of a network (default: a purifier finds it, else 32)")
    add("--threads", type=types.threads, default=argparse.SUPPRESS, help="CPU threads (default: PyTorch's)")
    add("--shard", type=_shard, default=argparse.SUPPRESS, metavar="I/N", help="run a share of the chunks, like 0/2")
    types.add_device(parser)
    add("--no-adversarial", action="store_true", help="don't keep the adversarial images")
    add("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the evaluation, and print its tables and the verdict."""
    from pursamere import datasets
    from pursamere._evaluate import evaluate, require_packages
    from pursamere.cli.model import build_model
    from pursamere.cli.networks import find_device
    from pursamere.datasets.loading import representatives
    from pursamere.evaluation import PRESETS, IncompleteRunError
    from pursamere.evaluation.classes import classes_told
    from pursamere.pretrained import EPS, SHIPPED, known_name
    from pursamere.report.terminal import text_table

    require_own(arguments.output, "evaluate")
    if arguments.norm != "linf" and "eps" not in arguments:
        raise CommandError(f"--eps must be given with --norm {arguments.norm}: the default radii are those of linf")
    name = known_name(arguments.data)
    samples = getattr(arguments, "samples", 64 if name in SHIPPED else 256)
    eps = getattr(arguments, "eps", EPS.get(name, EPS["digits"]))
    require_packages(PRESETS[arguments.preset])  # before any work
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
            **({} if arguments.micro_batch is None else {"micro_batch": arguments.micro_batch}),
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
    """The data relabeled as the model names its classes, and the data's names if the model has none."""
    known = getattr(model, "class_names", None)
    if known is not None:
        try:
            return data.relabel(known), None
        except ValueError as error:
            raise CommandError(f"--data: {error}") from error
    if data.classes == tuple(map(str, range(len(data.classes)))):  # of a file without names
        return data, None
    say(f"the model does not name its classes; its logits are assumed to be in the order {listed(data.classes)}")
    return data, data.classes


def _choice(source: str, samples: int, whole: int) -> str:
    """Which images these are, for the report."""
    from pursamere.datasets.loading import is_built_in

    if is_built_in(source):
        return f"the first {samples}"
    if samples < whole:
        return f"{samples} of its {whole} images (a random choice by a fixed seed, balanced over the classes)"
    return f"all its {whole} images (in a random order by a fixed seed, balanced over the classes)"


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or not int(number) < int(count):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, got {text!r}")
    return int(number), int(count)
