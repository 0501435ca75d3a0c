"""Warnings when networks were trained for something else than what they are evaluated for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pursamere._text import printable
from pursamere.cli.progress import say
from pursamere.datasets import Dataset
from pursamere.models.checkpoints import read_configuration
from pursamere.pretrained import SHIPPED, folder, known_name
from pursamere.purifier import Purifier

__all__ = ["warn_of_another_purifier", "warn_of_training_images"]

_SETTINGS = ("sigma", "radius", "steps", "step_size", "ascent_radius", "direction")


def warn_of_training_images(networks: set[str], arguments: argparse.Namespace, data: Dataset) -> None:
    """Validation images are held out by position, and the files that CIFAR-10's networks know are ordered otherwise."""
    if "cifar10" in networks and data.name == "cifar10" and arguments.split != "test":
        say(
            f"cifar10's networks were trained on most of the {arguments.split} images: their own validation images are "
            "those of cifar10_jpeg.npz, which has another order"
        )


def warn_of_another_purifier(classifier: str, defense: str, purifier: Any) -> None:
    """Warn if a classifier was trained behind another purifier than the one that it is evaluated with.

    Args:
        classifier: what ``--classifier`` names, or the data set whose classifier it is.
        defense: name of the purifier.
        purifier: the purifier, or ``None``.
    """
    name = known_name(classifier)
    if name == "digits":
        return
    path = folder(name) / "classifier" if name in SHIPPED else Path(classifier)
    trained = _trained_behind(read_configuration(path).get("training"))
    if trained is None:
        return
    here = None
    if isinstance(purifier, Purifier):
        here = {name: getattr(purifier, name) for name in _SETTINGS} | {"draws": purifier.noise.draws}
    if here != trained:
        settings = printable(", ".join(f"{name}={value}" for name, value in trained.items()))
        evaluated = f"the defense {defense}{'' if here is None else ' and other settings'}"
        say(
            f"the classifier was trained behind pursamere with {settings}, and is evaluated with {evaluated}: another "
            "classifier may do better there"
        )


def _trained_behind(record: Any) -> dict[str, Any] | None:
    """The purifier's settings in the record of a classifier's training, if there was a purifier."""
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not settings.get("purifier"):
        return None
    trained = {name: settings.get(f"purifier_{name}") for name in (*_SETTINGS, "draws")}
    return {**trained, "step_size": trained["step_size"] or None}
