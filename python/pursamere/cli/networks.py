"""The networks that options name, and the device that they go to."""

from __future__ import annotations

import os
from typing import Any

import torch

from pursamere._text import printable
from pursamere._validation import check_supported_device
from pursamere.cli.errors import CommandError


def find_device(name: str) -> torch.device:
    """The device that ``--device`` names; under torchrun each process of a machine has a GPU of its own."""
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number.isdecimal() or name == kind):
        raise CommandError(f"--device: expected cpu, cuda or cuda:N, got {printable(name)}")
    if kind == "cpu":
        return torch.device("cpu")
    check_supported_device("--device", torch.device("cuda"))
    devices = torch.cuda.device_count()
    if not torch.cuda.is_available():
        raise CommandError("--device: PyTorch finds no CUDA device")
    if number and int(number) >= devices:
        raise CommandError(f"--device: PyTorch finds {devices} CUDA devices, counted from 0, got {name}")
    return torch.device("cuda", int(number or os.environ.get("LOCAL_RANK", "0")) % devices)


def load_network(option: str, source: str, device: torch.device) -> Any:
    """The network that ``--denoiser`` or ``--classifier`` names: one that ships, or that of a checkpoint."""
    from pursamere import ConvClassifier, load_checkpoint, pretrained
    from pursamere.models import EDMUNet

    folder = pretrained.folder(source) / option if source in pretrained.SHIPPED else source
    try:
        network = load_checkpoint(folder, device)
    except FileNotFoundError as error:
        names = " or ".join(pretrained.SHIPPED)
        raise CommandError(f"--{option}: expected {names} or the folder of a checkpoint: {printable(error)}") from error
    kind: type = {"denoiser": EDMUNet, "classifier": ConvClassifier}[option]
    if not isinstance(network, kind):
        raise CommandError(
            f"--{option}: {printable(source)} must hold a {kind.__name__}, and is a {type(network).__name__}"
        )
    return network
