"""Errors that the command line shows as one line, and text made safe to show."""

from __future__ import annotations


class CommandError(Exception):
    """Something the user can act on: its message is printed on stderr without a traceback, and the exit code is 1."""


def printable(text: object) -> str:
    """``text`` on one line: a file name may hold line breaks, terminal escapes or bytes that are no text at all."""
    joined = " ".join(str(text).split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in joined)
