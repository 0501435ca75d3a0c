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
_LARGEST_RATIO = 1032  # of DEFLATE: a header that promises more than this times the compressed file is wrong


def read_idx(path: Path, rank: int) -> Any:
    """A file of unsigned bytes with ``rank`` dimensions as a uint8 array; compressed if its name ends in ``.gz``.

    No more memory is taken than the length of the file allows, whatever its header says.
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
        raise ValueError(f"its header says {shape}, {size} bytes, expected {limit}{length - len(header)} by its length")
    content = stream.read(size)
    if len(content) < size or stream.read(1):
        kind = "more" if len(content) == size else f"only {len(content)}"
        raise ValueError(f"its header says {shape}, {size} bytes, got {kind}")
    return numpy.frombuffer(content, numpy.uint8).reshape(shape)
