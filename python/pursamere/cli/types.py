"""Types of command-line options: they raise what argparse turns into a usage error (exit code 2)."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def text(value: str) -> str:
    """Text that is not empty: the value of a shell variable that is not set is no folder, nor anything else."""
    if not value:
        raise argparse.ArgumentTypeError("expected a value, got an empty one")
    return value


def path(value: str) -> Path:
    """The path of a file or folder, which is not empty: that would mean the current folder."""
    return Path(text(value))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def positive(text: str) -> float:
    """A number greater than 0."""
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, got {text}")
    return value


def nonnegative(text: str) -> float:
    """A number of at least 0."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def _integer(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if value < low:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text}")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _integer(text, 1)


def index(text: str) -> int:
    """A whole number of at least 0."""
    return _integer(text, 0)


def even_count(text: str) -> int:
    """An even whole number of at least 2."""
    value = _integer(text, 2)
    if value % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, got {text}")
    return value
