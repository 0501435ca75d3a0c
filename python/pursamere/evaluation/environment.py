"""Versions and machine, on which the last bits of a result may depend."""

from __future__ import annotations

import platform
from typing import Any

import torch

from pursamere._environment import package_version, versions

__all__ = ["describe_environment"]

_PACKAGES = ("matplotlib", "pyautoattack", "safetensors", "scikit-learn")


def describe_environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, machine and number of CPU threads, as values for JSON."""
    return {
        "versions": {**versions(), **{name: package_version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
    }
