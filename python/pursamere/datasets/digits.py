"""The 1,797 handwritten digits of 8x8 pixels included in scikit-learn."""

from __future__ import annotations

import numpy
import torch

from .source import Part, Source

VALIDATION_SIZE = 256
TEST_SIZE = 512
# Fixed: settings were tuned on the validation split, so it must never change.
SPLIT_SEED = 20260


def open_digits() -> Source:
    """Splits of 1,029 (train), 256 (validation) and 512 (test) digits in a fixed random order; "all" in file order."""
    whole = _read()
    order = torch.randperm(len(whole.labels), generator=torch.Generator("cpu").manual_seed(SPLIT_SEED), device="cpu")
    sizes = [TEST_SIZE, VALIDATION_SIZE, len(order) - TEST_SIZE - VALIDATION_SIZE]
    test, validation, train = (rows.numpy() for rows in order.split(sizes))
    both = numpy.concatenate([train, validation])
    rows = {"train": train, "validation": validation, "train+validation": both, "test": test}
    parts = {name: lambda chosen=chosen: whole.take(chosen) for name, chosen in rows.items()}
    return Source("digits", tuple("0123456789"), {**parts, "all": lambda: whole})


def _read() -> Part:
    from pursamere._extras import require

    bunch = require("sklearn.datasets", extra="demo").load_digits()
    return Part(bunch.images[:, None].astype(numpy.float32) / 16, bunch.target)  # 0..16, so this is exact
