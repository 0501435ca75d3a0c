"""The CUDA part of the build: the choice, and what the compiler reports of the kernels."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_ptx import compile_with_nvcc

ROOT = Path(__file__).parent.parent
KERNELS = {path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
CMAKE = Path(sys.executable).parent / "cmake"
WITHOUT_NVCC = "-DCMAKE_CUDA_COMPILER=NOTFOUND"


@pytest.mark.skipif(not CMAKE.exists(), reason="needs the package cmake")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("options", "message", "works"),
    [
        (["-DPURSAMERE_CUDA=OFF"], "CUDA kernels: no (PURSAMERE_CUDA=OFF)", True),
        (
            [WITHOUT_NVCC],
            "CUDA kernels: no, no nvcc of CUDA 11.1 or newer was found that works (PURSAMERE_CUDA=AUTO)",
            True,
        ),
        (
            ["-DPURSAMERE_CUDA=ON", WITHOUT_NVCC],
            "PURSAMERE_CUDA=ON needs an nvcc that works, of CUDA 11.1 or newer",
            False,
        ),
        (["-DPURSAMERE_CUDA=maybe"], "PURSAMERE_CUDA must be AUTO, ON or OFF, got 'MAYBE'", False),
    ],
    ids=["off", "auto", "on", "wrong"],
)
def test_the_choice_is_printed_and_checked(tmp_path, options, message, works):
    command = [CMAKE, "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == works, done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
@pytest.mark.cuda_on_cpu
def test_no_kernel_spills_registers():
    """By the report of the assembler in the build."""
    reports = {path.stem: path.read_text() for path in compile_with_nvcc().glob("*.txt")}
    assert set(reports) == KERNELS
    for source, text in reports.items():
        kernels = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'", text)
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert {architecture for _, architecture in kernels} == {"sm_80", "sm_90", "sm_100"}, source
        assert len(frames) >= len(kernels), source  # one more for every function that is called, if any
        assert set(frames) == {("0", "0", "0")}, (source, dict(zip(kernels, frames, strict=False)))
