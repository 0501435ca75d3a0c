"""Run by test_ptx_kernels.py after test_kernels.py, in the same process."""

import ctypes
import os

from build_ptx import readable


def test_every_kernel_ran():
    library = ctypes.CDLL(os.environ["PURSAMERE_KERNELS"])
    library.kernel_name.restype = ctypes.c_char_p
    library.kernel_runs.restype = ctypes.c_int64
    kernels = range(library.kernel_count())
    assert len(kernels) > 0
    idle = [readable(library.kernel_name(i).decode()) for i in kernels if library.kernel_runs(i) == 0]
    assert not idle, f"{len(idle)} of {len(kernels)} kernels never ran: {', '.join(idle)}"
