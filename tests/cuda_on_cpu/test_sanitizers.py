"""test_kernels.py once more, with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_kernels import compile_kernels

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.cuda_on_cpu
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_sanitizers_find_nothing_in_the_kernels():
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("needs g++'s AddressSanitizer")
    library = compile_kernels(sanitize=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(runtime),  # before Python, so that the memory of tensors has red zones too
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PURSAMERE_KERNELS": str(library),
    }
    # The order of the threads matters little here, and the slow shapes have no path of their own.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "forward and not slow", HERE / "test_kernels.py"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-10_000:]
    assert " passed" in result.stdout
