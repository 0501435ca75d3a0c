"""Compiles the kernels with nvcc as the build does, and makes of its PTX and its host code a library for the CPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from build_kernels import CONTROLS, CSRC, FLAGS, KERNELS_MODULE, LINKS, ROOT, SHIM, cached, compile_all
from nvcc import require_nvcc
from ptx_syntax import Kernel, parse_kernels
from ptx_translator import translate

HERE = Path(__file__).parent
CMAKE = Path(sys.executable).parent / "cmake"
ARCHITECTURES = ("compute_80", "compute_90", "compute_100")


def run(*command: object, **options: object) -> str:
    """Run a program, and return what it prints; an error shows it."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def compile_commands(source: Path, folder: Path, nvcc: str) -> dict[Path, tuple[Path, list[str]]]:
    """Return for every source file the working directory and the command that CMake compiles it with."""
    options = ["-DPURSAMERE_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    environment = {**os.environ, "CUDACXX": nvcc}
    environment.pop("CUDAARCHS", None)
    run(CMAKE, "-S", source, "-B", folder, *options, env=environment)
    entries = json.loads((folder / "compile_commands.json").read_text())
    return {Path(entry["file"]): (Path(entry["directory"]), shlex.split(entry["command"])) for entry in entries}


def with_output(command: list[str], output: Path) -> list[str]:
    """The command with another output file."""
    at = command.index("-o")
    return [*command[: at + 1], str(output), *command[at + 2 :]]


def compile_with_nvcc() -> Path:
    """Return a folder with what nvcc makes of every kernel file, with the commands of the build.

    For ``noise.cu`` these are ``noise.o``, ``noise.compute_90.ptx`` and so on, and in ``noise.txt`` ptxas's report.
    ``kernels_module.o`` has the ops.
    """
    nvcc = require_nvcc()

    def build(folder: Path) -> None:
        commands = compile_commands(ROOT, folder / "cmake", nvcc)

        def compile_kernels(source: Path) -> None:
            directory, command = commands[source]
            kept = folder / f"{source.stem}-kept"
            kept.mkdir()
            command = with_output(command, folder / f"{source.stem}.o")
            report = run(*command, "--keep", "--keep-dir", kept, "-Xptxas=-v", cwd=directory)
            (folder / f"{source.stem}.txt").write_text(report)
            for ptx in kept.glob("*.ptx"):
                ptx.replace(folder / ptx.name)
            shutil.rmtree(kept)  # a hundred megabytes of preprocessed sources

        # The largest first, so that the two at a time end together.
        kernels = [source for source in commands if source.suffix == ".cu"]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_kernels, sorted(kernels, key=lambda source: -source.stat().st_size)))
        # The ops' side of a backend sees CUDA's headers, like the one of the build.
        directory, command = commands[CSRC / "cuda" / "backend.cpp"]
        *command, _ = with_output(command, folder / "kernels_module.o")
        run(*command, KERNELS_MODULE, cwd=directory)

    sources = [ROOT / "CMakeLists.txt", *sorted((ROOT / "cmake").iterdir()), KERNELS_MODULE]
    sources += sorted(path for path in CSRC.rglob("*") if path.is_file())
    flags = [
        os.environ.get(name) for name in ("CXX", "CXXFLAGS", "CUDAFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
    ]
    return cached("nvcc", sources, [run(nvcc, "--version"), nvcc, flags], build)


def translate_to_library(name: str, kernels: Iterable[Kernel], objects: Iterable[Path] = ()) -> Path:
    """Return a library of translated kernels, with the objects linked in."""
    kernels, objects = list(kernels), list(objects)
    functions = [f"kernel_{i}" for i in range(len(kernels))]
    # Files of similar sizes, since several are compiled at the same time.
    parts = [""]
    for kernel, function in zip(kernels, functions, strict=True):
        if len(parts[-1]) > 200_000:
            parts.append("")
        parts[-1] += translate(kernel, function) + "\n\n"
    parts.append("".join(f"void {function}(const unsigned char* const*);\n" for function in functions))
    rows = [
        f'  {{"{k.name}", {function}, {k.max_threads}, 0}},\n' for k, function in zip(kernels, functions, strict=True)
    ]
    parts[-1] += f"TranslatedKernel translated[] = {{\n{''.join(rows)}}};\nconst int translated_count = {len(rows)};\n"
    files = {f"part_{number}.cpp": f'#include "machine.h"\n\n{text}' for number, text in enumerate(parts)}
    flags = [*FLAGS, "-w", "-I", SHIM, "-I", HERE]
    runtime = [HERE / "runtime.cpp", CONTROLS]

    def build(folder: Path) -> None:
        for file, text in files.items():
            (folder / file).write_text(text)
        compiled = compile_all([*(folder / file for file in files), *runtime], flags, folder)
        run("g++", "-shared", *compiled, *objects, *(LINKS if objects else []), "-o", folder / "kernels.so")

    sources = [HERE / "machine.h", *runtime, *sorted(SHIM.glob("*.h")), *objects]
    return cached(name, sources, [flags, files], build) / "kernels.so"


@cache
def kernels_for(architecture: str) -> list[Kernel]:
    """Return the library's kernels as compiled for an architecture such as ``compute_90``."""
    files = sorted(compile_with_nvcc().glob(f"*.{architecture}.ptx"))
    return [kernel for file in files for kernel in parse_kernels(file.read_text())]


def compile_ptx(architecture: str) -> Path:
    """Return a library like that of ``build_kernels.compile_kernels``, of what nvcc makes for an architecture."""
    kernels = kernels_for(architecture)
    # The PTX is often the same for two architectures, and so is the library then.
    first = next(other for other in ARCHITECTURES if kernels_for(other) == kernels)
    return translate_to_library(f"ptx-{first}", kernels, sorted(compile_with_nvcc().glob("*.o")))


def readable(mangled: str) -> str:
    """A kernel's name and template arguments."""
    name = run("c++filt", mangled).strip().split("(anonymous namespace)::")[-1]
    return re.sub(r"pursamere::|cuda::|(?<=>)\(.*", "", name)
