"""Gives an op its shapes for ``torch.compile`` and its derivative.

Reverse mode only: forward-mode tangents and ``torch.func`` are refused, since PyTorch would drop them silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl  # private, but what register_autograd consists of
from torch.autograd import forward_ad

__all__ = ["refuse_derivative", "register"]

_library = torch.library.Library("pursamere", "IMPL")
_innermost_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)  # private to PyTorch


def register(
    name: str,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register ``torch.ops.pursamere.<name>``'s fake kernel and, if it has a backward, its derivative.

    Args:
        name: of an op that the compiled module defines.
        fake: returns empty tensors of the shapes and dtypes of the results, from the op's arguments.
        setup_context: ``(ctx, inputs, output)``, saves what ``backward`` needs.
        backward: ``(ctx, *gradients)``, returns the gradients of the inputs, by differentiable operations.
    """
    torch.library.register_fake(f"pursamere::{name}", fake)
    if backward is None:
        return
    op = getattr(torch.ops.pursamere, name).default
    with_derivative = make_autograd_impl(op, Info(backward, setup_context))

    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        # The level is given because torch.compile does not know the current one here.
        if any(isinstance(a, Tensor) and forward_ad.unpack_dual(a, level=0).tangent is not None for a in args):
            raise NotImplementedError(f"{op} has no forward-mode derivative: use reverse mode (torch.autograd.grad)")
        if _differentiated_by_functorch():
            raise NotImplementedError(f"{op} has no derivative in torch.func: use torch.autograd.grad")
        return with_derivative(keyset, *args, **kwargs)

    _library.impl(name, run, "Autograd", with_keyset=True)


def refuse_derivative(*_: Any, **__: Any) -> None:
    """Raise: the ``setup_context`` and ``backward`` of an op whose results must not be taken for constants."""
    raise NotImplementedError("this op has no derivative: call the ops that it fuses")


def _differentiated_by_functorch() -> bool:
    transform = _innermost_transform()
    return transform is not None and transform.key() == torch._C._functorch.TransformType.Grad
