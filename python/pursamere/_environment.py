"""Versions that a result may depend on."""

from __future__ import annotations

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    import numpy
    import torch

    return {
        "pursamere": package_version("pursamere"),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def package_version(distribution: str) -> str:
    """Return the version of an installed distribution, or ``"not installed"``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
