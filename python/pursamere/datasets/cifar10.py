"""The binary version of CIFAR-10: records of a label and 32x32 red, 32x32 green and 32x32 blue bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy

from .source import Part

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_RECORD = 1 + 3 * 32 * 32


def read_batches(paths: Sequence[Path]) -> Part:
    """The records of several files, one after another; pixels uint8 [N, 32, 32, 3]."""
    contents = [_read(path) for path in paths]
    records = numpy.frombuffer(b"".join(contents), numpy.uint8).reshape(-1, _RECORD)
    return Part(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0])


def _read(path: Path) -> bytes:
    length = path.stat().st_size
    if length == 0 or length % _RECORD:
        raise ValueError(f"{path} must be records of {_RECORD} bytes, got {length} bytes")
    return path.read_bytes()
