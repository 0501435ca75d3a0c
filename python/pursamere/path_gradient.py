"""Gradients through the purifier's steps (equation M9) and other gradients for the same value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .objective import GradientTerms


class PathGradient(torch.autograd.Function):
    """The last point of a path [B, T + 1, *] from ``x``, with the gradient that ``pull_back(path, v)`` gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, path: Tensor, pull_back: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Keep the path; nothing of the network's graph is kept."""
        ctx.save_for_backward(path)
        ctx.pull_back = pull_back
        kind = x.device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        return path[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        """Go back along the path."""
        (path,) = ctx.saved_tensors
        with torch.autocast(**ctx.autocast):  # the steps run again as they ran
            return ctx.pull_back(path, v), None, None


class GradientOf(torch.autograd.Function):
    """The value of the second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        """Return the value."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Hand the gradient to the source."""
        return grads[0], None


def pull_back_path(step: Callable[[Tensor, Tensor], Tensor], path: Tensor, v: Tensor) -> Tensor:
    """Return the gradient with respect to x_0 of <v, x_T>, for x_{t+1} = step(x_t, x_0).

    Every step runs again from the x_t that is kept, with its graph, and is differentiated by itself, so there is never
    more than one step's graph. With a step of M8 its two backward passes through the network are the Hessian-vector
    products of M9.

    Args:
        step: differentiable in both arguments, or independent of the second.
        path: x_0, ..., x_T, [B, T + 1, *].
        v: [B, *].
    """
    start = path[:, 0].clone().requires_grad_()
    to_start = torch.zeros_like(v)
    for kept in reversed(path[:, :-1].unbind(dim=1)):
        x = kept.clone().requires_grad_()
        v, through_start = torch.autograd.grad(step(x, start), (x, start), v, materialize_grads=True)
        to_start = to_start + through_start
    return v + to_start


def unprojected_step(x: Tensor, terms: GradientTerms, step: str, step_size: float) -> Tensor:
    """Return x - step_size u(g), the descent of M8 without ball and box."""
    if step == "sign":
        return x - step_size * terms.per_draw.sum(0).sign()
    if step == "unit":  # up by a negative length
        moved: Tensor = torch.ops.pursamere.accumulate_ascend(x, terms.per_draw, terms.direct, -step_size)[0]
        return moved
    gradient = terms.per_draw.sum(0) if terms.direct is None else terms.per_draw.sum(0) + terms.direct
    return x - step_size * gradient
