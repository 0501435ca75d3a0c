"""Isolates samples on which a model or an attack is NaN from the rest of their batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from pursamere._validation import NotFiniteError

__all__ = ["in_halves", "nan_where_not_finite"]

T = TypeVar("T")


def in_halves(function: Callable[[Tensor], T], rows: Tensor) -> Iterator[tuple[Tensor, T | NotFiniteError]]:
    """Call ``function`` on rows; where it raises ``NotFiniteError``, on halves of them, down to single rows.

    Args:
        function: its result for a row must not depend on the other rows.
        rows: int64 [n]; for n = 0, ``function`` is not called.

    Yields:
        Parts of ``rows``, in order, with the function's result or, for a single row, its error.
    """
    if len(rows) == 0:
        return
    result: T | NotFiniteError
    try:
        result = function(rows)
    except NotFiniteError as error:
        if len(rows) > 1:
            for half in rows.tensor_split(2):
                yield from in_halves(function, half)
            return
        result = error
    yield rows, result


def nan_where_not_finite(function: Callable[[Tensor], Tensor], images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return ``function(images)``, [n, *shape] with n > 0; NaN for images on which it raises ``NotFiniteError``."""
    parts = in_halves(lambda rows: function(images[rows]), torch.arange(len(images), device=images.device))
    return torch.cat(
        [images.new_full((1, *shape), torch.nan) if isinstance(found, NotFiniteError) else found for _, found in parts]
    )
