"""The nvcc of the tests: of CUDACXX, of ``make nvcc``, or of the PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def find_nvcc() -> str | None:
    """Return the path of nvcc, if there is one."""
    installed = sorted(map(str, (ROOT / "build" / "nvcc").glob("lib/python3*/site-packages/nvidia/cu*/bin/nvcc")))
    return next(filter(None, map(shutil.which, [os.environ.get("CUDACXX", ""), *installed, "nvcc"])), None)


NVCC = find_nvcc()


def require_nvcc() -> str:
    """Return the path of nvcc. Without one the test is skipped, unless PURSAMERE_REQUIRE_NVCC=1: then it fails."""
    if NVCC is None:
        (pytest.fail if os.environ.get("PURSAMERE_REQUIRE_NVCC") == "1" else pytest.skip)("needs nvcc (make nvcc)")
    return NVCC
