"""The model that the options of ``pursamere evaluate`` describe."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pursamere import PurifiedClassifier
from pursamere._text import printable
from pursamere._validation import check_choice
from pursamere.cli.defenses import DEFENSES, build_defense
from pursamere.cli.errors import CommandError
from pursamere.cli.networks import load_network
from pursamere.cli.progress import progress_bar, say
from pursamere.cli.provenance import (
    TrainedBehind,
    trained_behind,
    warn_of_another_purifier,
    warn_of_training_images,
)
from pursamere.datasets import Dataset
from pursamere.pretrained import SHIPPED, TUNED, known_name, load_pretrained
from pursamere.pretrained.digits import BANDWIDTH, EPOCHS, make_denoiser, train_classifier

__all__ = ["build_model", "from_file"]

_NAMES = {"classifier": SHIPPED, "denoiser": tuple(TUNED)}  # that the options take


def build_model(arguments: argparse.Namespace, data: Dataset) -> Any:
    """Return the model on ``arguments.device``.

    Raises:
        CommandError: an option is missing or doesn't go with another one, or names no network for images like ``data``.
        TypeError: the value of an ``--option`` has the wrong type.
        ValueError: the defense or an ``--option`` is unknown, or a value is out of its range.
    """
    options: dict[str, Any] = dict(arguments.option)
    if "model" in arguments:
        if options or any(name in arguments for name in ("defense", "passes", "classifier", "denoiser")):
            raise CommandError(
                "--model makes its own defense, so --defense, --option, --passes, --classifier and --denoiser "
                "cannot be given with it"
            )
        return from_file(arguments.model)
    defense = getattr(arguments, "defense", "pursamere")
    defended = defense != "none"
    check_choice("--defense", defense, ("none", *DEFENSES))
    unused = [f"--{name}" for name in ("denoiser", "option", "passes") if getattr(arguments, name, None)]
    if unused and not defended:
        raise CommandError(f"--defense none doesn't purify, so {', '.join(unused)} cannot be given with it")
    names = ["classifier", *(["denoiser"] if defended else [])]
    for name in names:
        if name not in arguments and known_name(arguments.data) not in TUNED:
            raise CommandError(
                f"--{name} must be given for --data {printable(arguments.data)}: only digits, mnist and cifar10 come "
                f"with one. Name {', '.join(_NAMES[name])} or the folder of a checkpoint, or use --model"
            )
    warn_of_training_images({getattr(arguments, name, known_name(arguments.data)) for name in names}, arguments, data)
    if not defended and "classifier" not in arguments and known_name(arguments.data) in SHIPPED:
        classifier = load_pretrained(known_name(arguments.data), arguments.device).undefended
    else:
        classifier = _network(arguments, "classifier", data)
    trained = trained_behind(_source(arguments, "classifier"))
    purifier = None
    if defended:
        options = _complete(options, arguments, trained)
        denoiser = _network(arguments, "denoiser", data)
        if denoiser is None:
            denoiser = make_denoiser(options.pop("bandwidth", BANDWIDTH), arguments.device)
            _check_shape("--denoiser: digits", denoiser, data)
        purifier = build_defense(defense, denoiser, options, getattr(arguments, "passes", None))
        say(f"{defense}: {purifier.extra_repr()}")
    if trained is not None and (defended or "classifier" in arguments):
        warn_of_another_purifier(trained, defense, purifier, _source(arguments, "denoiser") if defended else None)
    if classifier is None:  # trained last, after everything else was found to be in order
        with progress_bar(EPOCHS, "train the classifier", unit="epoch", quiet=arguments.quiet) as advance:
            classifier = train_classifier(seed=arguments.seed, progress=advance).to(arguments.device)
    return classifier if purifier is None else PurifiedClassifier(purifier, classifier)


def _network(arguments: argparse.Namespace, option: str, data: Dataset) -> Any:
    """The network that an option names, checked for the shape of its images; ``None`` for the digits' own."""
    source = _source(arguments, option)
    if source is None:
        return None
    network = load_network(option, source, arguments.device, names=_NAMES[option])
    _check_shape(f"--{option}: {printable(source)}", network, data)
    return network


def _source(arguments: argparse.Namespace, option: str) -> str | None:
    """What the option names, or else the data set if its networks ship; ``None`` for the digits' own."""
    name = known_name(arguments.data)
    source: str | None = getattr(arguments, option, name if name in SHIPPED else None)
    return None if option == "denoiser" and source == "digits" else source


def _check_shape(where: str, network: Any, data: Dataset) -> None:
    needed, shape = tuple(network.image_shape), tuple(data.images.shape[1:])
    if needed != shape:
        raise CommandError(f"{where} must be for the images of {data.name}, {shape}, and is for {needed}")


def _complete(options: dict[str, Any], arguments: argparse.Namespace, trained: TrainedBehind | None) -> dict[str, Any]:
    """Add the options that were not given: the micro-batch, and the settings of PurSAMERE and ERE descent.

    These are the ones that the classifier was trained behind, or else the tuned ones.
    """
    denoiser = getattr(arguments, "denoiser", known_name(arguments.data))
    defense = getattr(arguments, "defense", "pursamere")
    if "bandwidth" in options and denoiser != "digits":
        raise CommandError("--option bandwidth is for the kernel density of the digits, and there is another denoiser")
    defaults: dict[str, Any] = {"micro_batch": arguments.micro_batch}
    if defense in ("pursamere", "ere_descent"):
        if options.get("norm") == "l2" and "radius" not in options:
            raise CommandError(
                "--option radius=... must be given with --option norm=l2: the default radii are those of linf"
            )
        # Without a name of its own, the denoiser was trained for the data.
        defaults |= TUNED.get(denoiser, TUNED.get(known_name(arguments.data), TUNED["digits"]))
        if trained is not None:
            defaults |= trained.settings
        if "passes" in arguments:  # they determine the steps
            del defaults["steps"]
        if defense == "ere_descent":
            del defaults["ascent_radius"]
    return {**defaults, **options}


def from_file(source: str) -> Any:
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
        if isinstance(function, nn.Module):
            raise CommandError(f"--model: {name} is a {type(function).__name__}; give a function that returns it")
        return function()
    except SystemExit as error:  # would end this command, with its exit code
        raise CommandError(f"--model: {printable(source)} called sys.exit({error.code!r})") from error
    except SyntaxError as error:  # whose text has the line
        raise CommandError(f"--model: {printable(path)}: {error}") from error


def _import(path: Path) -> ModuleType:
    """Import a file as Python would from the file's folder, which comes first on ``sys.path``.

    A file named like a loaded module (``pickle.py``) gets another name instead of replacing that module.
    """
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else "pursamere_evaluated_model"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None  # as the file's name ends in .py
    assert specification.loader is not None
    sys.path.insert(0, os.path.realpath(path.parent))
    # Registered before it is executed: dataclasses and pickle look their classes' module up by name.
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
