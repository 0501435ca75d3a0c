"""The files of CIFAR-10: the binary version, and the Python version, which torchvision downloads.

An image is 32x32 red, 32x32 green and 32x32 blue bytes; in the binary version, its label precedes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy

from .pickled import read_pickle
from .source import Part

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS


def read_batches(paths: Sequence[Path]) -> Part:
    """Read and concatenate several files, ``.bin`` or pickles; pixels uint8 [N, 32, 32, 3]."""
    parts = [_read_binary(path) if path.suffix == ".bin" else _read_pickle(path) for path in paths]
    pixels = numpy.concatenate([part.pixels for part in parts])
    labels = numpy.concatenate([part.labels for part in parts])
    return Part(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)


def _read_binary(path: Path) -> Part:
    length = path.stat().st_size
    if length == 0 or length % _RECORD:
        raise ValueError(f"{path} must be records of {_RECORD} bytes, got {length} bytes")
    records = numpy.frombuffer(path.read_bytes(), numpy.uint8).reshape(-1, _RECORD)
    return Part(records[:, 1:], records[:, 0])


def _read_pickle(path: Path) -> Part:
    batch = read_pickle(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, numpy.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"{path} must have an array 'data', uint8 [N, {_PIXELS}]")
    if not isinstance(labels, list) or any(label not in range(len(CLASSES)) for label in labels):
        raise ValueError(f"{path} must have a list 'labels' of integers in [0, {len(CLASSES) - 1}]")
    if len(labels) != len(pixels):
        raise ValueError(f"{path} must have as many labels as images, {len(pixels)}, got {len(labels)}")
    return Part(pixels, numpy.array(labels, numpy.uint8))
