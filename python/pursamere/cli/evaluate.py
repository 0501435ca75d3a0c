"""``pursamere evaluate``: attack a defended classifier with a whole protocol, and report the worst case."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pursamere._output import require_own
from pursamere._text import listed, printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import Advance, progress_bar, say, tell

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
    "be repeated; with MNIST's denoiser pursamere has the settings of the demo, where none are given"
)
_OWN_NETWORKS = ("digits", "mnist")


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
    from pursamere.cli.networks import find_device
    from pursamere.datasets.loading import representatives
    from pursamere.evaluation import PRESETS, IncompleteRunError
    from pursamere.evaluation.classes import classes_told
    from pursamere.report.terminal import text_table

    require_own(arguments.output, "evaluate")
    mnist = arguments.data == "mnist"
    samples = getattr(arguments, "samples", 64 if mnist else 256)
    eps = getattr(arguments, "eps", [0.2, 0.3] if mnist else [0.1, 0.15])
    require_packages(PRESETS[arguments.preset])  # before data are loaded and a classifier is trained
    arguments.device = device = find_device(arguments.device)
    data = datasets.load(arguments.data, arguments.split)
    if samples > len(data):
        raise CommandError(f"--samples: {data.name} has {len(data)} in its split {arguments.split}")
    model = _model(arguments, data)
    data, class_names = _match_classes(data, model)
    whole, data = len(data), representatives(data, arguments.data, samples)

    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process shows its bar and the result

    def bar(total: int, description: str) -> AbstractContextManager[Advance]:
        return progress_bar(total, description, unit="", quiet=arguments.quiet or not first)

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
            bar=bar,
        )
    except IncompleteRunError as error:
        tell(f"{error} in {printable(arguments.output)}")
        return 0
    if not first:
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


def _model(arguments: argparse.Namespace, data: Dataset) -> Any:
    """The model that the options describe, on the device asked for."""
    options: dict[str, Any] = dict(arguments.option)
    if "model" in arguments:
        if options or any(name in arguments for name in ("defense", "passes", "classifier", "denoiser")):
            raise CommandError(
                "--model makes its own defense, so --defense, --option, --passes, --classifier and --denoiser "
                "cannot be given with it"
            )
        return _from_file(arguments.model)
    name_of_defense = getattr(arguments, "defense", "pursamere")
    defended = name_of_defense != "none"
    if "denoiser" in arguments and not defended:
        raise CommandError("--denoiser: there is no use for one in the defense none")
    for name in ("classifier", *(["denoiser"] if defended else [])):
        if name not in arguments and arguments.data not in _OWN_NETWORKS:
            raise CommandError(
                f"--{name}: only digits and mnist have their own; give mnist, a checkpoint, or a --model"
            )
    from pursamere import PurifiedClassifier
    from pursamere.evaluation.defenses import build_defense

    classifier = _network(arguments, "classifier", data)
    purifier = None
    if defended:
        _complete(options, arguments)
        denoiser = _network(arguments, "denoiser", data) or _digits_denoiser(arguments, options)
        purifier = build_defense(name_of_defense, denoiser, options, getattr(arguments, "passes", None))
        say(f"{name_of_defense}: {purifier.extra_repr()}")
    if classifier is None:  # trained after everything else was found to be in order
        classifier = _digits_classifier(arguments)
    return classifier if purifier is None else PurifiedClassifier(purifier, classifier)


def _network(arguments: argparse.Namespace, option: str, data: Dataset) -> Any:
    """The network that an option names, if it is for images of the shape needed; ``None`` for the digits' own."""
    from pursamere.cli.networks import load_network

    source = getattr(arguments, option, "mnist" if arguments.data == "mnist" else None)
    if source is None:
        return None
    network, shape = load_network(option, source, arguments.device), tuple(data.images.shape[1:])
    if network.image_shape != shape:
        where = f"--{option}: {printable(source)}"
        raise CommandError(f"{where} must be for the images of {data.name}, {shape}, and is for {network.image_shape}")
    return network


def _complete(options: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Options that were not given: the micro-batch, and PurSAMERE's settings for the denoiser of MNIST that ships."""
    from pursamere.demo.settings import SETTINGS

    options.setdefault("micro_batch", arguments.micro_batch)
    denoiser = getattr(arguments, "denoiser", arguments.data)
    if "bandwidth" in options and denoiser != "digits":
        raise CommandError("--option bandwidth is of the kernel density of the digits, and there is another denoiser")
    if denoiser == "mnist" and getattr(arguments, "defense", "pursamere") == "pursamere":
        for name in ("sigma", "steps", "step_size", "radius", "direction", "draws"):
            if name != "steps" or "passes" not in arguments:  # which chooses the steps
                options.setdefault(name, getattr(SETTINGS["mnist"], name))
    if getattr(arguments, "defense", "pursamere") in ("pursamere", "ere_descent"):
        options.setdefault("sigma", 0.2)
        options.setdefault("radius", 0.2)


def _digits_denoiser(arguments: argparse.Namespace, options: dict[str, Any]) -> Any:
    """The digits' kernel density, whose bandwidth is taken out of the options."""
    from pursamere import datasets
    from pursamere.denoisers import KernelDensity

    return KernelDensity(datasets.load("digits", "train").images.to(arguments.device), options.pop("bandwidth", 0.25))


def _digits_classifier(arguments: argparse.Namespace) -> Any:
    from pursamere import datasets
    from pursamere._threads import cpu_threads
    from pursamere.demo.classifier import train_classifier

    train = datasets.load("digits", "train")
    # With one thread, so that the weights are the same whatever number of threads this process, or another, has.
    with cpu_threads(1), progress_bar(20, "train the classifier", unit="epoch", quiet=arguments.quiet) as advance:
        return train_classifier(train, seed=arguments.seed, progress=advance).to(arguments.device)


def _from_file(source: str) -> Any:
    """Call FUNCTION of FILE.py, which the user names and so trusts."""
    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise CommandError(f"--model: expected FILE.py:FUNCTION, got {printable(source)}")
    if not Path(path).is_file():
        raise CommandError(f"--model: {printable(path)} does not exist")
    try:
        function = getattr(_import(Path(path)), name, None)
        if not callable(function):
            raise CommandError(f"--model: {printable(path)} has no function {name}")
        return function()
    except SystemExit as error:  # would end this command, with its exit code
        raise CommandError(f"--model: {printable(source)} called sys.exit({error.code!r})") from error
    except SyntaxError as error:  # its text has the line
        raise CommandError(f"--model: {printable(path)}: {error}") from error


def _import(path: Path) -> ModuleType:
    """The module in a file, imported as Python would from the file's folder, which comes first on ``sys.path``.

    A file that is called like a module in use (``pickle.py``) gets another name instead of replacing that.
    """
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else "pursamere_evaluated_model"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None  # as the file's name ends in .py
    assert specification.loader is not None
    sys.path.insert(0, os.path.realpath(path.parent))
    # Before it is executed, so that dataclasses and pickle find the module by the name that its classes have.
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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
