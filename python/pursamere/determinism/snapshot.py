"""Detects that a network has changed."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

__all__ = ["LatestSnapshot", "Snapshot"]


class Snapshot:
    """A record of a network's parts and values, to detect later that one was replaced or written to.

    Parts are modules, parameters, functions and callable objects, found through attributes, closures, default
    arguments, ``functools.partial``, lists, tuples and dictionaries. Values are the tensors, numbers, strings and hooks
    that these hold. Nothing is copied.

    Not detected: in-place writes through ``tensor.data`` (autograd misses them too), global variables, objects that are
    not callable, and values of attributes whose names begin with ``_``, which hold caches and counters.
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
                self._contents += [(each, list(_contents(each))) for each in _containers(part)]
                simple = [each for each in held if _is_simple(each[1])]
                self._states.append(simple)
                pending += [each[1] for each in held if not _is_simple(each[1])]
                if isinstance(part, nn.Module):
                    self._states += [list(part._forward_hooks), list(part._forward_pre_hooks)]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules among the parts, each with its submodules."""
        return [part for part in self._parts if isinstance(part, nn.Module)]

    def has_parts_of(self, network: Snapshot) -> bool:
        """Whether the other network has the same modules, parameters and functions, whatever their values."""
        return _same(self._parts, network._parts)

    def still_holds(self, network: object) -> bool:
        """Whether ``network`` is unchanged since this snapshot."""
        if self.is_untouched(network):
            return True
        now = Snapshot(network)
        return self.has_parts_of(now) and _same(self._values, now._values) and now._states == self._states

    def is_untouched(self, network: object) -> bool:
        """Whether the same objects are where they were, private ones too: a third of the time of a new snapshot."""
        if network is not self._network:
            return False
        for container, before in self._contents:
            now = _contents(container)
            if len(now) != len(before) or not all(map(operator.is_, now, before)):
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


def _same(these: list[object], those: list[object]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def _held_by(part: object) -> Iterable[tuple[object, object]] | None:
    """Return what a part or value holds, by name or index; ``None`` for what is not part of a network."""
    if isinstance(part, Tensor):
        return ()
    if isinstance(part, nn.Module):
        tensors_and_modules = (part._parameters, part._buffers, dict(part.named_children()))
        return [*_attributes(part), *(each for held in tensors_and_modules for each in held.items())]
    if isinstance(part, functools.partial):
        return [("", part.func), *enumerate(part.args), *part.keywords.items()]
    if isinstance(part, types.MethodType):
        return [("", part.__self__)]
    if isinstance(part, types.FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or () if cell != types.CellType()]
        return [*enumerate([*cells, *(part.__defaults__ or ())]), *(part.__kwdefaults__ or {}).items()]
    if isinstance(part, list | tuple):
        return list(enumerate(part))
    if isinstance(part, dict):
        return list(part.items())
    is_foreign = type(part).__module__.partition(".")[0] in ("builtins", "torch")
    return _attributes(part) if callable(part) and not isinstance(part, type) and not is_foreign else None


def _containers(part: object) -> tuple[object, ...]:
    """Return the objects whose contents change when a part changes."""
    if isinstance(part, nn.Module):
        hooks = (part._forward_hooks, part._forward_pre_hooks)
        return (vars(part), part._parameters, part._buffers, part._modules, *hooks)
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


def _attributes(part: object) -> list[tuple[str, object]]:
    """Return the public attributes of a module or callable object, and the private ones that are callable."""
    own = _OF_EVERY_MODULE if isinstance(part, nn.Module) else ()
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
