"""Errors that the command line shows as one line."""

from __future__ import annotations


class CommandError(Exception):
    """Something the user can act on: its message is printed on stderr without a traceback, and the exit code is 1."""
