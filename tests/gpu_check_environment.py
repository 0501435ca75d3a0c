"""Writes what a GPU check ran on to a JSON file; exit code 1 if the check cannot run here.

python tests/gpu_check_environment.py FILE
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "cmake",
    "hypothesis",
    "ninja",
    "numpy",
    "pillow",
    "pybind11",
    "pytest",
    "scikit-build-core",
    "scikit-learn",
)
PACKAGES += ("scipy", "tqdm", "triton")


def last_line(*command: str) -> str:
    """The last line that a program prints, or what is wrong with it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return "".join((done.stdout.strip() or done.stderr.strip()).splitlines()[-1:])


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def torch_and_device() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"problem": f"torch cannot be imported: {error}"}
    found: dict[str, Any] = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    if torch.version.cuda is None:
        return found | {"problem": f"no CUDA device: torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return found | {"problem": f"no CUDA device: torch {torch.__version__} finds none"}
    try:
        torch.zeros(1, device="cuda").item()
    except RuntimeError as error:
        return found | {"problem": f"the CUDA device does not work: {error}"}
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def main() -> int:
    machine = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "nvidia_smi": last_line("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "nvcc": last_line("nvcc", "--version"),
        "compute_sanitizer": last_line("compute-sanitizer", "--version"),
        "packages": {name: version(name) for name in PACKAGES},
        **torch_and_device(),
    }
    text = json.dumps(machine, indent=1)
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if "problem" in machine else 0


if __name__ == "__main__":
    sys.exit(main())
