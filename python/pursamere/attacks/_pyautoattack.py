"""What every attack of the package pyautoattack needs around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._extras import require
from pursamere._validation import NotFiniteError

NORMS = {"linf": "Linf", "l2": "L2"}


def package(module: str) -> Any:
    """A module of pyautoattack."""
    return require(f"pyautoattack.{module}", extra="evaluation")


@contextmanager
def caller_undisturbed(model: object) -> Iterator[None]:
    """Undo what the package does beside attacking.

    It seeds PyTorch's global generators, ends the caller's tracing (a debugger's, a coverage tool's), and FAB leaves
    gradients in the model's parameters.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    trace = sys.gettrace()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
            yield
    finally:
        sys.settrace(trace)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def check_gradient(gradient: Tensor) -> None:
    """The package takes NaN for a zero, so that the attack would stand still and the sample look robust."""
    if not bool(torch.isfinite(gradient).all()):
        raise NotFiniteError("the gradient of the model is NaN or infinite")


def as_float32(images: Tensor) -> Tensor:
    """The package works in float32."""
    return images.detach().to(torch.float32, copy=True)
