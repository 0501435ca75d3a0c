"""Decoding PNG and JPEG files, which are not trusted: Pillow reads no other format, and keeps its limit on pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class ImageError(ValueError):
    """What is wrong with one file; the others can still be done."""


def is_image_name(path: Path) -> bool:
    """Whether the name ends like a PNG or JPEG file's."""
    return path.suffix.lower() in FORMATS


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A Pillow image whose pixels are not decoded yet."""
    from pursamere._extras import require

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
    from pursamere._extras import require

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


def common_channels(paths: Sequence[Path]) -> int:
    """3 if any file is in colour, else 1: a gray image has an exact colour form, and not the other way round."""
    channels = 1
    for path in paths:
        with _naming(path), open_image(path) as image:
            channels = channels if is_gray(image) else 3
    return channels


def read_images(paths: Sequence[Path], channels: int) -> Tensor:
    """Files of one size as float32 [N, C, H, W] in [0, 1]; the first that is not is named in an ``ImageError``."""
    images = numpy.empty((0,), numpy.float32)
    for row, path in enumerate(paths):
        with _naming(path):
            with open_image(path) as image:
                pixels = decode(image, channels)
            if row == 0:
                images = numpy.empty((len(paths), *pixels.shape), numpy.float32)
            elif pixels.shape != images.shape[1:]:
                _, height, width = images[0].shape
                got = f"{pixels.shape[2]}x{pixels.shape[1]}"
                raise ImageError(f"is {got}, expected {width}x{height} as the first one")
            images[row] = pixels.numpy()
    return torch.from_numpy(images)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (ImageError, OSError) as error:
        raise ImageError(f"{path} {error}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
