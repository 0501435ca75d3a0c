"""Progress bars on stderr, for people only: silent when stderr is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pursamere._extras import MissingExtraError, require

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
        print(f"pursamere: no progress bar: {error}", file=sys.stderr)
        yield lambda _: None
        return
    with tqdm(total=total, desc=description, unit=unit, file=sys.stderr, **_size()) as bar:
        yield bar.update


def _size() -> dict[str, int | bool]:
    """Options of tqdm about the terminal's size, which may be unknown (in a container): tqdm takes that for no room."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except OSError:
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def say(text: str) -> None:
    """Print a line on stderr without tearing a progress bar apart."""
    tqdm = sys.modules.get("tqdm")  # imported by now if there is a bar
    if tqdm is None:
        print(text, file=sys.stderr)
    else:
        tqdm.tqdm.write(text, file=sys.stderr)
