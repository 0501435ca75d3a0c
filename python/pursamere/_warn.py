"""Warnings that point at the user's line, however deep in the library or in PyTorch they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

__all__ = ["warn_user"]

_INSIDE = tuple(f"{Path(module).parent}{os.sep}" for module in (__file__, torch.__file__))


def warn_user(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the nearest caller outside of this library and PyTorch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
