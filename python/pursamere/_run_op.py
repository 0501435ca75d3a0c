"""Calling the compiled ops with little overhead."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Private to PyTorch, but what its own Python layer for derivatives enters too. Without it the ops are only slower.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)


def run_op(op: Any, *arguments: Any) -> Any:
    """Return ``op(*arguments)``, without PyTorch's Python layer for derivatives where no derivative is asked for.

    That layer takes several microseconds, as long as a small op itself.

    Raises:
        NotImplementedError: an argument has a forward-mode tangent, which PyTorch would silently drop.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    if getattr(forward_ad, "_current_level", -1) >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        raise NotImplementedError(f"{op} has no forward-mode derivative: use reverse mode (torch.autograd.grad)")
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return op(*arguments)
    with _below_autograd():
        return op(*arguments)
