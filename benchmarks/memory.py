"""Peak memory, each figure from a process of its own, without what others left in the allocator."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def grown_mib(call: Callable[[], object], device: torch.device) -> float:
    """Return in MiB by how much the most memory in use during a call exceeds what is in use before it.

    On a CPU, this is the process's resident memory, which only Linux tells.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
    before = _peak_bytes(device)
    call()
    return (_peak_bytes(device) - before) / 2**20


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Run a Python script, and return the JSON that it prints."""
    # Freed memory goes back to the system at once, so that the peak is what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])
