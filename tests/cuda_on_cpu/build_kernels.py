"""Compiles the CUDA kernels for the CPU, with g++ and the stand-in for CUDA in shim/, and loads them."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
SHIM = HERE / "shim"
KERNELS_MODULE = HERE / "kernels_module.cpp"
CONTROLS = HERE / "controls.cpp"
# Those of CMakeLists.txt for the host, and 16-byte vectors that are read as what they are not.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # "#pragma unroll" is nvcc's
FLAGS += ["-O1"]  # the tests run as fast as with -O2, and compiling takes two thirds of the time
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", '-DPURSAMERE_CUDA_ARCHITECTURES="none"']
TORCH = Path(find_spec("torch").submodule_search_locations[0])
LINKS = ["-L", TORCH / "lib", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def cached(name: str, sources: Iterable[Path], settings: object, build: Callable[[Path], None]) -> Path:
    """Return the folder build/cuda_on_cpu/NAME, which ``build`` fills unless it has done so from the same inputs.

    The inputs are the contents of the sources, the settings, and the versions of g++ and torch. Of several processes
    one builds and the others wait.
    """
    compiler = subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout
    inputs = [repr(settings).encode(), compiler, version("torch").encode(), *(path.read_bytes() for path in sources)]
    key = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in inputs)).hexdigest()
    folder = ROOT / "build" / "cuda_on_cpu" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "key"
        if not stamp.exists() or stamp.read_text() != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            stamp.write_text(key)
    return folder


def compile_all(sources: Iterable[Path], flags: Iterable[object], folder: Path) -> list[Path]:
    """Compile with g++, two files at a time and the largest first, and return the object files."""

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sorted(sources, key=lambda source: -source.stat().st_size)))


def compile_kernels(*, sanitize: bool = False) -> Path:
    """Return the kernels compiled into a library."""
    sanitizers = ["-g1", *SANITIZERS] if sanitize else []
    flags = [*FLAGS, *sanitizers, "-I", SHIM, "-I", CSRC, "-isystem", TORCH / "include"]
    sources = [*sorted(CSRC.glob("cuda/*.cu")), KERNELS_MODULE, CONTROLS]

    def build(folder: Path) -> None:
        objects = compile_all(sources, flags, folder)
        subprocess.run(["g++", "-shared", *sanitizers, *objects, *LINKS, "-o", folder / "kernels.so"], check=True)

    headers = sorted(path for folder in (CSRC, SHIM) for path in folder.rglob("*.h"))
    name = "sanitized-kernels" if sanitize else "kernels"
    return cached(name, [*sources, *headers], [flags, LINKS], build) / "kernels.so"


def run_kernel_tests(library: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run test_kernels.py on a library in a process of its own, since a process can register the ops only once."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / "test_kernels.py"), *map(str, arguments)]
    environment = {**os.environ, **environment, "PURSAMERE_KERNELS": str(library)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parent)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-10_000:]
    assert " passed" in result.stdout
    return result


class Kernels:
    """The loaded library; its ops are ``torch.ops.pursamere_cuda_on_cpu``."""

    def __init__(self, library: Path) -> None:
        import torch  # noqa: F401  (the library needs it loaded)

        self._library = ctypes.CDLL(str(library))
        self._library.launch_count.restype = ctypes.c_int64
        self._library.set_machine.argtypes = [ctypes.c_bool, ctypes.c_int]
        self._library.set_launch_error.argtypes = [ctypes.c_int]

    def set_machine(self, *, reverse_order: bool = False, multiprocessors: int = 2) -> None:
        """Set the order in which blocks and threads run, and the size of the device that is pretended."""
        self._library.set_machine(reverse_order, multiprocessors)

    def launch_count(self) -> int:
        """Return the number of launches so far."""
        return self._library.launch_count()

    def set_launch_error(self, error: int) -> None:
        """Make every launch fail with an error of the CUDA runtime, or with 0 none."""
        self._library.set_launch_error(error)
