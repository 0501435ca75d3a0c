"""Whether autograd differentiates a function rightly: its derivative along a direction against finite differences.

Autograd goes wrong without a word where a part of a network is detached, or has a backward pass that is itself detached
or was written for one derivative only: what it misses it takes for zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

Function = Callable[[Tensor], Tensor]
Point = tuple[Tensor, Tensor]


REMEDY = (
    "direction='ere' differentiates the denoiser twice for an exact gradient, direction='score' once, and "
    "gradient='identity' never. A network has no second derivative if torch.compile compiled it (pass the uncompiled "
    "one); if it checkpoints activations by an autograd function of its own, as guided-diffusion's attention always "
    "does, or with use_reentrant=True (turn that off, or use torch.utils.checkpoint with use_reentrant=False); or if a "
    "part of it, of attention say, has a backward pass written for one derivative (use another implementation)"
)


class Agreement(NamedTuple):
    """How far autograd and finite differences agree.

    Attributes:
        error: their difference, relative to the finite difference.
        uncertainty: that of the finite difference, by twice its step.
        dtype: of the computation.
    """

    error: float
    uncertainty: float
    dtype: torch.dtype

    @property
    def is_known(self) -> bool:
        """Whether the finite difference is good enough to say anything."""
        return self.uncertainty < _RELIABLE

    @property
    def is_wrong(self) -> bool:
        """Whether autograd's derivative is wrong beyond rounding."""
        return self.is_known and self.error > max(_TOLERANCE, 3 * self.uncertainty)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"relative difference {self.error:.2g}, uncertainty {self.uncertainty:.2g}, in {dtype}"


_RELIABLE = 0.03
_TOLERANCE = 0.01
# In pixel units. In float64 so small that no ReLU's kink is likely to lie between the points, unless a part of the
# network computes in float32 and the differences drown in its rounding.
_STEPS = {torch.float64: (1e-7, 1e-5, 1e-3), torch.float32: (1e-3, 1e-2)}


def compare_derivatives(function: Function, points: Sequence[Point], *, convert: bool = True) -> Agreement | None:
    """Return how far autograd and finite differences agree, or ``None`` where they can't be compared and needn't be.

    A wrong derivative is wrong everywhere, while a finite difference may by chance be bad at one point, so one point at
    which they agree is enough. They are compared in float64, whatever the network's dtype, if all operations allow.
    Where one doesn't, they are compared in float32 if there is a custom autograd function in the graph; PyTorch's own
    derivatives are trusted then, since a ReLU's kinks would drown the difference.

    Args:
        function: from images [B, C, H, W] to a tensor, differentiable; called with gradients enabled.
        points: where to compare: images [B, C, H, W], and a direction of the same shape and of about the size of the
            pixels' range.
        convert: whether to try float64; not for networks that torch.compile would compile again.

    Raises:
        Whatever ``function`` and its derivative raise in the dtype of the points.
    """
    agreement = _in_float64(function, points) if convert else None
    x, _ = points[0]
    if (agreement is not None and agreement.is_known) or x.dtype not in _STEPS:
        return agreement
    result = function(x.clone().requires_grad_())
    return _first_agreement(function, points) if any(_custom_nodes(result)) else None


def _in_float64(function: Function, points: Sequence[Point]) -> Agreement | None:
    try:
        with _InFloat64():
            return _first_agreement(function, [(x.double(), direction.double()) for x, direction in points])
    except Exception:  # an operation without float64, which is an error of any kind
        return None


def _first_agreement(function: Function, points: Sequence[Point]) -> Agreement:
    """The first that is known and not wrong; else the surest."""
    found: list[Agreement] = []
    for x, direction in points:
        for step in _STEPS[x.dtype]:
            near, far = (_difference(function, x, direction, factor * step) for factor in (1, 2))
            size = float(torch.linalg.vector_norm(near))
            along = near / size if size > 0 else torch.ones_like(near)  # along itself a difference has its whole length
            leaf = x.clone().requires_grad_()
            result = function(leaf)  # anew: a network that checkpoints, or is compiled, may run its graph once
            with explained_derivative():
                (pulled,) = torch.autograd.grad(result, leaf, along)
            scale = max(size, torch.finfo(x.dtype).tiny)
            error = abs(float((pulled * direction).sum()) - size) / scale
            found.append(Agreement(error, float(torch.linalg.vector_norm(near - far)) / scale, x.dtype))
            if found[-1].is_known and not found[-1].is_wrong:
                return found[-1]
    return min(found, key=lambda agreement: agreement.uncertainty)


def _difference(function: Function, x: Tensor, direction: Tensor, step: float) -> Tensor:
    above, below = (function((x + sign * step * direction).requires_grad_()).detach() for sign in (1, -1))
    return (above - below) / (2 * step)


@contextmanager
def explained_derivative() -> Iterator[None]:
    """Inside the block, which differentiates a denoiser, an error of autograd's says what to change."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(f"the denoiser can't be differentiated as this needs: {error}. {REMEDY}") from error


def graph_nodes(result: Tensor) -> set[Any]:
    """All nodes of the graph of a tensor that requires a gradient."""
    pending: list[Any] = [get_gradient_edge(result).node]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [function for function, _ in node.next_functions]
    return seen


def _custom_nodes(result: Tensor) -> Iterator[Any]:
    """The autograd functions in a tensor's graph that are neither PyTorch's nor this library's."""
    for node in graph_nodes(result):
        custom = isinstance(node, BackwardCFunction) or "CppNode" in node.name()
        if custom and "_pursamere_" not in type(node).__name__:
            yield node


class _InFloat64(TorchFunctionMode):
    """Inside the block, this thread's operations on floating tensors run in float64; the tensors stay as they are.

    Raises:
        RuntimeError: an operation writes to a tensor of another dtype.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Convert the arguments, and results that were asked for in another dtype."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if _is_write(name) and args and _widened(args[0]) is not args[0]:
            raise RuntimeError(f"{name} writes to a {args[0].dtype} tensor")
        converted = [_widened(value) for value in args]
        result = func(*converted, **{key: _widened(value) for key, value in kwargs.items()})
        if func in _CONVERSIONS and _widened(result) is not result:
            return converted[0].to(result.device)
        return result


# add_ (which is also += here) and __setitem__, but not __add__
_is_write = re.compile(r"[a-z]\w*[a-z0-9]_|__setitem__").fullmatch
_CONVERSIONS = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.double()
    if isinstance(value, (tuple, list)):
        return type(value)(map(_widened, value)) if type(value) in (tuple, list) else value
    return value
