"""The images to train on, and others to validate on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pursamere import datasets
from pursamere.datasets import Dataset

from .order import generator

HELD_OUT = 10  # one image of so many is held out for validation where the data has no validation split
LARGEST_HELD_OUT = 5_000
_SPLIT_STREAM = 3


def load_data(source: str, report: Callable[[str], None]) -> tuple[Dataset, Dataset]:
    """The training and the validation images of a data set.

    Data without a validation split loses a fixed random part of its training images to it (of all its images, where it
    is not split at all), which ``report`` is told.

    Raises:
        ValueError: the data cannot be loaded, or is a single image to be split.
    """
    known = datasets.splits(source)
    train = datasets.load(source, "all" if "train" not in known and "all" in known else "train")
    if "validation" in known:
        return train, datasets.load(source, "validation")
    if len(train) < 2:
        raise ValueError(f"dataset must have two images or more to train and to validate on, got {len(train)}")
    count = min(LARGEST_HELD_OUT, -(-len(train) // HELD_OUT))
    # Not by the seed of the training: networks of other seeds must be comparable on images that none of them has seen.
    order = torch.randperm(len(train), generator=generator(0, _SPLIT_STREAM, 0), device="cpu")
    report(f"{train.name} has no validation split: {count} of its {len(train)} training images are held out")
    return train.subset(order[count:].sort().values), train.subset(order[:count].sort().values)


def describe_data(train: Dataset, validation: Dataset) -> dict[str, Any]:
    """What data a training has, as values for JSON: their name, what they hold, and the names of their classes."""
    return {
        "name": train.name,
        "sha256": train.sha256,
        "validation_sha256": validation.sha256,
        "classes": list(train.classes),
    }
