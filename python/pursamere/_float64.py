"""Runs a network in float64, whatever its dtype."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["InFloat64"]


class InFloat64(TorchFunctionMode):
    """Context manager in which this thread's operations convert floating-point arguments to float64.

    Raises:
        RuntimeError: an operation writes to a tensor of another dtype.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Convert the arguments, and results that were requested in another dtype."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written = kwargs.get("out", args[0] if args and _is_write(name) else None)
        if _widened(written) is not written:
            raise RuntimeError(f"{name} writes to a tensor of another dtype")
        converted = [_widened(value) for value in args]
        result = func(*converted, **{key: _widened(value) for key, value in kwargs.items()})
        if func in _CONVERSIONS and _widened(result) is not result:
            return converted[0].to(result.device)
        return _widened(result) if func in _FACTORIES else result


# add_ (which is also += here) and __setitem__, but not __add__
_is_write = re.compile(r"[a-z]\w*[a-z0-9]_|__setitem__").fullmatch
_CONVERSIONS = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as)
_FACTORIES = (
    torch.arange,
    torch.empty,
    torch.eye,
    torch.full,
    torch.linspace,
    torch.logspace,
    torch.ones,
    torch.scalar_tensor,
    torch.tensor,
    torch.zeros,
)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.double()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_widened, value)) if type(value) in (tuple, list) else value
    return value
