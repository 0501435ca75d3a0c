"""The reference images of ``pursamere purify``: samples of the distribution that the inputs are moved towards."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from pursamere.cli.errors import CommandError, printable
from pursamere.cli.images import ImageError, decode, find_images, is_gray, open_image

DATA_VARIABLE = "PURSAMERE_DATA"
_ARRAYS = ("images", "train_images")


def load_reference(name: str) -> Tensor:
    """Reference images, float32 [N, C, H, W] in [0, 1].

    ``name`` is ``digits``, ``mnist``, a folder of PNG and JPEG files or an ``.npz`` file; a folder that is called like
    one of the two words is ``./digits``.
    """
    if name == "digits":
        from pursamere.demo.data import load_digit_arrays

        return load_digit_arrays()[0]
    if name == "mnist":
        return _load_mnist()
    path = Path(name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() and path.suffix.lower() == ".npz":
        return _load_npz(path)
    raise CommandError(
        f"--reference: expected 'digits', 'mnist', a folder of images or an .npz file, got {printable(name)!r}"
    )


def _load_mnist() -> Tensor:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise CommandError(f"--reference mnist: set {DATA_VARIABLE} to the folder that holds mnist.npz")
    path = Path(folder, "mnist.npz")
    if not path.is_file():
        raise CommandError(f"--reference mnist: {printable(path)} does not exist ({DATA_VARIABLE} names its folder)")
    return _load_npz(path)


def _load_npz(path: Path) -> Tensor:
    where = f"--reference {printable(path)}"
    try:
        # allow_pickle=False: unpickling a file runs whatever code is in it.
        with numpy.load(path, allow_pickle=False) as archive:
            name = next((name for name in _ARRAYS if name in archive.files), None)
            if name is None:
                raise CommandError(f"{where}: expected an array 'images' or 'train_images', found {archive.files}")
            array = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{where}: cannot be read ({printable(error)})") from error
    return _from_array(where, name, array)


def _from_array(where: str, name: str, array: Any) -> Tensor:
    expected = "uint8 [N, H, W] or [N, H, W, C], or float [N, C, H, W]"
    got = f"{array.dtype} {list(array.shape)}"
    if array.dtype == numpy.uint8 and array.ndim in (3, 4):
        channels_last = array if array.ndim == 4 else array[..., None]
        images = torch.from_numpy(numpy.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))).to(torch.float32) / 255
    elif numpy.issubdtype(array.dtype, numpy.floating) and array.ndim == 4:
        images = torch.from_numpy(array.astype(numpy.float32))
    else:
        raise CommandError(f"{where}: {name} must be {expected}, got {got}")
    if images.numel() == 0 or images.shape[1] not in (1, 3):
        raise CommandError(f"{where}: {name} must hold images of 1 or 3 channels as {expected}, got {got}")
    if not bool(((images >= 0) & (images <= 1)).all()):  # NaN fails both
        raise CommandError(f"{where}: {name} must have values in [0, 1]")
    return images


def _load_folder(folder: Path) -> Tensor:
    where = f"--reference {printable(folder)}"
    paths = [folder / name for name in find_images(folder)]
    if not paths:
        raise CommandError(f"{where}: no PNG or JPEG files")
    images: list[Tensor] = []
    try:
        # Colour if any file is: a gray image has an exact colour form, and not the other way round.
        channels = 1
        for path in paths:
            with open_image(path) as image:
                channels = channels if is_gray(image) else 3
        for path in paths:
            with open_image(path) as image:
                images.append(decode(image, channels))
            if images[-1].shape != images[0].shape:
                sizes = [f"{item.shape[2]}x{item.shape[1]}" for item in (images[0], images[-1])]
                raise ImageError(f"is {sizes[1]}, expected {sizes[0]} as the first one")
    except (ImageError, OSError) as error:
        raise CommandError(f"{where}: {printable(path)} {printable(error)}") from error
    return torch.stack(images)
