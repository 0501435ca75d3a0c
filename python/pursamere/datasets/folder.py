"""Folders of image files, one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy

from pursamere._images import FORMAT_NAMES, common_channels, is_image_name, read_images

from .source import Part, Source

SPLITS = ("train", "validation", "test")

Files = list[tuple[Path, str]]  # each with its class


def open_folder(folder: Path) -> Source:
    """Open class folders in ``folder``, or in its subfolders ``train``, ``validation`` and ``test``.

    Labels are indices into the sorted class names of all splits. Hidden folders are ignored. If any file is in color,
    all images have 3 channels.
    """
    subfolders = _subfolders(folder)
    splits = [path.name for path in subfolders if path.name in SPLITS]
    others = [path.name for path in subfolders if path.name not in SPLITS]
    if splits and others:
        raise ValueError(
            f"{folder}: expected one folder per class, or only {', '.join(SPLITS)} with those inside, "
            f"found {', '.join(splits)} beside {', '.join(others)}"
        )
    files = {split: _files(folder / split) for split in splits} or {"test": _files(folder)}
    classes = tuple(sorted({name for part in files.values() for _, name in part}))
    channels = common_channels([path for path, _ in chain.from_iterable(files.values())])
    parts = {split: partial(_read, part, classes, channels) for split, part in files.items()}
    if not splits:
        parts["all"] = parts["test"]
    return Source(folder.resolve().name, classes, parts, _unused(folder, splits, files.values()))


def _unused(folder: Path, splits: Sequence[str], files: Iterable[Files]) -> tuple[str, ...]:
    """Files, except hidden ones, that are not images of a class."""
    used = {path for path, _ in chain.from_iterable(files)}
    roots = [folder / split for split in splits]
    places = [folder, *roots, *(label for root in roots or [folder] for label in _subfolders(root))]
    found = [path for place in places for path in sorted(place.iterdir()) if not path.is_dir() and path not in used]
    return tuple(str(path.relative_to(folder)) for path in found if not path.name.startswith("."))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> Files:
    """The images of every class folder. Misplaced images are an error rather than ignored."""
    stray = next((path for path in sorted(folder.iterdir()) if is_image_name(path) and not path.is_dir()), None)
    if stray is not None:
        raise ValueError(f"{stray}: expected all images inside class folders")
    files: Files = []
    for label in _subfolders(folder):
        nested = _subfolders(label)
        if nested:
            raise ValueError(f"{label}: expected the images of one class, found the folder {nested[0].name}")
        images = sorted(path for path in label.iterdir() if is_image_name(path))
        if not images:
            raise ValueError(f"{label}: expected image files ({FORMAT_NAMES}), found none")
        files += [(path, label.name) for path in images]
    if not files:
        raise ValueError(f"{folder}: expected one folder of image files per class, found no folder")
    return files


def _read(files: Files, classes: tuple[str, ...], channels: int) -> Part:
    numbers = {name: number for number, name in enumerate(classes)}
    images = read_images([path for path, _ in files], channels)
    return Part(images.numpy(), numpy.array([numbers[name] for _, name in files]))
