"""Floating-point modes of a thread, as other libraries set them: flush-to-zero and other directions of rounding."""

import ctypes
import ctypes.util
import platform
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from cases import bits_of

_LIBM = ctypes.CDLL(ctypes.util.find_library("m"))
_UP, _DOWN = {"x86_64": (0x800, 0x400), "aarch64": (0x400000, 0x800000)}[platform.machine()]  # fenv.h
# Whether subnormal numbers are flushed to zero, and the direction of rounding.
MODES = {"flush": (True, 0), "up": (False, _UP), "down": (False, _DOWN), "flush and down": (True, _DOWN)}

# Divided by seven, subnormal numbers and normal ones, which have to be rounded; some of both for every thread.
_PROBE = 1e-41 * (1 + torch.arange(2**20).remainder(20_000))


def probe():
    """Bits that show the mode of every thread which had a part in computing them."""
    return bits_of(_PROBE / 7)  # as numbers, subnormal ones equal zero to a thread that flushes them


def mode_of_this_thread():
    """What tells the modes from each other. (fegetround would ask the x87 unit only.)"""
    return bits_of(_PROBE[:20_000:1000] / 7).tolist()


USUAL = mode_of_this_thread()


@contextmanager
def float_mode(mode):
    """Puts this thread into a mode; its worker threads keep theirs, but those that are started inherit it."""
    flush, direction = MODES[mode]
    assert mode_of_this_thread() == USUAL
    try:
        assert torch.set_flush_denormal(flush)
        assert _LIBM.fesetround(direction) == 0
        set_here = mode_of_this_thread()
        assert set_here != USUAL
        yield
        assert mode_of_this_thread() == set_here
    finally:
        _LIBM.fesetround(0)
        torch.set_flush_denormal(False)


def on_a_new_thread(f):
    """What f() returns on a thread that has no worker threads yet, with five to be used."""
    before = torch.get_num_threads()

    def run():
        torch.set_num_threads(5)
        return f()

    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(run).result()
    finally:
        torch.set_num_threads(before)
