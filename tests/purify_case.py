"""Inputs, a reference and what the library makes of them, for the tests of ``pursamere purify``."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import pursamere as ps

FAST = ["--reference", "reference.npz", "--steps", "2", "--draws", "2"]


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True, name="folder")
def purify_folder(tmp_path, monkeypatch):
    """Work in a folder with a reference of 6x5 gray images (height x width) and three such inputs."""
    monkeypatch.chdir(tmp_path)
    np.savez("reference.npz", images=pixels(0, 40, 6, 5))
    for number, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        save(f"in/{name}", pixels(number + 1, 6, 5))
    return tmp_path


def save(name: str, array: np.ndarray, **options) -> None:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Image.fromarray(array).save(name, **options)


def load(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.array(image)


def written(root: str = "out") -> list[str]:
    return sorted(os.path.relpath(os.path.join(p, n), root) for p, _, names in os.walk(root) for n in names)


def tensor(array: np.ndarray) -> torch.Tensor:
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def kernel_density(reference: np.ndarray) -> ps.denoisers.KernelDensity:
    return ps.denoisers.KernelDensity(torch.stack([tensor(image) for image in reference]), 0.25)


def purified(array: np.ndarray, reference, **options) -> np.ndarray:
    """What the library makes of 8-bit images [H, W] or [H, W, C]; ``reference`` may be a denoiser."""
    denoiser = kernel_density(reference) if isinstance(reference, np.ndarray) else reference
    noise = ps.GaussianNoise(seed=0, draws=2)
    settings = {"sigma": 0.2, "radius": 0.2, "steps": 2, "noise": noise, **options}
    result = ps.Purifier(denoiser, **settings)(tensor(array).unsqueeze(0))[0]
    return result.mul(255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
