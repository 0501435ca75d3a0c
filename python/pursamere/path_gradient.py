"""Gradients through the purifier's steps (equation M9) and other gradients for the same value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ._differentiable_once import differentiable_once
from ._eager import check_eager
from .objective import GradientTerms


class PathGradient(torch.autograd.Function):
    """``value``, what a path [B, T + 1, *] from ``x`` leads to, with the gradient ``pull_back(x, path, v)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, path: Tensor, value: Tensor, pull_back: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Keep the input and the path; nothing of the network's graph is kept."""
        ctx.save_for_backward(x, path)
        ctx.pull_back = pull_back
        kind = x.device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        return value.view_as(value)

    @staticmethod
    @differentiable_once(
        "the gradient through a purifier can be differentiated again with gradient='unrolled' only, not with "
        "'exact' or 'straight_through'"
    )
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, None]:
        """Go back along the path."""
        check_eager(v)
        x, path = ctx.saved_tensors
        with torch.autocast(**ctx.autocast):  # the steps run again as they ran
            return ctx.pull_back(x.detach(), path, v), None, None, None


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


def pull_back_path(
    initial: Callable[[Tensor], Tensor],
    step: Callable[[int, Tensor, Tensor], Tensor],
    result: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    path: Tensor,
    v: Tensor,
) -> Tensor:
    """Return the gradient with respect to x of <v, result(s_T, x)>, where s_{t+1} = step(t, s_t, x), s_0 = initial(x).

    Every step runs again from the s_t that is kept, with its graph, and is differentiated by itself, so there is never
    more than one step's graph. With a step of M8 its two backward passes through the network are the Hessian-vector
    products of M9.

    Args:
        initial: differentiable.
        step: differentiable in the two tensors, or independent of the second.
        result: likewise.
        x: [B, *].
        path: s_0, ..., s_T, [B, T + 1, *].
        v: [B, *].
    """
    start = x.clone().requires_grad_()
    to_start = torch.zeros_like(v)
    functions: list[Callable[[Tensor, Tensor], Tensor]]
    functions = [*(partial(step, t) for t in range(path.shape[1] - 1)), result]
    for function, kept in zip(reversed(functions), reversed(path.unbind(dim=1)), strict=True):
        state = kept.clone().requires_grad_()
        v, through_start = torch.autograd.grad(function(state, start), (state, start), v, materialize_grads=True)
        to_start = to_start + through_start
    (through_initial,) = torch.autograd.grad(initial(start), start, v)
    return through_initial + to_start


def unprojected_step(x: Tensor, terms: GradientTerms, step_rule: str, step_size: float) -> Tensor:
    """Return x - step_size u(g), the descent of M8 without ball and box."""
    if step_rule == "sign":
        return x - step_size * terms.per_draw.sum(0).sign()
    if step_rule == "unit":  # up by a negative length
        moved: Tensor = torch.ops.pursamere.accumulate_ascend(x, terms.per_draw, terms.direct, -step_size)[0]
        return moved
    gradient = terms.per_draw.sum(0) if terms.direct is None else terms.per_draw.sum(0) + terms.direct
    return x - step_size * gradient
