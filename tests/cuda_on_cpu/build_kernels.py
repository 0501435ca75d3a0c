"""Compiles the CUDA kernels for the CPU, with g++ and the stand-in for CUDA in shim/, and loads them."""

import ctypes
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
# Those of CMakeLists.txt for the host, and 16-byte vectors that are read as what they are not.
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fPIC", "-fvisibility=hidden"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # "#pragma unroll" is nvcc's
FLAGS += ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", '-DPURSAMERE_CUDA_ARCHITECTURES="none"']
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_kernels(folder: Path, *, sanitize: bool = False) -> Path:
    """Compile the kernels into a library in ``folder``."""
    torch_folder = Path(find_spec("torch").submodule_search_locations[0])
    flags = [*FLAGS, *(["-O1", "-g1", *SANITIZERS] if sanitize else ["-O2"])]
    flags += ["-I", HERE / "shim", "-I", CSRC, "-isystem", torch_folder / "include"]
    sources = [*sorted(CSRC.glob("cuda/*.cu")), HERE / "kernels_module.cpp"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run(["g++", *flags, "-x", "c++", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "kernels.so"
    links = ["-L", torch_folder / "lib", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"]
    subprocess.run(["g++", "-shared", *(SANITIZERS if sanitize else []), *objects, *links, "-o", library], check=True)
    return library


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
