"""The build refuses compiler flags that would change the bits (D4), by name."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nvcc import require_nvcc

ROOT = Path(__file__).parent.parent
CMAKE = Path(sys.executable).parent / "cmake"
HOST = [
    "-Ofast",
    "-ffast-math",
    "-funsafe-math-optimizations",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffinite-math-only",
    "-fno-honor-nans",
    "-fno-honor-infinities",
    "-fno-signed-zeros",
    "-fapprox-func",
    "-fsingle-precision-constant",
    "-ffp-model=fast",
    "-ffp-model=aggressive",
    "-fp-model fast",
    "-fp-model=fast=2",
    "-ffp-contract=fast",
    "-ffp-contract=on",
    "-fdenormal-fp-math=preserve-sign,preserve-sign",
    "-fdenormal-fp-math-f32=positive-zero",
    "-mrecip",
    "-ffp-eval-method=extended",
    "-menable-unsafe-fp-math",
    "@flags.rsp",
    "--options-file",
    "-mrecip=all",
    "-mlow-precision-sqrt",
    "-mdaz-ftz",
    "-mfpmath=387",
    "-mfpmath=sse+387",
    "-mpc32",
]
DEVICE = [
    *(f"-{dash}{flag}" for dash in ("", "-") for flag in ("use_fast_math", "ftz=true", "ftz true", "fmad=true")),
    *(f"-{dash}{flag}" for dash in ("", "-") for flag in ("prec-div=false", "prec-sqrt false")),
    "-fcuda-flush-denormals-to-zero",
    "-fgpu-approx-transcendentals",
]
HARMLESS = [
    "-O3 -march=native -mtune=native -g -DNDEBUG -flto -ftree-vectorize -fno-math-errno -fno-trapping-math",
    "-fno-fast-math -fno-unsafe-math-optimizations -fno-associative-math -fsigned-zeros -frounding-math",
    "-ffp-contract=off -ffp-model=strict -fp-model precise -fdenormal-fp-math=ieee,ieee -mfpmath=sse -mno-recip",
    "-mrecip=none",
    "-ftz=false --prec-div true -prec-sqrt=true -fmad=false -Xcompiler -O2,-fPIC -lineinfo",
    "-I/opt/with-ffast-math -I/opt/-ffast-math -DNAME_-Ofast -ffast-math-less",
]

needs_cmake = pytest.mark.skipif(not CMAKE.exists(), reason="needs the package cmake")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def refusal(command, **environment):
    """What a configuration that must fail prints, on one line."""
    done = subprocess.run([CMAKE, *command], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode != 0, done.stdout
    return " ".join(done.stderr.split())


def refuse_alone(*definitions, **environment):
    return refusal([*(f"-D{name}" for name in definitions), "-P", ROOT / "cmake/refuse_fast_math.cmake"], **environment)


@needs_cmake
@pytest.mark.parametrize("flag", HOST + DEVICE)
def test_the_flag_is_refused_by_name(flag):
    for flags in (flag, f'-g -Xcompiler="-O2,{flag},-fPIC"'):
        message = refuse_alone(f"CMAKE_CXX_FLAGS={flags}")
        assert f"{flag}, in CMAKE_CXX_FLAGS, changes floating-point results" in message


@needs_cmake
@pytest.mark.parametrize("flags", HARMLESS)
def test_other_flags_are_not(flags):
    definitions = [f"-DCMAKE_{language}_FLAGS={flags}" for language in ("CXX", "CUDA")]
    subprocess.run([CMAKE, *definitions, "-P", ROOT / "cmake/refuse_fast_math.cmake"], check=True)


@needs_cmake
@pytest.mark.parametrize(
    "variable",
    [
        "CMAKE_CXX_FLAGS_DEBUG",
        "CMAKE_CUDA_COMPILER_ARG1",
        "CMAKE_CUDA_FLAGS",
        "CMAKE_CUDA_FLAGS_DEBUG",
        "CMAKE_MODULE_LINKER_FLAGS_DEBUG",
    ],
)
def test_wherever_it_comes_from(variable):
    assert f"-ffast-math, in {variable}," in refuse_alone("CMAKE_BUILD_TYPE=Debug", f"{variable}=-ffast-math")


@needs_cmake
@pytest.mark.parametrize("variable", ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
def test_nvccs_own_variables(variable):
    message = refuse_alone("CMAKE_CUDA_COMPILER=nvcc", **{variable: "-lineinfo --use_fast_math"})
    assert f"--use_fast_math, in {variable}," in message


@needs_cmake
@needs_compiler
@pytest.mark.parametrize(
    ("definition", "environment", "message"),
    [
        (None, {"CXXFLAGS": "-O2 -ffast-math"}, "-ffast-math, in CMAKE_CXX_FLAGS,"),
        (None, {"LDFLAGS": "-Ofast"}, "-Ofast, in CMAKE_MODULE_LINKER_FLAGS,"),
        (None, {"CXX": "g++ -funsafe-math-optimizations"}, "-funsafe-math-optimizations, in CMAKE_CXX_COMPILER_ARG1,"),
        ("CMAKE_CXX_FLAGS_RELEASE=-Ofast", {}, "-Ofast, in CMAKE_CXX_FLAGS_RELEASE,"),
    ],
    ids=["CXXFLAGS", "LDFLAGS", "CXX", "CMAKE_ARGS"],
)
def test_the_build_itself_refuses(tmp_path, definition, environment, message):
    """As pip calls it: the environment, and what CMAKE_ARGS has."""
    definitions = [f"-D{definition}"] if definition else []
    options = ["-DPURSAMERE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}", *definitions]
    assert message in refusal(["-S", ROOT, "-B", tmp_path, *options], **environment)


@needs_cmake
@needs_compiler
def test_the_build_refuses_what_a_toolchain_file_adds(tmp_path):
    toolchain = tmp_path / "toolchain.cmake"
    toolchain.write_text("add_compile_options($<$<COMPILE_LANGUAGE:CUDA>:-use_fast_math>)\n")
    options = ["-DPURSAMERE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    message = refusal(["-S", ROOT, "-B", tmp_path, *options])
    assert "-use_fast_math, in the directory's COMPILE_OPTIONS," in message


@pytest.mark.slow
@needs_cmake
@needs_compiler
@pytest.mark.parametrize("variable", ["CUDAFLAGS", "NVCC_APPEND_FLAGS"])
def test_the_build_with_nvcc_refuses(tmp_path, variable):
    options = ["-DPURSAMERE_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    environment = {"CUDACXX": require_nvcc(), variable: "-use_fast_math"}
    message = refusal(["-S", ROOT, "-B", tmp_path, *options], **environment)
    assert "-use_fast_math, in " in message


@needs_compiler
@pytest.mark.parametrize(
    "flag",
    [
        "-Ofast",
        "-ffast-math",
        "-funsafe-math-optimizations",
        "-freciprocal-math",
        "-ffinite-math-only",
        "-fno-signed-zeros",
        "-fsingle-precision-constant",
        pytest.param("-mfpmath=387", marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="a flag for x86")),
    ],
)
def test_the_compiler_refuses_what_cmake_cannot_see(tmp_path, flag):
    """Flags of a compiler's wrapper or configuration file, as far as macros tell."""
    source = tmp_path / "any.cpp"
    source.write_text('#include "arithmetic.h"\n')
    command = ["g++", "-std=c++17", "-fsyntax-only", "-I", ROOT / "csrc", source]
    subprocess.run([*command, "-O3", "-march=native"], check=True)
    done = subprocess.run([*command, flag], capture_output=True, text=True)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "error: #error" in line]
    assert len(errors) == 1
    assert "pursamere must be compiled without " in errors[0]
    assert flag in errors[0]
