"""What the records of trainings say about networks: the purifier that a classifier knows, and the images they saw."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from pursamere._text import printable
from pursamere.cli.networks import checkpoint_folder
from pursamere.cli.progress import say
from pursamere.datasets import Dataset
from pursamere.models.checkpoints import read_configuration
from pursamere.noise import GaussianNoise
from pursamere.pretrained.digits import BANDWIDTH
from pursamere.purifier import Purifier

__all__ = ["TrainedBehind", "trained_behind", "warn_of_another_purifier", "warn_of_training_images"]

_SETTINGS = ("sigma", "radius", "steps", "step_size", "ascent_radius", "direction", "draws")


@dataclass(frozen=True)
class TrainedBehind:
    """The purifier that a classifier was trained behind.

    Attributes:
        settings: keyword arguments of :class:`pursamere.Purifier`, and the ``draws`` and ``antithetic`` of its noise.
        denoiser: SHA-256 of the denoiser's weights; ``None`` for the digits' kernel density.
    """

    settings: dict[str, Any]
    denoiser: str | None

    def is_like(self, purifier: Any, denoiser: str | None) -> bool:
        """Whether a purifier, with a denoiser of these weights, is the same."""
        if not isinstance(purifier, Purifier) or denoiser != self.denoiser:
            return False
        # The digits' kernel density has no weights to compare.
        if denoiser is None and getattr(purifier.denoiser, "bandwidth", None) != BANDWIDTH:
            return False
        expected = {**self.settings, "norm": "linf", "step_rule": "unit"}
        noise = GaussianNoise(draws=expected.pop("draws"), antithetic=expected.pop("antithetic"))
        return purifier.noise == noise and all(getattr(purifier, name) == value for name, value in expected.items())


def trained_behind(classifier: str | None) -> TrainedBehind | None:
    """Return the purifier in the record of a classifier's training, if there was one.

    Args:
        classifier: one of the networks that ship, or a checkpoint; ``None`` for the digits' own.
    """
    record: Any = _read(classifier, "classifier").get("training")
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not settings.get("purifier"):
        return None
    data = record.get("data")
    found = {name: settings.get(f"purifier_{name}") for name in _SETTINGS}
    if not isinstance(found["draws"], int):  # a record by another version
        return None
    found |= {"step_size": found["step_size"] or None, "antithetic": found["draws"] % 2 == 0}
    return TrainedBehind(found, data.get("purifier") if isinstance(data, dict) else None)


def warn_of_another_purifier(trained: TrainedBehind, defense: str, purifier: Any, denoiser: str | None) -> None:
    """Warn if a classifier is evaluated behind another purifier than the one that it was trained behind.

    Args:
        trained: the purifier in its training.
        defense: name of the purifier now.
        purifier: the purifier now, or ``None``.
        denoiser: one of the denoisers that ship, or a checkpoint; ``None`` for the digits' own, or for no purifier.
    """
    if trained.is_like(purifier, _read(denoiser, "denoiser").get("weights", {}).get("sha256")):
        return
    settings = ", ".join(f"{name}={value}" for name, value in trained.settings.items())
    behind = "without a defense" if purifier is None else f"behind {defense}"
    other = " with another denoiser or other settings" if isinstance(purifier, Purifier) else ""
    say(
        f"the classifier was trained behind pursamere ({printable(settings)}), but is evaluated {behind}{other}, so "
        "the result may be worse than its training allows"
    )


def warn_of_training_images(networks: set[str], arguments: argparse.Namespace, data: Dataset) -> None:
    """Validation images are held out by position, and the files that CIFAR-10's networks know are ordered otherwise."""
    if "cifar10" in networks and data.name == "cifar10" and arguments.split != "test":
        say(
            f"cifar10's networks were trained on most of the {arguments.split} images: their own validation images are "
            "those of cifar10_jpeg.npz, which has another order"
        )


def _read(source: str | None, kind: str) -> dict[str, Any]:
    """The configuration of a checkpoint; nothing for the digits' own networks."""
    return {} if source is None else read_configuration(checkpoint_folder(kind, source))
