"""Standard streams that are closed, fail, or can't show every character: the work matters more than its messages."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pursamere.cli.errors import CommandError


def mend_streams() -> None:
    """Let closed standard streams lead nowhere, and show characters that stdout has no bytes for as escapes.

    For a process of its own: the streams of ``sys`` and the file descriptors 0 to 2 are changed.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # This takes the lowest free descriptor, that of the closed stream. Otherwise a file opened later would get
            # it, and libraries in C would print into that file.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (open until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has from Python


def discard(stream: TextIO) -> None:
    """Lead a stream that failed nowhere: Python flushes it at exit, and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def stderr_may_fail() -> Iterator[None]:
    """Ignore a failure to write to stderr in the block: nobody reads it from then on, and the work goes on."""
    try:
        yield
    except OSError:
        discard(sys.stderr)


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Name stdout in the error where the block cannot write to it.

    Raises:
        CommandError: stdout cannot be written to.
        BrokenPipeError: the reader of stdout is gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise CommandError(f"stdout: {error.strerror}") from error
