"""What the demo attacks: held-out images, a classifier and a denoiser that know others of their kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from pursamere.datasets import Dataset, load
from pursamere.datasets.digits import SPLIT_SEED
from pursamere.demo.settings import Settings
from pursamere.denoisers import KernelDensity
from pursamere.pretrained import load_pretrained
from pursamere.pretrained.digits import train_classifier


@dataclass(frozen=True)
class Subject:
    """Networks, and images that neither they nor the demo's defaults have been chosen on.

    Attributes:
        test: the images that can be attacked, up to 512.
        classifier: frozen, in evaluation mode.
        denoiser: for the purifier.
        images: what the images are, for the terminal.
        origin: where classifier and denoiser come from, for the terminal.
        record: the same for the JSON file.
    """

    test: Dataset
    classifier: nn.Module
    denoiser: Any
    images: str
    origin: str
    record: dict[str, Any]


def digits(settings: Settings, progress: Callable[[int], None]) -> Subject:
    """The 8x8 digits of scikit-learn: a classifier trained here, and the kernel density of its training images."""
    train, validation, test = (load("digits", split) for split in ("train", "validation", "test"))
    return Subject(
        test,
        train_classifier(train, seed=settings.seed, epochs=settings.epochs, progress=progress),
        KernelDensity(train.images, settings.bandwidth),
        "8x8 digits",
        f"classifier and purifier made from {len(train)} others (seed {settings.seed}); the denoiser is their kernel "
        f"density of bandwidth {settings.bandwidth:g}",
        {
            "name": "scikit-learn digits, 8x8",
            "split_seed": SPLIT_SEED,
            "train": len(train),
            "validation": len(validation),
            "test": len(test),
        },
    )


def mnist() -> Subject:
    """MNIST, with the networks that come with the library."""
    pretrained = load_pretrained("mnist")
    return Subject(
        pretrained.test,
        pretrained.classifier,
        pretrained.denoiser,
        "28x28 digits of MNIST",
        "the classifier and the denoiser are those that come with the library",
        {"name": "MNIST", "test": len(pretrained.test), "networks": "those that ship"},
    )
