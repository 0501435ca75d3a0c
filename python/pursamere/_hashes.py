"""Fingerprints of tensors and text."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["sha256"]


def sha256(*parts: str | Tensor) -> str:
    """Return the SHA-256 of strings and of the dtypes, shapes and bits of tensors, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            values = part.detach().cpu().contiguous()
            digest.update(f"{values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{part}\n".encode())
    return digest.hexdigest()
