"""Ready-made networks for a data set, and the purifier with the settings tuned for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pursamere._validation import check_choice, check_supported_device
from pursamere.datasets import Dataset, load
from pursamere.denoisers import Denoiser
from pursamere.models import load_checkpoint
from pursamere.noise import GaussianNoise
from pursamere.purifier import Purifier

from .digits import make_denoiser, train_classifier

__all__ = ["EPS", "SHIPPED", "TUNED", "Pretrained", "folder", "known_name", "load_pretrained", "make_purifier"]

SHIPPED = ("mnist", "cifar10")
"""The data sets whose networks come as checkpoints."""

TUNED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "digits": MappingProxyType({"sigma": 0.2, "radius": 0.2, "steps": 5, "ascent_radius": 0.05, "draws": 8}),
        "mnist": MappingProxyType(
            {
                "sigma": 0.5, "radius": 0.3, "steps": 4, "step_size": 3.0, "ascent_radius": 0.05, "draws": 2,
                "direction": "score",
            }
        ),
        "cifar10": MappingProxyType(  # its classifier was trained behind this purifier
            {
                "sigma": 0.2, "radius": 0.06, "steps": 4, "step_size": 0.6, "ascent_radius": 0.0, "draws": 2,
                "direction": "score",
            }
        ),
    }
)  # fmt: skip
"""Settings of :class:`pursamere.Purifier`, and the draws of its noise, by data set.

They were chosen on validation images (``docs/results/*-sweep.csv``). Those of digits and MNIST keep the paper's ascent,
though the sweeps have settings as good or better without one; CIFAR-10's were chosen before its classifier was trained
behind them, and its sweep found no better ones. One purifier faces all attacks, since a defender doesn't know their
radius.
"""

EPS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"digits": (0.1, 0.15), "mnist": (0.2, 0.3), "cifar10": (8 / 255,)}
)
"""The Linf radii of attacks that the settings were chosen for, by data set."""

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, repr=False)
class Pretrained:
    """Networks for a data set, its purifier, and images that none of them has seen.

    Attributes:
        denoiser: the purifier's: a :class:`pursamere.models.EDMUNet` in evaluation mode with frozen parameters for
            MNIST and CIFAR-10, a :class:`pursamere.denoisers.KernelDensity` for the digits.
        classifier: images [N, C, H, W] in [0, 1] to logits [N, classes]; in evaluation mode with frozen parameters.
            CIFAR-10's was trained behind the purifier, on adversarial images.
        purifier: the denoiser with the settings in :data:`TUNED`.
        test: the first 512 images of the test set, with their labels, on the CPU.
        undefended: the classifier to compare with, trained on clean images; the same one for digits and MNIST.
    """

    denoiser: Denoiser
    classifier: nn.Module
    purifier: Purifier
    test: Dataset
    undefended: nn.Module

    def __repr__(self) -> str:
        networks = (f"{name}={type(getattr(self, name)).__name__}" for name in ("denoiser", "classifier", "undefended"))
        return f"Pretrained({', '.join(networks)}, purifier=Purifier({self.purifier.extra_repr()}), test={self.test})"


def load_pretrained(name: str, device: torch.device | str = "cpu") -> Pretrained:
    """Load what :class:`Pretrained` lists for "digits" ([1, 8, 8]), "mnist" ([1, 28, 28]) or "cifar10" ([3, 32, 32]).

    Nothing is downloaded, and no code in the files is executed. The networks for MNIST and CIFAR-10 ship with the
    library; the classifier of the digits is trained in a few seconds, to the same weights every time. CIFAR-10's images
    were stored as JPEG, for the trainings too, so they are slightly lossy, and the test set is named "cifar10_jpeg".

    Args:
        name: "digits", "mnist" or "cifar10".
        device: the networks' device.

    Raises:
        MissingExtraError: the digits need scikit-learn (the extra ``demo``); MNIST and CIFAR-10 need diffusers and
            safetensors (the extra ``train``).
        ValueError: ``name`` is unknown, ``device`` can't be used with this build, or a file is damaged.
    """
    check_choice("name", name, TUNED)
    if name in SHIPPED:
        denoiser, classifier = (load_checkpoint(folder(name) / kind, device) for kind in ("denoiser", "classifier"))
        test = replace(load(folder(name) / "images.npz"), name="cifar10_jpeg" if name == "cifar10" else name)
    else:
        check_supported_device("device", torch.device(device))
        denoiser, classifier = make_denoiser(device=device), train_classifier().to(device)
        test = load(name, "test")
    undefended = load_checkpoint(folder(name) / "undefended", device) if name == "cifar10" else classifier
    return Pretrained(denoiser, classifier, make_purifier(name, denoiser), test, undefended)


def make_purifier(name: str, denoiser: Denoiser, **changes: Any) -> Purifier:
    """Return the purifier with the settings tuned for a data set.

    Args:
        name: a key of :data:`TUNED`.
        denoiser: what it works with.
        changes: other settings of :class:`pursamere.Purifier`; ``draws`` replaces the draws of its noise.

    Raises:
        TypeError: a setting has the wrong type or is unknown.
        ValueError: ``name`` is unknown, or a setting is out of its range.
    """
    settings = {**TUNED[check_choice("name", name, TUNED)], **changes}
    return Purifier(denoiser, noise=GaussianNoise(draws=settings.pop("draws")), **settings)


def folder(name: str) -> Path:
    """Return the folder of the checkpoints for one of :data:`SHIPPED`: ``denoiser``, ``classifier`` and others."""
    return _FOLDER / check_choice("name", name, SHIPPED)


def known_name(data: str) -> str:
    """Return the key of :data:`TUNED` for a data set: "cifar10_jpeg" has the networks of "cifar10"."""
    return "cifar10" if data == "cifar10_jpeg" else data
