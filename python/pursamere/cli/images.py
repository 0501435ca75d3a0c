"""Reading and writing image files, and finding them in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from pursamere._files import atomic_writer
from pursamere.cli.errors import CommandError, printable
from pursamere.cli.extras import require
from pursamere.cli.progress import say

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

Size = tuple[int, int, int]  # channels, height, width


class ImageError(Exception):
    """What is wrong with one file; the others can still be done."""


def is_image_name(path: Path) -> bool:
    """Whether the name ends like a PNG or JPEG file's."""
    return path.suffix.lower() in FORMATS


def find_images(folder: Path, *, skip: Path | None = None) -> Iterator[Path]:
    """The PNG and JPEG files below ``folder``, relative to it and in the order of their names.

    Symbolic links to folders are not followed (they may lead in a circle) but told on stderr; neither is the folder
    ``skip`` entered.
    """
    skipped = None if skip is None else os.path.realpath(skip)

    def failed(error: OSError) -> None:
        raise CommandError(f"cannot list {printable(error.filename)}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=failed):
        entered = []
        for name in sorted(folders):
            path = Path(parent, name)
            if path.is_symlink():
                say(f"skipped (a symbolic link to a folder): {printable(path)}")
            elif os.path.realpath(path) != skipped:
                entered.append(name)
        folders[:] = entered  # os.walk goes on with what is left in the list
        for name in sorted(names):
            path = Path(parent, name)
            if is_image_name(path):
                yield path.relative_to(folder)


def read_image(path: Path, size: Size) -> Tensor:
    """The image as float32 [C, H, W] in [0, 1], of exactly ``size``, in gray (C = 1) or colour (C = 3).

    A wrong size is found before the pixels are decoded, so a huge file costs no memory.
    """
    channels, height, width = size
    with open_image(path) as image:
        # Either way round, as the file may say that it is to be turned; that is known only after decoding.
        if sorted(image.size) == sorted((height, width)):
            pixels = decode(image, channels)
            if tuple(pixels.shape) == size:
                return pixels
        raise ImageError(f"is {image.size[0]}x{image.size[1]}, expected {width}x{height} as in the reference")


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A Pillow image whose pixels are not decoded yet."""
    module = require("PIL.Image", extra="cli")
    if not path.is_file():  # a pipe with such a name would block for ever
        raise ImageError("is not a regular file")
    try:
        image = module.open(path, formats=("PNG", "JPEG"))
    except Exception as error:  # Pillow raises nearly every built-in error on a corrupt file
        raise ImageError(f"cannot be read as PNG or JPEG ({_reason(error)})") from error
    with image:
        yield image


def is_gray(image: Any) -> bool:
    """Whether a Pillow image has no colours."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def decode(image: Any, channels: int) -> Tensor:
    """The pixels of a Pillow image, turned upright, as float32 [C, H, W] in [0, 1]."""
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError("is animated")
    try:
        upright = require("PIL.ImageOps", extra="cli").exif_transpose(image)
        transparent = upright.has_transparency_data and upright.convert("RGBA").getextrema()[3][0] < 255
        if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 instead of scaling
            gray = (numpy.asarray(upright).astype(numpy.float32) / 65535.0).clip(0.0, 1.0)
            pixels = numpy.repeat(gray[:, :, None], channels, axis=2)
        else:
            converted = numpy.asarray(upright.convert("L" if channels == 1 else "RGB")).astype(numpy.float32) / 255.0
            pixels = converted.reshape(*converted.shape[:2], channels)
    except Exception as error:
        raise ImageError(f"cannot be decoded ({_reason(error)})") from error
    if transparent:
        # What is behind a transparent pixel is not in the file, so there is no image to purify.
        raise ImageError("has transparent pixels")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def write_image(path: Path, image: Tensor, *, overwrite: bool) -> None:
    """Write float [C, H, W] in [0, 1], rounded to 8 bits, in the format that the name asks for.

    JPEG is lossy whatever its settings; the best ones are used, so that it takes away little of the purification.
    """
    pixels = image.mul(255.0).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    picture = require("PIL.Image", extra="cli").fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    kind = FORMATS[path.suffix.lower()]
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    with atomic_writer(path, overwrite=overwrite) as stream:
        picture.save(stream, format=kind, **options)


def _reason(error: Exception) -> str:
    return printable(str(error) or type(error).__name__)
