"""Types of command-line options, which raise what becomes a usage error (exit code 2), and their help."""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "LARGEST_BATCH",
    "LARGEST_COUNT",
    "LARGEST_NUMBER",
    "HelpFormatter",
    "add_device",
    "add_execution",
    "batch",
    "checked",
    "count",
    "even_batch",
    "integer",
    "nonnegative",
    "number",
    "option",
    "path",
    "positive",
    "seed",
    "text",
    "threads",
]

LARGEST_NUMBER = 1e6  # in pixel units, whose range is 1; far from where float32 overflows
LARGEST_COUNT = 2**31 - 1
LARGEST_BATCH = 2**16


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the defaults of options that have a value of their own."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_value = action.default is False or action.default in (None, [])
        return action.help if no_value else super()._get_help_string(action)


def text(value: str) -> str:
    """Text that isn't empty, as an unset shell variable is."""
    if not value:
        raise argparse.ArgumentTypeError("expected a value, got an empty one")
    return value


def path(value: str) -> Path:
    """A path that isn't empty: that would mean the current folder."""
    return Path(text(value))


def number(value: str) -> float:
    """A finite number, or a fraction like 8/255."""
    numerator, slash, denominator = value.partition("/")
    try:
        found = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number or a fraction like 8/255, got {value!r}") from None
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {value!r}")
    return found


def positive(value: str) -> float:
    """A number in (0, LARGEST_NUMBER]."""
    found = number(value)
    if not 0 < found <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"expected a number greater than 0, at most {LARGEST_NUMBER:g}, got {value}")
    return found


def nonnegative(value: str) -> float:
    """A number in [0, LARGEST_NUMBER]."""
    found = number(value)
    if not 0 <= found <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to {LARGEST_NUMBER:g}, got {value}")
    return found


def checked(check: Callable[[str, float], object]) -> Callable[[str], float]:
    """Return the type of a number for which ``check(name, value)`` doesn't raise a ``ValueError``."""

    def parse(value: str) -> float:
        found = number(value)
        try:
            check("the value", found)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return found

    return parse


def _integer(value: str, low: int, high: int) -> int:
    try:
        found = int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {value!r}") from None
    if not low <= found <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {value}")
    return found


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return the type of a whole number in [low, high]."""
    return lambda value: _integer(value, low, high)


def count(value: str) -> int:
    """A whole number of at least 1, of things done one after another."""
    return _integer(value, 1, LARGEST_COUNT)


def batch(value: str) -> int:
    """A whole number of at least 1, of things in memory at once."""
    return _integer(value, 1, LARGEST_BATCH)


def even_batch(value: str) -> int:
    """An even whole number of at least 2, of things in memory at once."""
    found = _integer(value, 2, LARGEST_BATCH)
    if found % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, got {value}")
    return found


def threads(value: str) -> int:
    """A number of threads."""
    return _integer(value, 1, 1024)


def seed(value: str) -> int:
    """A seed, in [0, 2^63)."""
    return _integer(value, 0, 2**63 - 1)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, whose value ``pursamere.cli.networks.find_device`` interprets."""
    parser.add_argument("--device", type=text, default="cpu", help="device to compute on: cpu, cuda or cuda:N")


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :class:`pursamere.Execution`, absent unless given."""
    add = functools.partial(parser.add_argument, default=argparse.SUPPRESS)
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        help="precision of the network, see pursamere tune (default: float32)",
    )
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--channels-last", action="store_true", help="run the network in the channels-last memory format")
    add("--cuda-graphs", action="store_true", help="replay CUDA graphs instead of launching every kernel")


def option(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE; the value is JSON, a number like 8/255, or a word."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    if value in ("inf", "infinity"):
        return name, math.inf
    for read in (json.loads, number):
        with suppress(ValueError, argparse.ArgumentTypeError):
            return name, read(value)
    return name, value  # a word needs no quotes
