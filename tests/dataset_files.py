"""Data set files as their makers write them, from struct, numpy and Pillow."""

import gzip
import os
import struct

import numpy as np
import torch
from PIL import Image


def random_bytes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labels_of(count: int) -> np.ndarray:
    return (np.arange(count) * 7 % 10).astype(np.uint8)


def assert_images(dataset, pixels: np.ndarray) -> None:
    """``pixels``: bytes [N, C, H, W]. The nearest float32 of the exact quotient."""
    expected = torch.from_numpy((pixels.astype(np.float64) / 255).astype(np.float32))
    assert dataset.images.dtype == torch.float32
    assert dataset.images.is_contiguous()
    assert torch.equal(dataset.images, expected)


def save(name: str, array: np.ndarray, **options) -> None:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Image.fromarray(array).save(name, **options)


def write_idx(name: str, array: np.ndarray, *, magic: int | None = None) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim if magic is None else magic, *array.shape)
    opener = gzip.open if name.endswith(".gz") else open
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with opener(name, "wb") as stream:
        stream.write(header + array.tobytes())


def save_pictures():
    """A folder ``pictures`` with two classes of PNG files; the pixels in the order of the classes and names."""
    pixels = {
        f"{label}/{number}.png": random_bytes(seed, 6, 5)
        for seed, (label, number) in enumerate([("b", 0), ("a", 1), ("a", 2)])
    }
    for name, image in pixels.items():
        save(f"pictures/{name}", image)
    return [pixels["a/1.png"], pixels["a/2.png"], pixels["b/0.png"]]
