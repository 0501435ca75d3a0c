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
def test_no_kernel_spills_registers_or_takes_more_than_its_occupancy_allows():
    """By the report of the assembler in the build."""
    reports = {path.stem: path.read_text() for path in compile_with_nvcc().glob("*.txt")}
    assert set(reports) == KERNELS
    for source, text in reports.items():
        kernels = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'", text)
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert {architecture for _, architecture in kernels} == {"sm_80", "sm_90", "sm_100"}, source
        assert len(frames) >= len(kernels), source  # one more for every function that is called, if any
        assert set(frames) == {("0", "0", "0")}, (source, dict(zip(kernels, frames, strict=False)))
        used = re.findall(r"entry function '(\w+)' for '(sm_\d+)'.*?Used (\d+) registers", text, re.DOTALL)
        assert len(used) == len(kernels), source
        for name, architecture, registers in used:
            assert int(registers) <= most_registers(name), (name, architecture)


def most_registers(mangled):
    """Registers of a thread with which a multiprocessor's 65,536 hold the blocks that docs/kernels.md counts on."""
    float32 = re.search(r"_kernelI(Lb[01]E)*ffE", mangled)
    half = re.search(r"_kernelI(Lb[01]E)*\w*(4Half|8BFloat16)", mangled)
    if re.search(r"\d(ascend|descend)_kernel", mangled):
        return 64 if float32 else 96
    if "15residual_kernel" in mangled:
        return 80 if float32 else 96 if half and "_kernelILb0E" in mangled else 128
    return 255
