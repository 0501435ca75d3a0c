"""MNIST and CIFAR-10, read from the folder given by an environment variable."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import torch

from . import cifar10
from .idx import read_idx
from .npz import open_npz
from .source import Part, Source

DATA_VARIABLE = "PURSAMERE_DATA"
"""The environment variable that names the folder with the files of MNIST and CIFAR-10."""
VALIDATION_SIZE = 5_000
# Fixed: images that settings were tuned on must never be trained on.
SPLIT_SEED = 20260

_MNIST_CLASSES = tuple("0123456789")
_MNIST_FOLDERS = ("", "MNIST/raw/")
# The binary version, and the Python version in torchvision's layout.
_CIFAR10_FORMS = ("{}.bin", "cifar-10-batches-bin/{}.bin", "{}", "cifar-10-batches-py/{}")


def open_mnist() -> Source:
    """Open ``mnist.npz``, or else the four IDX files."""
    folder = data_folder()
    path = folder / "mnist.npz"
    if path.is_file():
        return _hold_out(open_npz(path, name="mnist", classes=_MNIST_CLASSES))

    def read(split: str) -> Part:
        images, labels = (
            _find(folder, [f"{where}{split}-{kind}{end}" for where in _MNIST_FOLDERS for end in ("", ".gz")], path.name)
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        return Part(read_idx(images, 3), read_idx(labels, 1))

    parts = {"train": partial(read, "train"), "test": partial(read, "t10k")}
    return _hold_out(Source("mnist", _MNIST_CLASSES, parts))


def open_cifar10() -> Source:
    """Open ``cifar10_jpeg.npz`` (named "cifar10_jpeg"), or else the binary or Python version."""
    folder = data_folder()
    path = folder / "cifar10_jpeg.npz"
    if path.is_file():
        return open_cifar10_jpeg()

    def read(names: list[str]) -> Part:
        return cifar10.read_batches(
            [_find(folder, [form.format(name) for form in _CIFAR10_FORMS], path.name) for name in names]
        )

    train = [f"data_batch_{number}" for number in range(1, 6)]
    parts = {"train": partial(read, train), "test": partial(read, ["test_batch"])}
    return _hold_out(Source("cifar10", cifar10.CLASSES, parts))


def open_cifar10_jpeg() -> Source:
    """Open ``cifar10_jpeg.npz``, which is slightly lossy."""
    path = data_folder() / "cifar10_jpeg.npz"
    return _hold_out(open_npz(path, name="cifar10_jpeg", classes=cifar10.CLASSES))


def data_folder() -> Path:
    """The folder given by the environment variable."""
    name = os.environ.get(DATA_VARIABLE)
    if not name:
        raise ValueError(
            f"{DATA_VARIABLE} must name a folder with the data set's files: mnist.npz or torchvision's MNIST/raw; "
            "cifar10_jpeg.npz, cifar-10-batches-bin, or cifar-10-batches-py as torchvision downloads it"
        )
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(f"{DATA_VARIABLE} must be a folder, got {folder}")
    return folder


def _find(folder: Path, names: list[str], preferred: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} ({DATA_VARIABLE}): found neither {preferred} nor {' nor '.join(names)}")


def _hold_out(source: Source) -> Source:
    """Split a fixed random set of validation images off the training set, keeping the order."""
    if "train" not in source.parts:
        return source
    whole = source.parts["train"]
    parts: dict[str, Callable[[], Part]] = {
        "train": lambda: _split(whole(), validation=False),
        "validation": lambda: _split(whole(), validation=True),
        "train+validation": whole,
    }
    return replace(source, parts={**source.parts, **parts})


def _split(part: Part, *, validation: bool) -> Part:
    count = len(part.labels)
    if count <= VALIDATION_SIZE or len(part.pixels) != count:
        got = f"{len(part.pixels)} images and {count} labels"
        raise ValueError(
            f"the training set must have more than {VALIDATION_SIZE} images with one label each, got {got}"
        )
    chosen = torch.randperm(count, generator=torch.Generator("cpu").manual_seed(SPLIT_SEED), device="cpu")[
        :VALIDATION_SIZE
    ].numpy()
    mask = numpy.zeros(count, numpy.bool_)
    mask[chosen] = True
    return part.take(mask if validation else ~mask)
