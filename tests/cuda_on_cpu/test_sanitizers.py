"""test_kernels.py once more, with the kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest
from build_kernels import compile_kernels, run_kernel_tests


@pytest.mark.slow
@pytest.mark.cuda_on_cpu
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_sanitizers_find_nothing_in_the_kernels():
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    runtime = Path(found.stdout.strip())
    if not runtime.is_absolute():
        pytest.skip("needs g++'s AddressSanitizer")
    library = compile_kernels(sanitize=True)
    # Loaded before Python, so that the memory of tensors has red zones too; the leaks are Python's own. The order of
    # the threads matters little here, and the slow shapes have no path of their own.
    run_kernel_tests(library, "-k", "forward and not slow", LD_PRELOAD=str(runtime), ASAN_OPTIONS="detect_leaks=0")
