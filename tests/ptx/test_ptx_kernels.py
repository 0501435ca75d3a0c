"""What nvcc makes of the kernels, executed: tests/cuda_on_cpu/test_kernels.py with its PTX and its host code."""

from pathlib import Path

import pytest
from build_kernels import run_kernel_tests
from build_ptx import ARCHITECTURES, compile_ptx

EVERY_KERNEL_RAN = Path(__file__).parent / "every_kernel_ran.py"


@pytest.mark.slow
@pytest.mark.cuda_on_cpu
@pytest.mark.parametrize("order", ["not reverse", "reverse"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_nvcc_compiles_gives_the_bits_of_the_cpu(architecture, order):
    run_kernel_tests(compile_ptx(architecture), "-k", f"({order}) or every_kernel_ran", EVERY_KERNEL_RAN)
