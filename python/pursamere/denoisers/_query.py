"""Argument checks of closed-form denoisers."""

from __future__ import annotations

import torch
from torch import Tensor

from pursamere._validation import check_tensor


def check_query(y: Tensor, name: str, shape: torch.Size, device: torch.device) -> None:
    """Raise unless ``y`` is a floating-point tensor [N, *shape] on ``device``, those of the denoiser's ``name``."""
    check_tensor("y", y, rank=4)
    if y.shape[1:] != shape:
        raise ValueError(f"y must have images of the shape of {name}, {tuple(shape)}, got {tuple(y.shape[1:])}")
    if y.device != device:
        raise ValueError(
            f"y must be on the device of {name}, {device}, got {y.device}; "
            f"move the denoiser with denoiser.to({str(y.device)!r})"
        )
