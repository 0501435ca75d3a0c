"""``pursamere train``: train a denoiser to purify with, or a classifier to defend."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from pursamere._text import printable
from pursamere.cli import types
from pursamere.cli.progress import is_first_process, progress_bar, say, tell

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Train on the training split of a data set, validate on held-out images, and write a checkpoint, its history and
pictures. digits, mnist, cifar10 and cifar10_jpeg have their own settings, also of the purifier in front of a classifier
(other data need --config or flags to be trained well); a JSON file overrides them, and flags override both. A training
that was stopped resumes when the same command is given again. Under torchrun the processes share every batch:
torchrun --nproc-per-node 2 -m pursamere train denoiser -o FOLDER.
"""
_OUTPUT = "output folder: a new or empty one, or that of a training to resume"
_KINDS = {"denoiser": "by its expected reconstruction error", "classifier": "by the cross-entropy"}


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser("train", help="train a denoiser or a classifier", description=_DESCRIPTION)
    kinds = parser.add_subparsers(title="what to train", metavar="WHAT", required=True, parser_class=_Parser)
    for kind, how in _KINDS.items():
        _add_kind(kinds.add_parser(kind, parents=[common], help=how, description=_DESCRIPTION), kind)


class _Parser(argparse.ArgumentParser):
    """Adds the settings as flags only when it is used, since they need PyTorch."""

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """Add the flags and parse."""
        _add_settings(self, self.get_default("kind"))
        return super().parse_known_args(*arguments, **named)


def _add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    add = parser.add_argument
    add("-o", "--output", type=types.path, required=True, metavar="FOLDER", help=_OUTPUT)
    add("--config", type=types.path, metavar="FILE", help="JSON object of settings, named like the flags with _ for -")
    types.add_device(parser)
    add("--half", action="store_true", help="store the weights in half precision")
    add("-q", "--quiet", action="store_true", help="no progress bar and no progress messages")
    parser.set_defaults(command=run, kind=kind)


def _add_settings(parser: argparse.ArgumentParser, kind: str) -> None:
    settings = parser.add_argument_group("settings")
    # Absent unless given, so that defaults don't override the file.
    kind_of_settings = _settings_class(kind)
    hints = get_type_hints(kind_of_settings)
    for item in fields(kind_of_settings):
        settings.add_argument(
            f"--{item.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=f"{item.metadata['help']} (default: {_defaults(kind, item.name, item.default)})",
            **_form(hints[item.name], item.metadata),
        )


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the validation table and the checkpoint's folder."""
    import torch

    from pursamere.cli.networks import find_device
    from pursamere.training import Watcher, configuration, train
    from pursamere.training.configuration import read_settings

    device = find_device(arguments.device)
    kind = _settings_class(arguments.kind)
    chosen = read_settings(arguments.config) if arguments.config else {}
    chosen |= {item.name: getattr(arguments, item.name) for item in fields(kind) if item.name in arguments}
    settings = configuration(kind, chosen)
    quiet = arguments.quiet or not is_first_process()
    with progress_bar(settings.steps, f"train {arguments.kind}", unit="step", quiet=quiet) as advance:
        result = train(
            settings,
            arguments.output,
            device=device,
            dtype=torch.float16 if arguments.half else torch.float32,
            watcher=Watcher(advance, (lambda _: None) if quiet else say),
        )
    if result.table:
        tell(table_text(result.table))
        tell(f"checkpoint in {printable(arguments.output)}")
    return 0


def table_text(table: list[dict[str, float]]) -> str:
    """Return the rows of a validation as text."""
    widths = {name: max(len(name), 9) for name in table[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())]
    lines += ["  ".join(f"{row[name]:>{width}.5g}" for name, width in widths.items()) for row in table]
    return "\n".join(lines)


def _settings_class(kind: str) -> Any:
    from pursamere.training.configuration import ClassifierConfiguration, DenoiserConfiguration

    return {"denoiser": DenoiserConfiguration, "classifier": ClassifierConfiguration}[kind]


def _form(kind: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a setting."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is str:
        return {"type": types.text, "metavar": "STR"}
    if kind is float:
        return {"type": types.checked(metadata["check"]), "metavar": "FLOAT"}
    form = {"metavar": "INT"} if kind is int else {"nargs": "+", "metavar": "N"}
    return {"type": types.integer(*metadata["bounds"]), **form}


def _defaults(kind: str, name: str, default: Any) -> str:
    """The default of a setting, and those of data sets that have another one."""
    from pursamere.training.configuration import CLASSIFIERS, DENOISERS

    assert default is not MISSING
    own = {"denoiser": DENOISERS, "classifier": CLASSIFIERS}[kind]
    values = {data: settings[name] for data, settings in own.items() if settings.get(name, default) != default}
    parts = [_shown(default), *(f"{data}: {_shown(value)}" for data, value in values.items())]
    if name.startswith("purifier_"):
        parts.append("the tuned value if --purifier or --dataset is digits, mnist or cifar10")
    return "; ".join(parts)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default) or "none"
