"""Trained networks that come with the library, so that something works at once: a folder for each data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pursamere._validation import check_choice
from pursamere.datasets import Dataset, load
from pursamere.models.checkpoints import load_checkpoint

NAMES = ("mnist",)
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Pretrained:
    """A denoiser and a classifier for one kind of images, and some images to try them on.

    Attributes:
        denoiser: in evaluation mode with frozen parameters, see :class:`pursamere.models.EDMUNet`.
        classifier: images [N, C, H, W] in [0, 1] to logits, in evaluation mode with frozen parameters.
        test: the first 512 images of the test set, which neither has been trained on, on the CPU.
    """

    denoiser: nn.Module
    classifier: nn.Module
    test: Dataset


def folder(name: str) -> Path:
    """Where the checkpoints ``denoiser`` and ``classifier`` of that name are."""
    return _FOLDER / check_choice("name", name, NAMES)


def load_pretrained(name: str, device: torch.device | str = "cpu") -> Pretrained:
    """Load the networks for "mnist", [1, 28, 28]. Nothing is downloaded, and nothing in the files is executed.

    Args:
        name: "mnist".
        device: where the networks go.

    Raises:
        MissingExtraError: diffusers or safetensors is not installed (the extra ``train``).
        ValueError: ``name`` is unknown, ``device`` is not one that this build can use, or a file is damaged.
    """
    test = load(folder(name) / "images.npz")
    return Pretrained(
        load_checkpoint(folder(name) / "denoiser", device),
        load_checkpoint(folder(name) / "classifier", device),
        replace(test, name=name),
    )
