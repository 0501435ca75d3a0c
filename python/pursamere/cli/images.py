"""Image files that go in and out: finding them in a folder, reading one of a known size, writing one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pursamere._extras import require
from pursamere._files import atomic_writer
from pursamere._images import FORMATS, ImageError, decode, is_image_name, open_image
from pursamere.cli.errors import CommandError, printable
from pursamere.cli.progress import say

Size = tuple[int, int, int]  # channels, height, width


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
        raise ImageError(f"is {image.size[0]}x{image.size[1]}, expected {width}x{height}, the denoiser's size")


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
