"""The device of this process."""

from __future__ import annotations

import os

import torch

__all__ = ["own_device"]


def own_device(device: torch.device | str) -> torch.device:
    """Return ``device``, resolving "cuda" without an index to this process's GPU under ``torchrun``.

    Raises:
        ValueError: the device is neither a CPU nor a CUDA device.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count()))
    return device
