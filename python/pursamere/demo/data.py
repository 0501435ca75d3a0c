"""The data of the demo: the 8x8 handwritten digits that come with scikit-learn, so nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pursamere.cli.extras import require

VALIDATION_SIZE = 256
TEST_SIZE = 512
# The split is part of the demo, not a setting: the defaults were chosen on the validation part, so it must never move.
SPLIT_SEED = 20260


@dataclass(frozen=True)
class Split:
    """Images [N, 1, 8, 8], float32 in [0, 1], and their labels [N], int64 in 0..9."""

    images: Tensor
    labels: Tensor

    def head(self, count: int) -> Split:
        """The first ``count`` images; the order is already random."""
        if not 1 <= count <= len(self.labels):
            raise ValueError(f"samples must be in [1, {len(self.labels)}], got {count}")
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Digits:
    """Three disjoint parts: one to train on, one the demo's defaults were chosen on, one to attack."""

    train: Split
    validation: Split
    test: Split


def load_digits() -> Digits:
    """The 1,797 digits in their fixed split: 1,029 to train on, 256 for validation, 512 to attack."""
    images, labels = load_digit_arrays()
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator)
    test, validation, train = order.split([TEST_SIZE, VALIDATION_SIZE, len(labels) - TEST_SIZE - VALIDATION_SIZE])
    return Digits(*(Split(images[part], labels[part]) for part in (train, validation, test)))


def load_digit_arrays() -> tuple[Tensor, Tensor]:
    """All digits, images [1797, 1, 8, 8] scaled from 0..16 to [0, 1], and labels [1797], in scikit-learn's order."""
    datasets = require("sklearn.datasets", extra="demo")
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div(16.0).unsqueeze(1)
    return images, torch.from_numpy(bunch.target).to(torch.int64)
