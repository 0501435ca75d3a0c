"""The networks and the device that options name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pursamere import ConvClassifier, load_checkpoint, pretrained
from pursamere._devices import own_device
from pursamere._text import printable
from pursamere._validation import check_supported_device
from pursamere.cli.errors import CommandError
from pursamere.models import EDMUNet

__all__ = ["checkpoint_folder", "find_device", "load_network"]


def find_device(name: str) -> torch.device:
    """Return the device that ``--device`` names; see :func:`pursamere._devices.own_device` for "cuda".

    Raises:
        CommandError: it isn't cpu, cuda or cuda:N, or PyTorch finds no such device.
        ValueError: this build has no CUDA.
    """
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise CommandError(f"--device: expected cpu, cuda or cuda:N, got {printable(name)}")
    if kind == "cpu":
        return torch.device("cpu")
    check_supported_device("--device", torch.device("cuda"))
    if not torch.cuda.is_available():
        raise CommandError("--device: PyTorch finds no CUDA device")
    devices = torch.cuda.device_count()
    if number and int(number) >= devices:
        raise CommandError(f"--device: PyTorch finds {devices} CUDA devices, counted from 0, got {name}")
    return own_device(f"cuda:{int(number)}" if number else "cuda")


def checkpoint_folder(option: str, source: str) -> Path:
    """Return the folder that an option names: that of a network that ships, or a checkpoint."""
    return pretrained.folder(source) / option if source in pretrained.SHIPPED else Path(source)


def load_network(option: str, source: str, device: torch.device, *, names: Sequence[str] = pretrained.SHIPPED) -> Any:
    """Load the network that ``--denoiser`` or ``--classifier`` names: one that ships, or a checkpoint.

    The error for an unknown name lists ``names``, which the option takes.

    Raises:
        CommandError: there is no such network, or it isn't a denoiser or a classifier.
        ValueError: a file is damaged.
    """
    try:
        network = load_checkpoint(checkpoint_folder(option, source), device)
    except FileNotFoundError as error:
        raise CommandError(
            f"--{option}: expected {', '.join(names)} or the folder of a checkpoint: {printable(error)}"
        ) from error
    kind: type = {"denoiser": EDMUNet, "classifier": ConvClassifier}[option]
    if not isinstance(network, kind):
        raise CommandError(
            f"--{option}: {printable(source)} must hold a {kind.__name__}, and is a {type(network).__name__}"
        )
    return network
