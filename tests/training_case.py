"""Data and settings that train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch

from pursamere.models import EDMUNet
from pursamere.training import ClassifierConfiguration, DenoiserConfiguration
from pursamere.training.initial import seeded

COMMON = {"steps": 8, "batch_size": 8, "warmup_steps": 2, "validate_every": 4, "save_every": 3, "learning_rate": 0.01}


def write_data(folder: Path, *, validation: bool = True) -> Path:
    """Images [1, 8, 8] of two classes, one bright on the left and the other on the right, in an ``.npz`` file."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for split, count in {"train": 24, "validation": 10, "test": 8}.items():
        labels = torch.arange(count) % 2
        images = 0.2 + 0.1 * torch.rand(count, 1, 8, 8, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, :, 4 * label : 4 * label + 4] += 0.6
        if validation or split != "validation":
            arrays |= {f"{split}_images": images.numpy(), f"{split}_labels": labels.numpy()}
    path = folder / "sides.npz"
    numpy.savez(path, **arrays)
    return path


def settings_of(kind: str, data: Path, **changes: Any) -> DenoiserConfiguration | ClassifierConfiguration:
    if kind == "denoiser":
        return DenoiserConfiguration(**{**COMMON, "dataset": str(data), "channels": (8,), "groups": 4, **changes})
    return ClassifierConfiguration(**{**COMMON, "dataset": str(data), "widths": (8, 8), "groups": 4, **changes})


def tiny_denoiser(image_shape: tuple[int, ...] = (1, 8, 8), **changes: Any) -> EDMUNet:
    """Untrained, with weights that depend on nothing but this file."""
    with seeded(0):
        network = EDMUNet(image_shape, (8,), **{"groups": 4, **changes})
    return network.eval().requires_grad_(False)
