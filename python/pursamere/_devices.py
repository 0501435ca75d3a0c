"""The device of this process, and what devices can do."""

from __future__ import annotations

import os
import platform

import torch

__all__ = ["has_bfloat16", "own_device"]


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


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16; ``True`` where PyTorch can't tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    instructions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to PyTorch
    known = [getattr(torch.cpu, name) for name in instructions if hasattr(torch.cpu, name)]
    return not known or any(supported() for supported in known)
