"""``pursamere tune``: measure the ways to run a denoiser's network, and print the setting to write down."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pursamere._text import aligned, printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import progress_bar, tell

if TYPE_CHECKING:
    from pursamere.tuning import Trial

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Measure how fast a denoiser's network runs on this machine in each combination of precision, torch.compile and
channels-last, and print a setting to write down: of those within 5 % of the fastest, the plainest. Nothing is chosen
when a purifier runs: its results would then depend on a measurement. Differences are those of a pixel from float32's
result after one step, on images made of noise; measure what they do to your own model with pursamere evaluate.
"""
_PASSES = {"score": "forward passes (direction score)", "ere": "forward and backward passes (direction ere)"}


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "tune",
        parents=[common],
        help="measure the precision, compilation and memory format to run a denoiser in",
        description=_DESCRIPTION,
        formatter_class=types.HelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True).add_argument
    source(
        "--denoiser",
        type=types.text,
        metavar="NETWORK",
        help="digits, mnist, cifar10, or a checkpoint of pursamere train",
    )
    source(
        "--model", type=types.text, metavar="FILE.py:FUNCTION", help="a function that returns a denoiser; needs --shape"
    )
    add("--shape", type=_shape, metavar="C,H,W", help="shape of the images (default: the network's own)")
    add("--sigma", type=types.positive, help="noise level, a standard deviation (default: 0.2; mnist: 0.5)")
    add("--draws", type=types.even_batch, help="number of noise draws, even (default: 8; mnist and cifar10: 2)")
    add("--batch-size", type=types.batch, default=32, help="number of images to measure with")
    add("--micro-batch", type=types.batch, nargs="+", metavar="N", help="other micro-batches to try (default: 1 8 32)")
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes")
    types.add_device(parser)
    add("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; exit code 1 if nothing could be measured."""
    from pursamere.cli.networks import find_device
    from pursamere.pretrained import TUNED
    from pursamere.tuning import MICRO_BATCHES, combinations, tune

    device = find_device(arguments.device)
    denoiser, shape = _denoiser(arguments, device)
    tuned = TUNED.get(arguments.denoiser, TUNED["digits"])
    micro_batches = arguments.micro_batch or MICRO_BATCHES
    compiled = not arguments.no_compile
    count = 2 * (len(combinations(device, compiled=compiled)) + sum(n <= arguments.batch_size for n in micro_batches))
    settings = {"sigma": arguments.sigma or tuned["sigma"], "draws": arguments.draws or tuned["draws"]}
    with progress_bar(count, "measure", unit="trial", quiet=arguments.quiet) as advance:
        trials = tune(
            denoiser,
            shape,
            batch=arguments.batch_size,
            device=device,
            compiled=compiled,
            micro_batches=micro_batches,
            progress=advance,
            **settings,
        )
    size = "x".join(map(str, shape))
    tell(f"images {size}, {settings['draws']} draws, sigma {settings['sigma']:g}, {_machine(device)}")
    for direction, passes in _PASSES.items():
        tell("\n" + "\n".join(_report(passes, [trial for trial in trials if trial.direction == direction])))
    return 0 if any(trial.images_per_second for trial in trials) else 1


def _report(passes: str, trials: Sequence[Trial]) -> list[str]:
    """The table of one direction, fastest first, and the setting to write down."""
    from pursamere.tuning import best

    lines = [f"{passes}:"]
    chosen = best(trials)
    if chosen is not None:
        measured = [trial for trial in trials if trial.images_per_second is not None]
        rows = [_row(trial) for trial in sorted(measured, key=lambda trial: -(trial.images_per_second or 0))]
        lines.append(aligned([("setting", "images/s", "largest difference", "mean difference"), *rows]))
        if chosen.options or chosen.micro_batch is not None:
            lines += [f"write down: {line}" for line in (_python(chosen), *_command_lines(chosen))]
        else:
            lines.append("nothing to write down: no other setting is more than 5 % faster than the defaults")
    for trial in trials:
        lines += [f"warning: {_name(trial)}: {printable(text)}" for text in trial.warnings]
        if trial.failure is not None:
            lines.append(f"failed: {_name(trial)}: {printable(trial.failure)}")
    return lines


def _row(trial: Trial) -> tuple[str, ...]:
    differences = (trial.largest_difference, trial.mean_difference)
    shown = ("not known" if figure is None else f"{figure:.2g}" for figure in differences)
    return _name(trial), f"{trial.images_per_second:.1f}", *shown


def _name(trial: Trial) -> str:
    settings = _settings(trial.options)
    if trial.micro_batch is not None:
        settings.append(f"micro_batch={trial.micro_batch}")
    return ", ".join(settings) or "defaults"


def _settings(options: Mapping[str, str | bool]) -> list[str]:
    """Keyword arguments as Python code."""
    return [f"{name}={json.dumps(value) if isinstance(value, str) else value}" for name, value in options.items()]


def _python(trial: Trial) -> str:
    arguments = ["..."]
    if trial.options:
        arguments.append(f"execution=ps.Execution({', '.join(_settings(trial.options))})")
    if trial.micro_batch is not None:
        arguments.append(f"micro_batch={trial.micro_batch}")
    return f"ps.Purifier({', '.join(arguments)})"


def _command_lines(trial: Trial) -> list[str]:
    """The options of the commands that purify."""
    size = [] if trial.micro_batch is None else [f"--micro-batch {trial.micro_batch}"]
    own = [f"--{name.replace('_', '-')}" + ("" if v is True else f" {v}") for name, v in trial.options.items()]
    general = [f"--option {name}={'true' if v is True else v}" for name, v in trial.options.items()]
    return [" ".join(("pursamere purify ...", *own, *size)), " ".join(("pursamere evaluate ...", *general, *size))]


def _denoiser(arguments: argparse.Namespace, device: Any) -> tuple[Any, tuple[int, ...]]:
    """The denoiser and the shape of its images."""
    from pursamere.cli.model import from_file
    from pursamere.cli.networks import load_network
    from pursamere.pretrained import TUNED
    from pursamere.pretrained.digits import make_denoiser

    if arguments.model is not None:
        denoiser = from_file(arguments.model)
    elif arguments.denoiser == "digits":
        denoiser = make_denoiser(device=device)
    else:
        denoiser = load_network("denoiser", arguments.denoiser, device, names=tuple(TUNED))
    known = getattr(denoiser, "image_shape", None)  # of one's own also a list, or something else of that name
    shape = tuple(known) if isinstance(known, Sequence) else arguments.shape
    if shape is None:
        raise CommandError("--shape must be given with --model: the denoiser has no image_shape")
    if arguments.shape not in (None, shape):
        raise CommandError(f"--shape: the denoiser is for images {shape}, got {arguments.shape}")
    return denoiser, shape


def _shape(value: str) -> tuple[int, ...]:
    """Three whole numbers."""
    sizes = tuple(types.batch(part) for part in value.split(","))
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"expected three whole numbers like 3,32,32, got {value!r}")
    return sizes


def _machine(device: Any) -> str:
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu with {torch.get_num_threads()} threads"
