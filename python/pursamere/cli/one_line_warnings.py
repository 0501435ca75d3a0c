"""Warnings on the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pursamere._images import current_file
from pursamere._text import printable
from pursamere.cli.progress import say


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Show each warning of the block as one line on stderr, with the name of the image file that is being read.

    For the whole of a command: how warnings are shown is a setting of the process. Library code must not use this, as
    changes by several threads would undo one another.
    """
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        file = current_file()
        text = f"pursamere: warning: {'' if file is None else f'{file}: '}{message}"
        if text not in shown:
            shown.add(text)
            say(printable(text))

    with warnings.catch_warnings():
        # Pillow's text is the same for all files, and Python would show it for the first one only. Appended, so that
        # it is for what Python's own options (-W) leave open.
        warnings.filterwarnings("always", module=r"PIL\.", append=True)
        warnings.showwarning = show
        yield
