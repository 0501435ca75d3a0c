"""Pickles of plain values and byte arrays, read without calling anything that they name.

A pickle is a program. ``pickle`` would run it, with all that it can be made to do: import and call functions, hash a
key that is nested without end, take any amount of memory. So the few instructions that such data need are carried out
here. An array stays a description until it is found to be one of bytes.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_WITH_VALUE = frozenset(
    ("BININT", "BININT1", "BININT2", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE")
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NAMES = frozenset(
    ("numpy.ndarray", "numpy.dtype", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
)
_MOST_DIMENSIONS = 8


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a file; its arrays of bytes are uint8, and Python 2's text is ``bytes`` but for the keys.

    Raises:
        ValueError: the file is damaged, or holds anything else; the message names it.
    """
    try:
        found = _load(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("expected a dictionary")
        return {_text(key): _to_array(value) if isinstance(value, _Made) else value for key, value in found.items()}
    except Exception as error:  # a damaged pickle raises nearly every built-in error
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays: {str(error) or type(error).__name__}"
        ) from error


class _Name(NamedTuple):
    """A class or function that would be imported."""

    name: str


class _Made:
    """What calling a name would make: an array or its dtype."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.state: Any = None


def _load(content: bytes) -> Any:
    """The value that a pickle describes."""
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under the marks
    memo: dict[int, Any] = {}
    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in ("TUPLE", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _WITH_VALUE:
            stack.append(argument)
        elif name in ("SHORT_BINSTRING", "BINSTRING"):  # text of Python 2
            stack.append(str(argument).encode("latin1"))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name == "TUPLE":
            stack.append(tuple(items))
        elif name in _TUPLES:
            stack.append(tuple(reversed([stack.pop() for _ in range(_TUPLES[name])])))
        elif name == "APPEND":
            _extend(stack[-2], [stack.pop()])
        elif name == "APPENDS":
            _extend(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _update(stack[-1], [(key, value)])
        elif name == "SETITEMS":
            _update(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument or 0)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "GLOBAL":
            stack.append(_name(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(module, attribute))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            if not isinstance(called, _Name) or not isinstance(arguments, tuple):
                raise ValueError("expected plain values and arrays, found a call of something else")
            stack.append(_Made(arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Made):
                raise ValueError("expected plain values and arrays, found a state of something else")
            stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"expected plain values and arrays, found the instruction {name}")
    raise ValueError("it has no end")


def _name(module: Any, attribute: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(attribute, str):  # whose text might have no end
        raise ValueError("expected plain values and arrays, found a name that is no text")
    if (name := f"{module}.{attribute}") not in _NAMES:
        raise ValueError(f"expected plain values and arrays, found the name {name}")
    return _Name(name)


def _extend(values: Any, items: Iterable[Any]) -> None:
    if not isinstance(values, list):
        raise ValueError("expected a list to append to")
    values.extend(items)


def _update(values: Any, items: Iterable[tuple[Any, Any]]) -> None:
    if not isinstance(values, dict):
        raise ValueError("expected a dictionary to set items of")
    for key, value in items:
        if not isinstance(key, str | bytes):  # the hash of a tuple goes through all that is nested in it
            raise ValueError(f"expected text as the keys of a dictionary, found a {type(key).__name__}")
        values[key] = value


def _text(key: str | bytes) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _to_array(value: _Made) -> Any:
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        raise ValueError("expected arrays with a version, a shape, a dtype, an order and their bytes")
    _, shape, dtype, by_columns, content = value.state
    kind = dtype.arguments[0] if isinstance(dtype, _Made) and dtype.arguments else None
    if kind not in ("u1", b"u1") or by_columns is not False or not isinstance(content, bytes):
        raise ValueError("expected arrays of unsigned bytes, row by row")
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS or not all(type(size) is int for size in shape):
        raise ValueError(f"expected arrays whose shape is a tuple of at most {_MOST_DIMENSIONS} whole numbers")
    if math.prod(shape) != len(content):
        raise ValueError(f"an array of {len(content)} bytes has the wrong shape")
    return numpy.frombuffer(content, numpy.uint8).reshape(shape)
