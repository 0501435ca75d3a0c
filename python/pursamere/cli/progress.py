"""What the command line prints: results on stdout, messages on stderr, and progress bars if stderr is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from pursamere._extras import MissingExtraError, require
from pursamere.cli.streams import naming_stdout, stderr_may_fail

__all__ = ["Advance", "evaluation_bars", "is_first_process", "progress_bar", "say", "tell"]

Advance = Callable[[int], None]


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(total: int, description: str, *, unit: str, quiet: bool) -> Iterator[Advance]:
    """Show a bar of ``total`` units; the block gets a function that advances it by a number of units.

    Of the processes that ``torchrun`` started, only the first shows its bar.
    """
    if quiet or not is_first_process() or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        tqdm = require("tqdm", extra="cli").tqdm
    except MissingExtraError as error:
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


def evaluation_bars(prefix: str = "", *, quiet: bool) -> Callable[[int, str], AbstractContextManager[Advance]]:
    """Return the argument ``bar`` of :func:`pursamere.evaluate`."""
    return lambda total, description: progress_bar(total, f"{prefix}{description}", unit="", quiet=quiet)


def _size() -> dict[str, int | bool]:
    """The options of tqdm for a terminal of unknown size, as in some containers; tqdm would take it for size 0."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except OSError:
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def say(text: str) -> None:
    """Print a line on stderr without breaking a progress bar. A stderr that can't be written to is ignored."""
    tqdm = sys.modules.get("tqdm")  # imported by now if there is a bar
    with stderr_may_fail():
        if tqdm is None:
            print(text, file=sys.stderr)
        else:
            tqdm.tqdm.write(text, file=sys.stderr)


def tell(text: str) -> None:
    """Print a result on stdout. Call it after the work, so that a failure can't lose any.

    Raises:
        CommandError: stdout can't be written to.
        BrokenPipeError: the reader of stdout is gone.
    """
    with naming_stdout():
        print(text)
