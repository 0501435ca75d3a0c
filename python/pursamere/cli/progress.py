"""Lines on stdout and stderr, and progress bars on stderr, for people only: silent when stderr is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pursamere._extras import MissingExtraError, require
from pursamere.cli.streams import naming_stdout, stderr_may_fail

Advance = Callable[[int], None]


@contextmanager
def progress_bar(total: int, description: str, *, unit: str, quiet: bool) -> Iterator[Advance]:
    """A bar of ``total`` units; the block gets a function that advances it by a number of units."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        tqdm = require("tqdm", extra="cli").tqdm
    except MissingExtraError as error:
        # The work can be done without a bar, so its absence is told and not fatal.
        say(f"pursamere: no progress bar: {error}")
        yield lambda _: None
        return
    bar = None
    with stderr_may_fail():
        bar = tqdm(total=total, desc=description, unit=unit, file=sys.stderr, **_size())
    if bar is None:
        yield lambda _: None
        return

    def advance(count: int) -> None:
        with stderr_may_fail():
            bar.update(count)

    try:
        yield advance
    finally:
        with stderr_may_fail():
            bar.close()


def _size() -> dict[str, int | bool]:
    """Options of tqdm about the terminal's size, which may be unknown (in a container): tqdm takes that for no room."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except OSError:
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def say(text: str) -> None:
    """Print a line on stderr, if that can be written to, without tearing a progress bar apart."""
    tqdm = sys.modules.get("tqdm")  # imported by now if there is a bar
    with stderr_may_fail():
        if tqdm is None:
            print(text, file=sys.stderr)
        else:
            tqdm.tqdm.write(text, file=sys.stderr)


def tell(text: str) -> None:
    """Print what the command is for on stdout. Call it after the work, which a failure must not lose.

    Raises:
        CommandError: stdout cannot be written to.
        BrokenPipeError: the reader of stdout is gone.
    """
    with naming_stdout():
        print(text)
