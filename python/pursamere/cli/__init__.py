"""The command ``pursamere``: one module per subcommand, each with ``add_parser`` and a function that runs it."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from pursamere._environment import package_version
from pursamere._extras import MissingExtraError
from pursamere._text import printable
from pursamere.cli import compare, demo, evaluate, info, purify, train, tune
from pursamere.cli.errors import CommandError
from pursamere.cli.one_line_warnings import one_line_warnings
from pursamere.cli.progress import say
from pursamere.cli.streams import discard, mend_streams, naming_stdout

__all__ = ["build_parser", "main", "run"]

_INTERRUPTED = 130  # the exit code of a command stopped with Ctrl-C: 128 + SIGINT


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    # The subcommand's default must not override a --debug given before the subcommand.
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="pursamere", description="Deterministic adversarial purification of images.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"pursamere {package_version('pursamere')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (demo, purify, evaluate, compare, train, tune, info):
        module.add_parser(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return the exit code.

    0: success. 1: an error, reported in one line on stderr. 2: wrong usage. 130: interrupted.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] | None = getattr(arguments, "command", None)
    if command is None:
        parser.print_help()
        return 0
    try:
        with one_line_warnings():
            code = command(arguments)
        with naming_stdout():
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say("pursamere: interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone (``pursamere info | head -1``), so there is nobody to tell.
        discard(sys.stdout)
        return 1
    except Exception as error:
        if getattr(arguments, "debug", False):
            say(traceback.format_exc().rstrip())
        else:
            say(f"pursamere: error: {_one_line(error)}")
        return 1


def _one_line(error: Exception) -> str:
    """The message of an error, with its type and how to see more unless the message was written for users."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{printable(error.filename)}: {error.strerror}"
    message = printable(str(error))
    if isinstance(error, CommandError | MissingExtraError | ValueError | TypeError | OSError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows the traceback)"


def run() -> NoReturn:
    """The process ``pursamere``: mend its streams, run ``main``, and exit with its code."""
    mend_streams()
    sys.exit(main())
