"""Runs attacks of the package pyautoattack without side effects."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from pursamere._extras import require
from pursamere._validation import NotFiniteError

from ._balls import logits_of
from .attack import Model

__all__ = [
    "NORMS",
    "OwnGradient",
    "Wrapped",
    "as_float32",
    "check_gradient",
    "check_size",
    "isolated",
    "outside",
    "package",
]

NORMS = {"linf": "Linf", "l2": "L2"}
_ONE_AT_A_TIME = threading.RLock()
_entered: list[_Factories] = []


def package(module: str) -> Any:
    """A module of pyautoattack."""
    return require(f"pyautoattack.{module}", extra="evaluation")


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Contain the side effects of the package in the block.

    The package seeds and draws from PyTorch's global generators, creates tensors on the default device with the default
    dtype (inside the block: on ``device``, float32), ends the caller's tracing (of a debugger or a coverage tool), and
    detects dynamic defenses by a module-level dictionary of call counts that it never resets. Generators and dictionary
    are global, so only one thread runs the block at a time: a model under attack must not wait for another thread that
    attacks too.
    """
    calls = package("checks").funcs
    with _ONE_AT_A_TIME:
        counted, trace = dict(calls), sys.gettrace()
        calls.update(dict.fromkeys(calls, 0))
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        mode = _Factories(device)
        _entered.append(mode)
        try:
            with (
                mode,
                _seeds_for_later_kept(),
                torch.random.fork_rng(devices=devices),
                torch.inference_mode(False),
            ):
                yield
        finally:
            _entered.pop()
            sys.settrace(trace)
            calls.update(counted)


class _Factories(TorchFunctionMode):
    """Creates this thread's tensors on ``device`` and as float32, unless device or dtype are given."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.thread, self.active = device, threading.get_ident(), True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` with its default device and dtype replaced."""
        kwargs = dict(kwargs or {})
        if func in _MAKE_TENSORS and kwargs.get("device") is None:
            kwargs["device"] = self.device
        if func in _MAKE_FLOATS and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        self.active = False  # PyTorch leaves the mode meanwhile, also in what torch.autograd.grad runs
        try:
            return func(*args, **kwargs)
        finally:
            self.active = True


_MAKE_FLOATS = {torch.zeros, torch.ones, torch.rand, torch.randn, torch.empty, torch.linspace, torch.eye}
_MAKE_TENSORS = _MAKE_FLOATS | {torch.arange, torch.full, torch.randint, torch.randperm, torch.tensor}


@contextmanager
def outside() -> Iterator[None]:
    """Suspend :func:`isolated` in this thread while the block runs the model."""
    mode = _entered[-1] if _entered else None
    if mode is None or not mode.active or mode.thread != threading.get_ident():
        yield
        return
    mode.active = False
    mode.__exit__(None, None, None)
    try:
        yield
    finally:
        mode.__enter__()
        mode.active = True


@contextmanager
def _seeds_for_later_kept() -> Iterator[None]:
    """Restore the seed that PyTorch keeps for CUDA until CUDA is initialized."""
    waiting = getattr(torch.cuda, "_lazy_seed_tracker", None)  # private; if it is missing, the seed stays changed
    before = dict(vars(waiting)) if waiting is not None else {}
    try:
        yield
    finally:
        if waiting is not None:
            vars(waiting).update(before)


class OwnGradient(torch.autograd.Function):
    """``function(x)`` whose backward pass reaches only ``x``.

    FAB calls ``backward``, which would accumulate gradients in the parameters of ``function``. Both passes run
    :func:`outside`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the function and keep its graph."""
        with torch.enable_grad(), outside():
            ctx.x = x.detach().requires_grad_()
            ctx.value = function(ctx.x)
        if not ctx.value.requires_grad:
            raise ValueError("model must be differentiable in its input, but its result has no gradient")
        value: Tensor = ctx.value.detach()
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        """Differentiate; the package may do so once per class."""
        with outside():
            (gradient,) = torch.autograd.grad(ctx.value, ctx.x, v, retain_graph=True)
        check_gradient(gradient)
        return gradient, None


def check_gradient(gradient: Tensor) -> None:
    """Raise if the gradient is not finite: the package replaces NaN by 0, and the sample would look robust."""
    if not bool(torch.isfinite(gradient).all()):
        raise NotFiniteError("the gradient of the model is NaN or infinite")


class Wrapped(nn.Module):
    """The model as the package sees it: float32 in and out, logits checked and free to be overwritten."""

    def __init__(self, model: Model, dtype: torch.dtype, called: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.model, self.dtype, self.called = model, dtype, called

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of ``x``, which may be outside [0, 1] by a rounding error of the package."""
        self.called()
        if not (x.requires_grad and torch.is_grad_enabled()):
            with outside():
                return self._logits(x)
        logits: Tensor = OwnGradient.apply(x, self._logits)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return logits_of(self.model, x.to(self.dtype).clamp(0, 1), labels).float().clone()


def as_float32(images: Tensor) -> Tensor:
    """A copy for the package: float32, and contiguous since the package takes views of it."""
    return images.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def check_size(images: Tensor, norm: str) -> None:
    """Refuse images too small for the package's Square; in the L2 norm its first pattern must fit."""
    height, width = images.shape[2:]
    reason = _square_fails(height, width, norm)
    if reason is not None:
        raise ValueError(
            f"images must have a size that Square of the package pyautoattack supports, got {height} x {width} for "
            f"norm={norm!r} ({reason}): pad them inside the model, or leave Square out"
        )


@functools.cache
def _square_fails(height: int, width: int, norm: str) -> str | None:
    """Try it with 25 queries, whose squares have all sizes of the schedule for 10,000."""
    attack = package("square").SquareAttack(_Constant(), n_queries=25, eps=0.1, norm=NORMS[norm], seed=0)
    cpu = torch.device("cpu")
    try:
        with isolated(cpu), torch.no_grad():
            attack.perturb(torch.zeros(1, 1, height, width), torch.zeros(1, dtype=torch.int64))
    except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return None


class _Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]], device=x.device).repeat(len(x), 1)
