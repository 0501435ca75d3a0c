"""What every attack of the package pyautoattack needs around it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pursamere._extras import require
from pursamere._validation import NotFiniteError

NORMS = {"linf": "Linf", "l2": "L2"}
_ONE_AT_A_TIME = threading.RLock()


def package(module: str) -> Any:
    """A module of pyautoattack."""
    return require(f"pyautoattack.{module}", extra="evaluation")


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Keep what the package does inside the block, and what it did before, from having effects elsewhere.

    It seeds PyTorch's global generators and draws from them, makes tensors on the default device (inside the block,
    ``device``), ends the caller's tracing (a debugger's, a coverage tool's), and counts the calls by which it
    recognizes a dynamic defense in a dictionary of its module, which it never
    resets. One thread at a time is let in, since generators and dictionary belong to the process.
    """
    calls = package("checks").funcs
    with _ONE_AT_A_TIME:
        counted, trace = dict(calls), sys.gettrace()
        calls.update(dict.fromkeys(calls, 0))
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        try:
            with device, _seeds_for_later_kept(), torch.random.fork_rng(devices=devices), torch.inference_mode(False):
                yield
        finally:
            sys.settrace(trace)
            calls.update(counted)


@contextmanager
def _seeds_for_later_kept() -> Iterator[None]:
    """Undo that a seed for all devices also waits for CUDA to be initialized, where it has not been."""
    waiting = getattr(torch.cuda, "_lazy_seed_tracker", None)  # private: where it is missing, the seed stays
    before = dict(vars(waiting)) if waiting is not None else {}
    try:
        yield
    finally:
        if waiting is not None:
            vars(waiting).update(before)


class OwnGradient(torch.autograd.Function):
    """``function(x)``, of which the backward pass reaches ``x`` alone.

    FAB calls ``backward``, which would leave gradients in every parameter behind ``function``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the function with its graph."""
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.value = function(ctx.x)
        if not ctx.value.requires_grad:
            raise ValueError("model must be differentiable in its input, but its result has no gradient")
        value: Tensor = ctx.value.detach()
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        """Differentiate; the package may ask for one class after the other."""
        (gradient,) = torch.autograd.grad(ctx.value, ctx.x, v, retain_graph=True)
        check_gradient(gradient)
        return gradient, None


def check_gradient(gradient: Tensor) -> None:
    """The package takes NaN for a zero, so that the attack would stand still and the sample look robust."""
    if not bool(torch.isfinite(gradient).all()):
        raise NotFiniteError("the gradient of the model is NaN or infinite")


def as_float32(images: Tensor) -> Tensor:
    """The package works in float32."""
    return images.detach().to(torch.float32, copy=True)
