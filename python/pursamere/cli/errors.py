"""Errors of the command line."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """An error that the user can fix: its message is printed on stderr without traceback; the exit code is 1."""
