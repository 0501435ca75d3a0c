"""Warnings on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pursamere._images import current_file
from pursamere._text import printable
from pursamere.cli.progress import say

__all__ = ["one_line_warnings"]


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show each warning of the block as one line on stderr, with the name of the image file being read.

    Only for a whole command, never for library code: how warnings are shown is a setting of the process, and threads
    that change it at once undo one another's changes.
    """
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        file = current_file()
        text = f"pursamere: warning: {'' if file is None else f'{file}: '}{message}"
        if text not in shown:
            shown.add(text)
            say(printable(text))

    with warnings.catch_warnings():
        # Pillow's texts don't name the file, so Python would show only the first. Appended, so that Python's own
        # options (-W) take precedence.
        warnings.filterwarnings("always", module=r"PIL\.", append=True)
        warnings.showwarning = show
        yield
