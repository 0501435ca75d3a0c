"""Detects that a network has changed."""

from __future__ import annotations

import argparse
import functools
import operator
import sys
import types
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .network import hooks_of

__all__ = ["LatestSnapshot", "Snapshot", "contents_of", "hold_the_same"]


class Snapshot:
    """A record of a network's parts and values, to detect later that one was replaced or written to.

    Parts are modules, parameters, functions and objects, found through attributes, closures, global variables, default
    arguments, ``functools.partial``, lists, tuples and dictionaries. Values are the tensors, numbers, strings and hooks
    that these hold, and whether a module is training. Nothing is copied.

    Not detected: in-place writes through ``tensor.data`` (autograd misses them too); numbers, lists and dictionaries in
    global variables, and values of attributes whose names begin with ``_``, since both may be caches and counters;
    objects of PyTorch and the standard library.
    """

    def __init__(self, network: object) -> None:
        self._network = network
        self._contents: list[tuple[object, list[object]]] = []  # of every part, to see at once that nothing changed
        self._tensors: list[tuple[Tensor, object]] = []
        self._parts: list[object] = []
        self._values: list[object] = []
        self._states: list[object] = []
        pending, seen = [network], set()
        while pending:
            part = pending.pop()
            if id(part) in seen or (held := _held_by(part)) is None:
                continue
            seen.add(id(part))
            is_value = isinstance(part, _VALUES) and not isinstance(part, nn.Parameter)
            (self._values if is_value else self._parts).append(part)
            if isinstance(part, Tensor):
                self._tensors.append((part, _state(part)))
                self._states.append(self._tensors[-1][1])
            else:
                self._contents += contents_of(part)
                simple = [each for each in held if _is_simple(each[1])]
                self._states.append(simple)
                pending += [each[1] for each in held if not _is_simple(each[1])]
                if isinstance(part, nn.Module):
                    self._states += [part.training, *map(list, hooks_of(part))]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules among the parts, each with its submodules."""
        return [part for part in self._parts if isinstance(part, nn.Module)]

    @property
    def others(self) -> list[object]:
        """The functions and objects among the parts."""
        return [part for part in self._parts if not isinstance(part, nn.Module | Tensor)]

    def still_holds(self, network: object) -> bool:
        """Whether ``network`` is unchanged since this snapshot."""
        if self.is_untouched(network):
            return True
        now = Snapshot(network)
        return _same(self._parts, now._parts) and _same(self._values, now._values) and now._states == self._states

    def is_untouched(self, network: object) -> bool:
        """Whether the same objects are where they were, private ones too: a third of the time of a new snapshot."""
        if network is not self._network or not hold_the_same(self._contents):
            return False
        return all(_state(tensor) == state for tensor, state in self._tensors)


class LatestSnapshot:
    """The snapshot of a network, taken anew only if the last one no longer holds."""

    def __init__(self) -> None:
        self._latest: Snapshot | None = None

    def of(self, network: object) -> Snapshot:
        """Return a snapshot of the network as it is."""
        latest = self._latest
        if latest is None or not latest.is_untouched(network):
            latest = self._latest = Snapshot(network)
        return latest


_VALUES = (Tensor, list, tuple, dict)
_SIMPLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset(("torch", *sys.stdlib_module_names))
_RECOMPUTING = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")


def contents_of(part: object) -> list[tuple[object, list[object]]]:
    """Return the objects whose contents change when a part changes, with what they hold now."""
    return [(container, list(_contents(container))) for container in _containers(part)]


def hold_the_same(recorded: list[tuple[object, list[object]]]) -> bool:
    """Whether containers hold what :func:`contents_of` recorded."""
    for container, before in recorded:
        now = _contents(container)
        if len(now) != len(before) or not all(map(operator.is_, now, before)):
            return False
    return True


def _same(these: list[object], those: list[object]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def _held_by(part: object) -> Iterable[tuple[object, object]] | None:
    """Return what a part or value holds, by name or index; ``None`` for what is not part of a network."""
    if isinstance(part, Tensor):
        return ()
    if isinstance(part, nn.Module):
        tensors_and_modules = (part._parameters, part._buffers, dict(part.named_children()))
        own = _OF_EVERY_MODULE | _recomputed(part)
        return [*_attributes(part, own), *(each for held in tensors_and_modules for each in held.items())]
    if isinstance(part, functools.partial):
        return [("", part.func), *enumerate(part.args), *part.keywords.items()]
    if isinstance(part, types.MethodType):
        return [("", part.__self__)]
    if isinstance(part, types.FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if cell != types.CellType()]
        named = (part.__kwdefaults__ or {}, _global_parts(part))
        return [*enumerate([*cells, *(part.__defaults__ or ())]), *(each for held in named for each in held.items())]
    if isinstance(part, list | tuple):
        return list(enumerate(part))
    if isinstance(part, dict):
        return list(part.items())
    return _attributes(part) if _is_the_users(part) else None


def _global_parts(function: types.FunctionType) -> dict[str, object]:
    """Return the modules, tensors, objects, and functions of the same file, that a function's code names."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return {}
    named = {name: function.__globals__.get(name) for name in _names(function.__code__)}
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, nn.Module | Tensor | functools.partial)
        or (value.__module__ == function.__module__ if isinstance(value, types.FunctionType) else _is_the_users(value))
    }


