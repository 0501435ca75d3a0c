"""Gradients of a purification that autograd does not record: along its path (equation M9), or another function's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._differentiable_once import differentiable_once
from ._eager import check_eager
from .determinism import Snapshot, check_evaluation_mode

__all__ = ["ExactGradient", "GradientOf"]


class ExactGradient(torch.autograd.Function):
    """``value``, the result of a path [B, T + 1, *] from ``x``, with its vector-Jacobian product along the path.

    ``purifier`` is a :class:`pursamere.IterativePurifier`, ``mode`` its mode for derivatives, and ``before`` its
    snapshot after the forward pass: a module may count its calls.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, path: Tensor, value: Tensor, purifier: Any, mode: Any, before: Snapshot) -> Tensor:
        """Return the value."""
        ctx.save_for_backward(x, path)
        ctx.purifier, ctx.mode = purifier, mode
        ctx.before = before
        device = x.device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        return value.clone()  # not a view, which could not be changed in place

    @staticmethod
    @differentiable_once(
        "the gradient through a purifier can be differentiated again with gradient='unrolled' only, not with "
        "'exact' or 'straight_through'"
    )
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        """Run every step again and pull the gradient back through it."""
        check_eager(v)
        x, path = ctx.saved_tensors
        check_evaluation_mode("denoiser", ctx.purifier.denoiser)
        if not ctx.before.still_holds(ctx.purifier):
            raise RuntimeError(
                "the denoiser, or a module, tensor or public attribute of it or of the purifier, was changed or "
                "replaced between the forward and backward pass, so the gradient would be another network's; "
                "gradient='unrolled' allows it"
            )
        with torch.autocast(**ctx.autocast):  # recompute under the autocast state of the forward pass
            return ctx.purifier._pull_back(ctx.mode, x.detach(), path, v), *[None] * 5


class GradientOf(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        """Return the value."""
        return value.clone()  # not a view, which could not be changed in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient to the source."""
        return grads[0], None
