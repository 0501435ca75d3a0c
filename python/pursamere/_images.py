"""Decoding image files, which are not trusted: Pillow reads these formats only, and keeps its limit on pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

# Formats of still images that Pillow decodes itself. Not PostScript (it starts Ghostscript) and other rare ones.
FORMATS = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    ".webp": "WEBP",
    ".bmp": "BMP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".gif": "GIF",
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
}
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, TIFF, GIF or PPM"

_ORIENTATION = 0x0112  # the EXIF tag; from 5 to 8, width and height are exchanged
_PHOTOMETRIC = 262  # the TIFF tag of what pixel values mean

_current_file: ContextVar[Path | None] = ContextVar("current_file", default=None)


class ImageError(ValueError):
    """What is wrong with one file; the others can still be done."""


def is_image_name(path: Path) -> bool:
    """Whether the name ends like that of a file in one of ``FORMATS``."""
    return path.suffix.lower() in FORMATS


@contextmanager
def as_current_file(path: Path) -> Iterator[None]:
    """Make ``path`` the ``current_file`` in this thread."""
    token = _current_file.set(path)
    try:
        yield
    finally:
        _current_file.reset(token)


def current_file() -> Path | None:
    """The file that this thread is reading. Pillow's warnings don't name it, so code that shows them can add it."""
    return _current_file.get()


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A Pillow image whose pixels are not decoded yet."""
    from pursamere._extras import require

    module = require("PIL.Image", extra="cli")
    if not path.is_file():  # a pipe with such a name would block for ever
        raise ImageError("is not a regular file")
    with as_current_file(path), ExitStack() as stack:
        try:
            # A stream, no path: Pillow 13 would map a turned TIFF file to memory with width and height exchanged.
            stream = stack.enter_context(path.open("rb"))
            image = stack.enter_context(module.open(stream, formats=tuple(set(FORMATS.values()))))
        except Exception as error:  # Pillow raises nearly every built-in error on a corrupt file
            # Where Pillow cannot identify the file, its message has no more than the stream's representation.
            reason = "" if isinstance(error, module.UnidentifiedImageError) else f" ({_reason(error)})"
            raise ImageError(f"cannot be read as {FORMAT_NAMES}{reason}") from error
        yield image


def shown_size(image: Any) -> tuple[int, int]:
    """Width and height of a Pillow image once it is turned upright, without decoding it.

    A PNG file may have its EXIF data after the pixels; these are not looked for.
    """
    from pursamere._extras import require

    orientation = 1
    if image.format != "TIFF":  # its size is that of the turned image already
        with suppress(Exception):  # damaged EXIF data; Pillow raises nearly every built-in error
            # The general getexif, as that of PNG decodes the pixels.
            orientation = require("PIL.Image", extra="cli").Image.getexif(image).get(_ORIENTATION, 1)
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def is_gray(image: Any) -> bool:
    """Whether a Pillow image has no colors."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def decode(image: Any, channels: int) -> Tensor:
    """The pixels of a Pillow image, turned upright, as float32 [C, H, W] in [0, 1].

    The first picture of a camera's MPO file, whose others are previews or the same scene again.
    """
    from pursamere._extras import require

    try:
        _check_depth(image)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ImageError("is animated or has several pages")
        upright = require("PIL.ImageOps", extra="cli").exif_transpose(image)
        opaque = upright.convert("RGBA") if upright.has_transparency_data else upright
        transparent = opaque is not upright and opaque.getextrema()[3][0] < 255
        if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 instead of scaling
            gray = (numpy.asarray(upright).astype(numpy.float32) / 65535.0).clip(0.0, 1.0)
            pixels = numpy.repeat(gray[:, :, None], channels, axis=2)
        else:
            converted = numpy.asarray(opaque.convert("L" if channels == 1 else "RGB")).astype(numpy.float32) / 255.0
            pixels = converted.reshape(*converted.shape[:2], channels)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"cannot be decoded ({_reason(error)})") from error
    if transparent:
        # What is behind a transparent pixel is not in the file, so there is no image to purify.
        raise ImageError("has transparent pixels")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_depth(image: Any) -> None:
    """Refuse pixels that Pillow would round to 8 bits or whose range is unknown; what is stored is in the tiles."""
    for _, _, _, arguments, *_ in image.tile:
        stored = arguments if isinstance(arguments, tuple) else (arguments,)
        form = str(stored[0])
        if image.format == "PPM":  # whose largest value is in the file; Pillow scales gray to 16 bits
            known = image.mode == "I" or (image.mode != "F" and (len(stored) == 1 or stored[1] <= 255))
        elif image.mode.startswith(("I", "F")):
            if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:
                form += " with white as 0"  # which Pillow inverts for 8 bits only
            known = re.fullmatch("I;16[BLNR]?", form) is not None
        else:
            known = re.search(";16[BLN]", form) is None
        if not known:
            raise ImageError(f"has pixels of the form {form}, expected 8 bits a channel, or 16 in gray")


def common_channels(paths: Sequence[Path]) -> int:
    """3 if any file is in color, else 1: a gray image has an exact color form, and not the other way round."""
    channels = 1
    for path in paths:
        with _errors_as_image_errors(path), open_image(path) as image:
            channels = channels if is_gray(image) else 3
    return channels


def read_images(paths: Sequence[Path], channels: int) -> Tensor:
    """Files of one size as float32 [N, C, H, W] in [0, 1]; the first that is not is named in an ``ImageError``."""
    images = numpy.empty((0,), numpy.float32)
    for row, path in enumerate(paths):
        with _errors_as_image_errors(path):
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
def _errors_as_image_errors(path: Path) -> Iterator[None]:
    """Make every error of the file an ``ImageError`` that names ``path``."""
    try:
        yield
    except (ImageError, OSError) as error:
        raise ImageError(f"{path} {error}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
