"""Image files: finding them in a folder, reading one of a known size, writing one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pursamere._extras import require
from pursamere._files import atomic_writer
from pursamere._images import FORMATS, ImageError, decode, is_image_name, open_image, shown_size
from pursamere._text import listed, printable
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import say

__all__ = ["Size", "check_apart", "check_format", "find_images", "read_image", "write_image"]

Size = tuple[int, int, int]  # channels, height, width

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


class WrongSizeError(ImageError):
    """An image doesn't have the denoiser's size."""


def find_images(folder: Path, *, skip: Path | None = None) -> Iterator[Path]:
    """Yield the image files below ``folder``, relative to it and sorted by name.

    Symbolic links to folders, which may form a cycle, are not followed but reported on stderr, as are files without the
    name of an image. ``skip``, a file or a folder inside this one, is left out silently.
    """
    skipped = None if skip is None else Path(os.path.realpath(skip))
    if skipped and _is_inside(folder, skipped):
        skipped = None  # or everything would be; see check_apart
    unused = []

    def failed(error: OSError) -> None:
        raise CommandError(f"cannot list {printable(error.filename)}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=failed):
        entered = []
        for name in sorted(folders):
            path = Path(parent, name)
            if path.is_symlink():
                say(f"skipped (a symbolic link to a folder): {printable(path)}")
            elif not skipped or not _is_inside(path, skipped):
                entered.append(name)
        folders[:] = entered  # os.walk enters what is left in the list
        for name in sorted(names):
            path = Path(parent, name)
            # realpath is slow, and needed only for links and for the file itself.
            if skipped and (name == skipped.name or path.is_symlink()) and _is_inside(path, skipped):
                continue
            if is_image_name(path):
                yield path.relative_to(folder)
            elif not name.startswith("."):
                unused.append(str(path.relative_to(folder)))
    if unused:
        say(f"not used in {printable(folder)}, since their names are not those of images: {printable(listed(unused))}")


def check_apart(targets: Iterable[Path], output: Path, folder: Path, what: str) -> None:
    """Raise if an output would be written into a folder that is read, and ``find_images`` can't skip it.

    That is so where the folder is OUTPUT or inside it.
    """
    if not _is_inside(folder, Path(os.path.realpath(output))):
        return
    read = Path(os.path.realpath(folder))
    for target in targets:
        if _is_inside(target.parent, read):
            raise CommandError(f"OUTPUT would be written into {what} ({printable(target)}): choose another one")


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` (resolved) or leads into it."""
    return Path(os.path.realpath(path)).is_relative_to(folder)


def read_image(path: Path, size: Size) -> Tensor:
    """Return the image as float32 [C, H, W] in [0, 1], of exactly ``size``, in gray (C = 1) or color (C = 3).

    A wrong size is found before the pixels are decoded, so a huge file takes no memory.
    """
    channels, height, width = size
    with open_image(path) as image:
        # Or transposed: only decoding tells whether the file asks for a rotation.
        if sorted(image.size) == sorted((height, width)):
            pixels = decode(image, channels)
            if tuple(pixels.shape) == size:
                return pixels
            shown = pixels.shape[2], pixels.shape[1]
        else:
            shown = shown_size(image)
        raise WrongSizeError(f"is {shown[0]}x{shown[1]}, expected {width}x{height}, the denoiser's size")


def check_format(path: Path, channels: int) -> None:
    """Raise if the format of that name can't hold the output: a GIF has 256 colors."""
    if channels == 3 and FORMATS[path.suffix.lower()] == "GIF":
        raise ImageError("not done: a GIF file cannot hold the colors of the output, PNG can")


def write_image(path: Path, image: Tensor, *, overwrite: bool) -> None:
    """Write float [C, H, W] in [0, 1], rounded to 8 bits, in the format of the name. JPEG is lossy at any quality."""
    pixels = image.mul(255.0).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = require("PIL.Image", extra="cli").fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    kind = FORMATS[path.suffix.lower()]
    options = _SAVE_OPTIONS.get(kind, {})
    with atomic_writer(path, overwrite=overwrite) as stream:
        picture.save(stream, format=kind, **options)
