"""Peak memory, each figure from a process of its own: a process's peak never falls."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import torch


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Run a Python script, and return the JSON that it prints."""
    # Freed memory goes back to the system at once, so that the peak is what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])
