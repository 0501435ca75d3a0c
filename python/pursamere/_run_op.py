"""Calls the compiled ops with little overhead."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["innermost_transform", "may_be_differentiated", "run_op"]

# Private to PyTorch, which uses them in its own Python layer for derivatives. Without them the ops are only slower.
_below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
innermost_transform = getattr(torch._C._functorch, "peek_interpreter_stack", None)


def run_op(op: Any, *arguments: Any) -> Any:
    """Return ``op(*arguments)``, bypassing PyTorch's Python layer for derivatives if none is needed.

    That layer takes several microseconds, as long as a small op itself.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        if may_be_differentiated(arguments) or _below_autograd is None:
            return op(*arguments)
        with _below_autograd():
            return op(*arguments)
    except RuntimeError as error:
        _raise_if_out_of_memory(error, arguments)
        raise


def _raise_if_out_of_memory(error: RuntimeError, arguments: tuple[Any, ...]) -> None:
    """Raise PyTorch's own error, ``torch.OutOfMemoryError`` on CUDA, whose type the stable ABI loses."""
    missing = re.search(r"could not allocate a tensor of shape \[([\d, ]*)\] with (\d) bytes per value", str(error))
    if missing is None:
        return
    shape = [int(size) for size in missing[1].split(",") if size]
    dtype = {2: torch.float16, 4: torch.float32, 8: torch.float64}[int(missing[2])]
    like = next(a for a in arguments if isinstance(a, Tensor))
    try:
        torch.empty(shape, dtype=dtype, device=like.device)
    except RuntimeError as torch_error:
        raise torch_error from error


def may_be_differentiated(arguments: tuple[Any, ...]) -> bool:
    """Whether a derivative may be needed; errs on the side of yes."""
    # Inside a torch.func transform or a forward-mode level, requires_grad says nothing. torch.compile can't trace this.
    if not torch.compiler.is_compiling() and (
        innermost_transform is None
        or innermost_transform() is not None
        or getattr(forward_ad, "_current_level", 0) >= 0
    ):
        return True
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
