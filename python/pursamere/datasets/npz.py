"""Data sets in one ``.npz`` file: whole arrays of pixels, or JPEG files joined into one array of bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from pursamere._images import as_current_file

from .source import Part, Source, to_images, to_labels, warn_unused

SPLITS = ("train", "validation", "test")
# Labels without names are numbered up to the largest, which a corrupt file could make huge.
MAX_UNNAMED_CLASSES = 65_536


def open_npz(path: Path, *, name: str | None = None, classes: tuple[str, ...] | None = None) -> Source:
    """Open a file with arrays ``images`` and ``labels``, or ``train_images``, ``train_labels`` etc. for each split.

    ``images`` may be replaced by ``jpeg`` (uint8, concatenated JPEG files of equal size, all gray or all in color) and
    ``offsets`` (integers [N + 1]: the start of each file, and the end of the last). An array ``class_names`` takes
    precedence over the argument ``classes``; without either, classes are named by their numbers.
    """
    found = _names(path)
    if _has_pixels(found, ""):
        parts = {"test": "", "all": ""}
    else:
        parts = {split: f"{split}_" for split in SPLITS if _has_pixels(found, f"{split}_")}
    if not parts:
        raise ValueError(
            f"{path}: expected arrays 'images' and 'labels', or 'train_images', 'train_labels', 'test_images' and "
            f"'test_labels', found {found}"
        )
    readers = {split: partial(_read_part, path, prefix) for split, prefix in parts.items()}
    prefixes = sorted(set(parts.values()))
    unused = _unused(found, prefixes, ["labels"])
    return Source(name or path.stem, _classes(path, found, prefixes, classes), readers, unused)


def read_unlabeled(path: Path) -> Tensor:
    """Read the array ``images``, or else ``train_images``, as float32 [N, C, H, W] in [0, 1].

    A warning lists other arrays, except labels and class names.
    """
    found = _names(path)
    prefix = next((prefix for prefix in ("", "train_") if _has_pixels(found, prefix)), None)
    if prefix is None:
        raise ValueError(f"{path}: expected an array 'images' or 'train_images', found {found}")
    warn_unused(path, [name for name in _unused(found, [prefix], []) if not name.endswith("labels")])
    return to_images(_read_pixels(path, prefix), f"{path}: {prefix}images")


def _unused(found: list[str], prefixes: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Arrays that are neither pixels nor ``others`` of a split, nor class names."""
    used = {"class_names"}
    for prefix in prefixes:
        pixels = ["images"] if f"{prefix}images" in found else ["jpeg", "offsets"]
        used |= {f"{prefix}{kind}" for kind in (*pixels, *others)}
    return tuple(name for name in found if name not in used)


def _has_pixels(found: list[str], prefix: str) -> bool:
    return f"{prefix}images" in found or f"{prefix}jpeg" in found


def _read_part(path: Path, prefix: str) -> Part:
    labels = _read(path, f"{prefix}labels")
    return Part(_read_pixels(path, prefix), labels)


def _read_pixels(path: Path, prefix: str) -> Any:
    if f"{prefix}images" in _names(path):
        return _read(path, f"{prefix}images")
    blob, offsets = _read(path, f"{prefix}jpeg"), _read(path, f"{prefix}offsets")
    where = f"{path}: {prefix}"
    if blob.dtype != numpy.uint8 or blob.ndim != 1:
        raise ValueError(f"{where}jpeg must be uint8 [bytes], got {blob.dtype} {list(blob.shape)}")
    bounds = to_labels(offsets, f"{where}offsets").numpy()
    if len(bounds) < 2 or bounds[0] < 0 or bounds[-1] > len(blob) or bool((bounds[1:] <= bounds[:-1]).any()):
        raise ValueError(f"{where}offsets must be increasing integers in [0, {len(blob)}], at least two")
    return _decode_all(memoryview(blob), bounds.tolist(), path, f"{where}jpeg")


def _decode_all(blob: memoryview, bounds: list[int], path: Path, where: str) -> Any:
    """JPEG files of one size as uint8 [N, H, W, 3], or [N, H, W] if the first is gray."""
    from pursamere._extras import require

    pillow = require("PIL.Image", extra="cli")
    pixels = numpy.empty((0,), numpy.uint8)
    for row, (start, end) in enumerate(pairwise(bounds)):
        try:
            with as_current_file(path), pillow.open(io.BytesIO(blob[start:end]), formats=("JPEG",)) as image:
                decoded = numpy.asarray(image)
        except Exception as error:  # Pillow raises nearly every built-in error on a corrupt file
            raise ValueError(f"{where}: file {row} cannot be decoded ({error})") from error
        if row == 0:
            pixels = numpy.empty((len(bounds) - 1, *decoded.shape), numpy.uint8)
        elif decoded.shape != pixels.shape[1:]:
            expected = list(pixels[0].shape)
            raise ValueError(f"{where}: file {row} must be {expected} like the first, got {list(decoded.shape)}")
        pixels[row] = decoded
    return pixels


def _classes(path: Path, found: list[str], prefixes: Iterable[str], default: tuple[str, ...] | None) -> tuple[str, ...]:
    if "class_names" in found:
        names = _read(path, "class_names")
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(f"{path}: class_names must be text [classes], got {names.dtype} {list(names.shape)}")
        return tuple(names.tolist())
    if default is not None:
        return default
    # Over all splits, so that their classes agree.
    labels = [to_labels(_read(path, f"{prefix}labels"), f"{path}: {prefix}labels") for prefix in prefixes]
    largest = max((int(part.max()) for part in labels if len(part)), default=-1)
    if largest >= MAX_UNNAMED_CLASSES:
        expected = f"in [0, {MAX_UNNAMED_CLASSES - 1}] without an array class_names"
        raise ValueError(f"{path}: labels must be {expected}, got {largest}")
    return tuple(str(label) for label in range(largest + 1))


def _names(path: Path) -> list[str]:
    names: list[str] = _load(path, lambda archive: archive.files)
    return names


def _read(path: Path, name: str) -> Any:
    found = _names(path)
    if name not in found:
        raise ValueError(f"{path}: expected an array {name!r}, found {found}")
    return _load(path, lambda archive: archive[name])


def _load(path: Path, use: Callable[[Any], Any]) -> Any:
    if not path.is_file():  # opening a pipe would block
        raise ValueError(f"{path} is not a file")
    try:
        # allow_pickle=False: unpickling executes code.
        with numpy.load(path, allow_pickle=False) as archive:
            return use(archive)
    except Exception as error:  # a corrupt zip file raises nearly every built-in error, MemoryError for a huge shape
        raise ValueError(f"{path} cannot be read as .npz ({str(error) or type(error).__name__})") from error
