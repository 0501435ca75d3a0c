"""The data of the demo: the 8x8 handwritten digits that come with scikit-learn, so nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

from pursamere.datasets import Dataset, load


@dataclass(frozen=True)
class Digits:
    """Three disjoint parts: one to train on, one the demo's defaults were chosen on, one to attack."""

    train: Dataset
    validation: Dataset
    test: Dataset


def load_digits() -> Digits:
    """The 1,797 digits in their fixed split: 1,029 to train on, 256 for validation, 512 to attack."""
    return Digits(*(load("digits", split) for split in ("train", "validation", "test")))
