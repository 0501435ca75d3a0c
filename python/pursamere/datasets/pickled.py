"""Reading pickles of plain values and byte arrays without executing code.

A pickle is a program that can import and call anything. Here, instructions are checked before they run, and the only
names that may be imported resolve to an inert class that just stores its arguments.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar

import numpy

# The instructions in pickles of dictionaries, lists, text, numbers and arrays, from Python 2 and 3.
_INSTRUCTIONS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINSTRING",
    "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "EMPTY_DICT", "SETITEM",
    "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT",
    "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
))  # fmt: skip
_NAMES = frozenset(
    [
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    ]
)
_MOST_INSTRUCTIONS = 1_000_000  # a batch has some 40,000


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary. Arrays must be uint8; text from Python 2 becomes ``bytes``, except for keys.

    Raises:
        ValueError: the file is damaged or has other content; the message names it.
    """
    try:
        content = path.read_bytes()
        for number, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if number == _MOST_INSTRUCTIONS:
                raise ValueError(f"it has more than {_MOST_INSTRUCTIONS} instructions")
            if instruction.name not in _INSTRUCTIONS:
                raise ValueError(f"expected plain values and arrays, found the instruction {instruction.name}")
            if instruction.name == "LONG_BINPUT" and int(argument or 0) > len(content):
                raise ValueError(f"its memo has the index {argument}")  # memory grows with the largest index
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError("expected a dictionary")
        return {_text(key): _to_array(value) if isinstance(value, _Inert) else value for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises nearly every built-in error
        reason = error if isinstance(error, ValueError | OSError) else f"it is damaged ({type(error).__name__})"
        raise ValueError(f"{path} cannot be read as a pickle of arrays: {reason}") from error


class _Inert:
    """Placeholder for an array, its dtype, and the function that creates an array."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


_InPython: Any = pickle._Unpickler  # not in the type stubs


class _Unpickler(_InPython):
    """The pure Python unpickler, in which dictionary keys can be checked before they are hashed.

    Hashing nested tuples can take exponential time or overflow the stack.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def _load_items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(target, key, value)

    def _load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], key, value)

    dispatch[pickle.SETITEMS[0]] = _load_items
    dispatch[pickle.SETITEM[0]] = _load_item

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _Inert
        raise ValueError(f"expected plain values and arrays, found the name {module}.{name}")


def _set(target: Any, key: Any, value: Any) -> None:
    if not isinstance(target, dict) or not isinstance(key, str | bytes):
        raise ValueError("expected dictionaries with text keys")
    target[key] = value


def _text(key: str | bytes) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _to_array(value: _Inert) -> Any:
    _, shape, dtype, by_columns, content = value.state
    if dtype.arguments[0] not in ("u1", b"u1") or by_columns or not isinstance(content, bytes):
        raise ValueError("expected row-major arrays of unsigned bytes")
    if not isinstance(shape, tuple) or len(shape) > 8 or not all(type(size) is int for size in shape):
        raise ValueError("expected array shapes of at most 8 integers")
    if math.prod(shape) != len(content):
        raise ValueError(f"an array of {len(content)} bytes has the wrong shape")
    return numpy.frombuffer(content, numpy.uint8).reshape(shape)