def _names(code: types.CodeType) -> list[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _is_the_users(part: object) -> bool:
    """Whether an object may hold a part of a network: no class or package, and not PyTorch's or Python's own."""
    package = type(part).__module__.partition(".")[0]
    if isinstance(part, type | types.ModuleType) or package in ("builtins", "torch"):
        return False
    if callable(part) or isinstance(part, argparse.Namespace | types.SimpleNamespace):
        return True
    return hasattr(part, "__dict__") and package not in _LIBRARIES  # loggers and locks, for example


def _containers(part: object) -> tuple[object, ...]:
    if isinstance(part, nn.Module):
        return (vars(part), part._parameters, part._buffers, part._modules, *hooks_of(part))
    if isinstance(part, types.FunctionType | list | dict):
        return (part,)
    if isinstance(part, functools.partial):  # whose function and arguments are fixed
        return part.keywords, vars(part)
    return (vars(part),) if hasattr(part, "__dict__") else ()


def _contents(container: object) -> Collection[object]:
    if isinstance(container, list):
        return container
    if isinstance(container, types.FunctionType):
        return [held for _, held in _held_by(container) or ()]
    return (*container.keys(), *container.values())  # type: ignore[attr-defined]


def _recomputed(module: nn.Module) -> set[str]:
    """The attributes that a hook sets anew, from parameters, in every call."""
    hooks: Iterable[Any] = module._forward_pre_hooks.values()
    return {hook.name for hook in hooks if type(hook).__module__ in _RECOMPUTING}


def _attributes(part: object, own: Collection[str] = ()) -> list[tuple[str, object]]:
    """Return the public attributes of an object but its ``own``, and the private ones that are callable."""
    return [
        (name, value)
        for name, value in getattr(part, "__dict__", {}).items()
        if name not in own and (name[0] != "_" or (callable(value) and not isinstance(value, type | Tensor)))
    ]


def _is_simple(value: object) -> bool:
    return isinstance(value, _SIMPLE) or (isinstance(value, tuple) and all(map(_is_simple, value)))


def _state(tensor: Tensor) -> tuple[object, ...]:
    """Return what changes when a tensor is written to, or given other memory by ``tensor.data = ...``."""
    try:
        memory = tensor.data_ptr()
    except RuntimeError:  # no memory of its own: a sparse tensor, for example
        memory = None
    return None if tensor.is_inference() else tensor._version, memory, tensor.dtype, tensor.device
