"""Decoding untrusted image files: a fixed list of formats, with Pillow's limit on the number of pixels."""

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

# Formats that Pillow decodes itself; not PostScript, which would run Ghostscript.
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

_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap width and height
_PHOTOMETRIC = 262  # TIFF tag

_current_file: ContextVar[Path | None] = ContextVar("current_file", default=None)


class ImageError(ValueError):
    """One image file is invalid; others may still be processed."""


def is_image_name(path: Path) -> bool:
    """Whether the suffix is that of one of ``FORMATS``."""
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
    """The file that this thread is reading. Pillow's warnings don't name it, so code that shows them adds it."""
    return _current_file.get()


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open a Pillow image without decoding its pixels."""
    from pursamere._extras import require

    module = require("PIL.Image", extra="cli")
    if not path.is_file():  # opening a pipe would block
        raise ImageError("is not a regular file")
    with as_current_file(path), ExitStack() as stack:
        try:
            # A stream, not a path: Pillow 13 memory-maps rotated TIFF files with width and height swapped.
            stream = stack.enter_context(path.open("rb"))
            image = stack.enter_context(module.open(stream, formats=tuple(set(FORMATS.values()))))
        except Exception as error:  # Pillow raises nearly every built-in error on a corrupt file
            # The message of UnidentifiedImageError is just the repr of the stream.
            reason = "" if isinstance(error, module.UnidentifiedImageError) else f" ({_reason(error)})"
            raise ImageError(f"cannot be read as {FORMAT_NAMES}{reason}") from error
        yield image


def shown_size(image: Any) -> tuple[int, int]:
    """Width and height of a Pillow image after EXIF rotation, without decoding it.

    EXIF data after the pixels of a PNG file is ignored.
    """
    from pursamere._extras import require

    orientation = 1
    if image.format != "TIFF":  # Pillow reports the rotated size
        with suppress(Exception):  # damaged EXIF data; Pillow raises nearly every built-in error
            # The base class's getexif, since PNG's decodes the pixels.
            orientation = require("PIL.Image", extra="cli").Image.getexif(image).get(_ORIENTATION, 1)
    width, height = image.size
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def is_gray(image: Any) -> bool:
    """Whether a Pillow image is grayscale."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def decode(image: Any, channels: int) -> Tensor:
    """Decode a Pillow image, with EXIF rotation applied, to float32 [C, H, W] in [0, 1].

    Of MPO files from cameras, decodes the first picture; the others are previews or near duplicates.
    """
    from pursamere._extras import require

    try:
        _check_depth(image)
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ImageError("is animated or has several pages")
        upright = require("PIL.ImageOps", extra="cli").exif_transpose(image)
        opaque = upright.convert("RGBA") if upright.has_transparency_data else upright
        transparent = opaque is not upright and opaque.getextrema()[3][0] < 255
        if upright.mode.startswith("I"):  # 16-bit gray, which Pillow would clip to 255 instead of scaling
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
        # The file doesn't define what is behind transparent pixels.
        raise ImageError("has transparent pixels")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_depth(image: Any) -> None:
    """Raise for pixels that Pillow would round to 8 bits or whose range is unknown, judging by the raw tile modes."""
    for _, _, _, arguments, *_ in image.tile:
        stored = arguments if isinstance(arguments, tuple) else (arguments,)
        form = str(stored[0])
        if image.format == "PPM":  # the file gives the largest value; Pillow scales gray to 16 bits
            known = image.mode == "I" or (image.mode != "F" and (len(stored) == 1 or stored[1] <= 255))
        elif image.mode.startswith(("I", "F")):
            if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:
                form += " with white as 0"  # Pillow inverts 8-bit images only
            known = re.fullmatch("I;16[BLNR]?", form) is not None
        else:
            known = re.search(";16[BLN]", form) is None
        if not known:
            raise ImageError(f"has pixels of the form {form}, expected 8 bits per channel, or 16-bit gray")


def common_channels(paths: Sequence[Path]) -> int:
    """Return 3 if any file is in color, else 1: converting gray to color is lossless."""
    channels = 1
    for path in paths:
        with _errors_as_image_errors(path), open_image(path) as image:
            channels = channels if is_gray(image) else 3
    return channels


def read_images(paths: Sequence[Path], channels: int) -> Tensor:
    """Read files of equal size as float32 [N, C, H, W] in [0, 1].

    Raises:
        ImageError: a file cannot be read or differs in size; the message names it.
    """
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
                raise ImageError(f"is {got}, expected {width}x{height} like the first")
            images[row] = pixels.numpy()
    return torch.from_numpy(images)


@contextmanager
def _errors_as_image_errors(path: Path) -> Iterator[None]:
    """Turn errors about a file into an ``ImageError`` that names ``path``."""
    try:
        yield
    except (ImageError, OSError) as error:
        raise ImageError(f"{path} {error}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
