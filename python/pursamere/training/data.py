"""Training and validation images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pursamere import datasets
from pursamere.datasets import Dataset
from pursamere.models.checkpoints import read_configuration
from pursamere.pretrained import SHIPPED, TUNED, folder, known_name

from .configuration import CHECKPOINTS, TrainingConfiguration
from .order import generator

HELD_OUT = 10  # one in this many images is held out if there is no validation split
LARGEST_HELD_OUT = 5_000
_SPLIT_STREAM = 3


def load_data(source: str, report: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """Load the training and validation images of a data set.

    Without a validation split, a fixed random part of the training images (or of all images, if there are no splits) is
    held out, and ``report`` is called with a message about it.

    Raises:
        ValueError: the data cannot be loaded, or has too few images to split.
    """
    known = datasets.splits(source)
    train = datasets.load(source, "all" if "train" not in known and "all" in known else "train")
    if "validation" in known:
        return train, datasets.load(source, "validation")
    if len(train) < 2:
        raise ValueError(f"dataset must have at least two images, for training and validation, got {len(train)}")
    count = min(LARGEST_HELD_OUT, -(-len(train) // HELD_OUT))
    # Independent of the training's seed, so that networks with different seeds share the same unseen images.
    order = torch.randperm(len(train), generator=generator(0, _SPLIT_STREAM, 0), device="cpu")
    report(f"{train.name} has no validation split: {count} of its {len(train)} training images are held out")
    return train.subset(order[count:].sort().values), train.subset(order[:count].sort().values)


def describe_data(train: Dataset, validation: Dataset) -> dict[str, Any]:
    """Describe the data of a training as JSON-serializable values: name, hashes and class names."""
    return {
        "name": train.name,
        "sha256": train.sha256,
        "validation_sha256": validation.sha256,
        "classes": list(train.classes),
    }


def describe_checkpoints(settings: TrainingConfiguration) -> dict[str, str]:
    """Return the SHA-256 of the weights of every checkpoint that a training starts from or uses, by setting.

    The digits' denoiser is left out: it has no weights but their training images.

    Raises:
        FileNotFoundError: a setting names no checkpoint.
        ValueError: a checkpoint is damaged.
    """
    paths = {name: getattr(settings, name, "") for name in CHECKPOINTS}
    name = known_name(paths["purifier"])
    if name in SHIPPED:
        paths["purifier"] = str(folder(name) / "denoiser")
    elif name in TUNED:
        paths["purifier"] = ""
    return {name: read_configuration(Path(path))["weights"]["sha256"] for name, path in paths.items() if path}
