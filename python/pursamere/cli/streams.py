"""Standard streams that are closed, or can't show every character: the work is worth more than what is said of it."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def mend_streams() -> None:
    """Let closed standard streams lead nowhere, and show characters that stdout has no bytes for as escapes.

    For a process of its own: the streams of ``sys`` and the file descriptors 0 to 2 are changed.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # This takes the lowest free descriptor, that of the closed stream: a file opened later would get it else,
            # and with it what libraries in C print.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (open until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has from Python


def discard(stream: TextIO) -> None:
    """Lead a stream that failed nowhere: Python flushes it at exit, and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
