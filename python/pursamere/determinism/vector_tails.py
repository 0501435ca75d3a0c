"""Finds elementwise functions whose last bits depend on where in a tensor an element stands.

On a CPU, PyTorch computes them in vectors, and the elements that fill none, at the end of a thread's share, by other
code, which may round otherwise. In batches of another size these are other elements. They are few, and differ rarely,
so comparing results does not show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .watching import WatchingMode

__all__ = ["elements_fill_vectors"]

_VECTORS = 128  # bytes that are computed at a time, at most: two vectors of AVX512
_SHARE = 32768  # elements, of which a thread gets at least so many (TensorIterator's grain size)
_GELU, _GELU_ALONE = ("gelu", "gelu_backward"), 16384  # which has shares of its own: beyond, all threads take part
# Elementwise functions without PyTorch's tag.
_UNTAGGED = frozenset(
    (
        *("celu", "elu_backward", "glu", "glu_backward", "hardsigmoid_backward", "hardswish", "hardswish_backward"),
        *("log_sigmoid_backward", "log_sigmoid_forward", "logit_backward", "mish_backward", "softplus_backward"),
    )
)
# Correctly rounded, or no arithmetic, so that all code gives the same bits.
_EXACT = frozenset(
    (
        *(
            "_to_copy",
            "abs",
            "add",
            "bitwise_and",
            "bitwise_not",
            "bitwise_or",
            "ceil",
            "clamp",
            "clamp_max",
            "clamp_min",
        ),
        *("clone", "copysign", "div", "eq", "floor", "ge", "gt", "isfinite", "isinf", "isnan", "le", "logical_and"),
        *("logical_not", "logical_or", "lt", "masked_fill", "maximum", "minimum", "mul", "ne", "neg", "reciprocal"),
        *("relu", "round", "rsqrt", "rsub", "sgn", "sign", "signbit", "sqrt", "square", "sub", "threshold_backward"),
        *("trunc", "where"),
    )
)


def elements_fill_vectors(functions: Sequence[Callable[[], object]], rows: int, *, constants: bool) -> bool:
    """Whether all elements of the tensors that a network computes elementwise are computed by the same code.

    Args:
        functions: two that run it eagerly on the CPU, on different images.
        rows: the number of its rows.
        constants: whether values that do not depend on the images, such as those of a noise level, are the same in all
            calls, so that comparing results shows what their code does.

    Returns:
        False also for a network whose operations can't be seen (TorchScript).
    """
    found: list[list[Tensor]] = []
    for function in functions:
        tails = _Tails(rows)
        try:
            with tails:
                function()
        except Exception:  # raised again where the network runs unwatched
            return False
        if not tails.found:
            return True
        if not constants:
            return False
        found.append(tails.found)
    return len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


class _Tails(WatchingMode):
    """Collects the results of elementwise functions that do not fill vectors."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.found: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at its results."""
        result = func(*args, **(kwargs or {}))
        name, kwargs = func._schema.name.partition("::")[2].rstrip("_"), kwargs or {}
        if _rounds(func, name, kwargs):
            # Of a list, which operands belong to which result is not known. In place, its functions return None.
            results = args[0] if result is None and args else result
            listed = isinstance(results, (list, tuple))
            operands = [] if listed else [*args, *kwargs.values()]
            for each in results if listed else [results]:
                floating = isinstance(each, Tensor) and each.is_floating_point()
                if floating and not self._fills_vectors(each, operands, name):
                    self.found.append(each.detach().clone())
        return result

    def _fills_vectors(self, result: Tensor, operands: Sequence[object], name: str) -> bool:
        count, vector = result.numel(), _VECTORS // result.element_size()
        if count % self.rows:
            return True  # not of the images
        threads = min(torch.get_num_threads(), math.ceil(count / _SHARE))
        if name in _GELU and count > _GELU_ALONE:
            threads = torch.get_num_threads()
        share = math.ceil(count / max(1, threads))
        if _is_one_run(result, operands):
            return count % vector == 0 and (threads <= 1 or share % vector == 0)
        # Other layouts are computed in runs within a row, which end at the same places in every row unless a thread's
        # share ends there, or in runs of several rows.
        row = count // self.rows
        whole_rows = all(map(self._has_rows_outermost, (result, *_tensors(operands))))
        return whole_rows and row % vector == 0 and (threads <= 1 or share % row == 0)

    def _has_rows_outermost(self, tensor: Tensor) -> bool:
        if tensor.numel() % self.rows:
            return True  # the same for all rows
        return tensor.ndim > 0 and tensor.shape[0] == self.rows and tensor.stride(0) == max(tensor.stride())


def _tensors(operands: Sequence[object]) -> list[Tensor]:
    return [each for each in operands if isinstance(each, Tensor) and each.numel() > 1]


def _is_one_run(result: Tensor, operands: Sequence[object]) -> bool:
    """Whether all elements are computed in the order of memory, in one loop."""
    dense = result.is_contiguous() or (result.ndim == 4 and result.is_contiguous(memory_format=torch.channels_last))
    tensors = _tensors(operands)
    same = ((each.shape, each.stride()) == (result.shape, result.stride()) for each in tensors)
    return dense and bool(tensors) and all(same)


def _rounds(func: Any, name: str, kwargs: dict[str, Any]) -> bool:
    elementwise = torch.Tag.pointwise in func.tags or name in _UNTAGGED or name.startswith("_foreach_")
    return elementwise and (name.removeprefix("_foreach_") not in _EXACT or kwargs.get("alpha", 1) != 1)
