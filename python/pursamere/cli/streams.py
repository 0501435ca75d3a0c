"""Standard streams that are closed, fail, or can't encode every character: none of these may stop the work."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from pursamere.cli.errors import CommandError

__all__ = ["discard", "mend_streams", "naming_stdout", "stderr_may_fail"]


def mend_streams() -> None:
    """Connect closed standard streams to the null device, and escape characters that stdout can't encode.

    Only for a process of its own, since it changes the streams of ``sys`` and the file descriptors 0 to 2.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # This takes the lowest free descriptor, that of the closed stream. Otherwise the next file to be opened
            # would get it, and C libraries would print into that file.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 (open until the end)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has from Python


def discard(stream: TextIO) -> None:
    """Connect a stream that failed to the null device: Python flushes it at exit, and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextmanager
def stderr_may_fail() -> Iterator[None]:
    """Ignore a failure to write to stderr in the block, and discard what is written to it later."""
    try:
        yield
    except OSError:
        discard(sys.stderr)


@contextmanager
def naming_stdout() -> Iterator[None]:
    """Name stdout in the error if the block can't write to it.

    Raises:
        CommandError: stdout can't be written to.
        BrokenPipeError: the reader of stdout is gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise CommandError(f"stdout: {error.strerror}") from error
