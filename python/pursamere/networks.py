"""What a network must be to give the same result every time: in evaluation mode, at home on the device, not random."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

if TYPE_CHECKING:
    from typing_extensions import Self

_Result = TypeVar("_Result")

_STOCHASTIC_OR_MIXING = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.MultiheadAttention,
)


class EvaluationOnly(nn.Module):
    """A module that has no training mode: it and its submodules stay in evaluation mode.

    A subclass calls ``self.eval()`` once its submodules are there.
    """

    def train(self, mode: bool = True) -> Self:
        """Switch to evaluation mode whatever ``mode`` is: clients save a model's mode and restore it."""
        return super().train(False)


def check_evaluation_mode(name: str, network: object) -> None:
    """Refuse a module with a layer that is random, mixes samples or changes itself in training mode, and is in it."""
    if not isinstance(network, nn.Module):
        return
    for path, module in network.named_modules():
        if not (module.training and isinstance(module, _STOCHASTIC_OR_MIXING)):
            continue
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and not module.track_running_stats:
            continue
        if isinstance(module, nn.MultiheadAttention) and module.dropout == 0:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0:
            continue
        raise ValueError(
            f"{name} must be in evaluation mode, but its layer {path or type(module).__name__!r} is training; "
            f"call {name}.eval()"
        )


def check_same_device(name: str, network: object, x: Tensor) -> None:
    """Refuse images on another device than a module's."""
    if not isinstance(network, nn.Module):
        return
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.device != x.device:
            raise ValueError(f"x must be on the device of {name}.{path}, {tensor.device}, got {x.device}")


class Snapshot:
    """Whether a network is still the one that it was: the same parts and values, none of them written to.

    Its parts are modules and their tensors, and what they, functions and callable objects hold: in attributes, in the
    scope around a function and its defaults, in what ``functools.partial`` binds, and in lists, tuples and dictionaries
    of these. Values are tensors, numbers and strings among them, and modules' hooks. Nothing is copied.

    Unseen stay a change through ``tensor.data`` in place, as in autograd, one of a global variable or within an object
    that is not callable, and values of attributes whose names begin with ``_``, where caches and counters are kept.
    """

    def __init__(self, network: object) -> None:
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
                self._states.append(_state(part))
            else:
                simple = [each for each in held if _is_simple(each[1])]
                self._states.append(simple)
                pending += [each[1] for each in held if not _is_simple(each[1])]
                if isinstance(part, nn.Module):
                    self._states += [list(part._forward_hooks), list(part._forward_pre_hooks)]

    def has_parts_of(self, network: Snapshot) -> bool:
        """Whether the other one has the same modules, parameters and functions, whatever has been written to them."""
        return _same(self._parts, network._parts)

    def still_holds(self, network: object) -> bool:
        """Whether ``network``, now, is what was seen then."""
        now = Snapshot(network)
        return self.has_parts_of(now) and _same(self._values, now._values) and now._states == self._states


_VALUES = (Tensor, list, tuple, dict)
_SIMPLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _same(these: list[object], those: list[object]) -> bool:
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def _held_by(part: object) -> Iterable[tuple[object, object]] | None:
    """What a part or value holds, with the name or place of each; ``None`` for what is no part of a network."""
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


def _attributes(part: object) -> list[tuple[str, object]]:
    """The attributes of a module or callable object; of private ones networks only."""
    own = _OF_EVERY_MODULE if isinstance(part, nn.Module) else ()
    return [
        (name, value)
        for name, value in getattr(part, "__dict__", {}).items()
        if name not in own and (name[0] != "_" or (callable(value) and not isinstance(value, type | Tensor)))
    ]


def _is_simple(value: object) -> bool:
    return isinstance(value, _SIMPLE) or (isinstance(value, tuple) and all(map(_is_simple, value)))


def _state(tensor: Tensor) -> tuple[object, ...]:
    """What changes when a tensor is written to, or given other memory by ``tensor.data = ...``."""
    try:
        memory = tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own: sparse, for example
        memory = None
    return None if tensor.is_inference() else tensor._version, memory, tensor.dtype, tensor.device


class RandomNumbersError(RuntimeError):
    """A network drew random numbers."""


def without_random_numbers(name: str, function: Callable[[], _Result]) -> _Result:
    """Return ``function()``, which runs the network ``name``, and raise ``RandomNumbersError`` if it draws any."""
    try:
        with NoRandomNumbers(name):
            return function()
    except RandomNumbersError:
        raise
    except Exception:  # TorchScript makes calls that a dispatch mode can't repeat; any other error is raised again
        return function()


class NoRandomNumbers(TorchDispatchMode):
    """Inside the block, an operation of this thread that draws from PyTorch's global random state raises.

    The state itself is not looked at: other threads may draw from it meanwhile. A draw from a generator of its own is
    let through.

    Args:
        name: of the network that runs inside, for the message.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    # As the base class does, without its flags: these belong to the whole process, threads that overlap would leave
    # them set, and torch.compile leaves networks that meet them uncompiled ever after.
    def __enter__(self) -> NoRandomNumbers:
        """Begin to watch this thread."""
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        _pop_mode()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile do its work."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless it is random."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            raise RandomNumbersError(
                f"the {self.name} drew random numbers from PyTorch's global state (by {func}), so its results are not "
                "repeatable; switch it to evaluation mode, or fix its noise"
            )
        return func(*args, **kwargs)


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operation that can be random is so."""
    arguments = func._schema.arguments
    given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    values = {a.name: given.get(a.name, a.default_value) for a in arguments}
    if values.get("generator") is not None:
        return False
    probability = values.get("dropout_p", values.get("dropout", values.get("p") if "dropout" in str(func) else None))
    return probability != 0 and values.get("train") is not False and values.get("training") is not False


def is_compiled(network: object) -> bool:
    """Whether a network, or a module of it, has been through torch.compile."""
    modules = network.modules() if isinstance(network, nn.Module) else (network,)
    marks = ("_orig_mod", "_torchdynamo_orig_callable", "_compiled_call_impl")  # the last is None where there is none
    return any(getattr(module, mark, None) is not None for module in modules for mark in marks)


@contextmanager
def repeatable_algorithms(device: torch.device) -> Iterator[None]:
    """Inside the block, keep cuDNN on CUDA to algorithms that are deterministic and not chosen by timing them.

    These settings belong to the whole process, so they hold from the first thread that enters until the last leaves.
    """
    if device.type != "cuda":
        yield
        return
    _PINNED_CUDNN.enter()
    try:
        yield
    finally:
        _PINNED_CUDNN.leave()


class _PinnedCudnn:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = (False, False)

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._settings()
            self._inside += 1
            self._set(*_REPEATABLE)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._settings() == _REPEATABLE:  # else somebody else has set them since
                self._set(*self._before)

    @staticmethod
    def _settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    @staticmethod
    def _set(benchmark: bool, deterministic: bool) -> None:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic


_REPEATABLE = (False, True)  # benchmark, deterministic
_PINNED_CUDNN = _PinnedCudnn()
