"""The IDX format of the MNIST files: a magic number, the sizes as big-endian uint32, then the values as bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy

_UNSIGNED_BYTES = 0x08
_LARGEST_RATIO = 1032  # the highest compression ratio of DEFLATE; bounds the size that a header may claim


def read_idx(path: Path, rank: int) -> Any:
    """Read a file of unsigned bytes with ``rank`` dimensions as a uint8 array; decompresses names in ``.gz``.

    Sizes in the header are checked against the length of the file before memory is allocated.
    """
    compressed = path.suffix == ".gz"
    try:
        length = path.stat().st_size * (_LARGEST_RATIO if compressed else 1)
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            return _read(stream, rank, length, exact=not compressed)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as IDX: {error}") from error


def _read(stream: BinaryIO | gzip.GzipFile, rank: int, length: int, *, exact: bool) -> Any:
    header = stream.read(4 * (1 + rank))
    if len(header) < 4 * (1 + rank):
        raise ValueError(f"expected a header of {4 * (1 + rank)} bytes, got {len(header)}")
    magic, *shape = struct.unpack(f">{1 + rank}I", header)
    expected = _UNSIGNED_BYTES << 8 | rank
    if magic != expected:
        raise ValueError(f"expected the magic number 0x{expected:08x}, got 0x{magic:08x}")
    size = math.prod(shape)
    if size > length - len(header) or (exact and size < length - len(header)):
        limit = "" if exact else "at most "
        raise ValueError(
            f"its header claims {shape}, {size} bytes, but its length implies {limit}{length - len(header)}"
        )
    content = stream.read(size)
    if len(content) < size or stream.read(1):
        kind = "more" if len(content) == size else f"only {len(content)}"
        raise ValueError(f"its header claims {shape}, {size} bytes, got {kind}")
    return numpy.frombuffer(content, numpy.uint8).reshape(shape)
