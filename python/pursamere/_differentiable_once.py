"""Backward passes that raise if they are differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["differentiable_once"]


def differentiable_once(message: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the ``backward`` of an autograd function so that differentiating its results raises ``message``.

    ``torch.autograd.function.once_differentiable`` is not enough: its error node is not connected to the inputs, so
    ``torch.autograd.grad`` with respect to these never reaches it and returns zero.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def run(ctx: Any, *grads: Tensor) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            inputs = (*ctx.saved_tensors, *grads)
            single = not isinstance(results, tuple)
            refused = tuple(
                _Refuse.apply(message, result, *inputs) if isinstance(result, Tensor) else result
                for result in ((results,) if single else results)
            )
            return refused[0] if single else refused

        return run

    return decorate


class _Refuse(torch.autograd.Function):
    """``value``; differentiating it with respect to any of the inputs is an error."""

    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *inputs: Tensor) -> Tensor:
        ctx.message = message
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.message)
