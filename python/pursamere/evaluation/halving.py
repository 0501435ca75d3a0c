"""How samples on which a model or an attack is NaN are told from the others of their batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from pursamere._validation import NotFiniteError

T = TypeVar("T")


def in_halves(function: Callable[[Tensor], T], rows: Tensor) -> Iterator[tuple[Tensor, T | NotFiniteError]]:
    """Call ``function`` on rows, and on halves of them where it raises ``NotFiniteError``, until that row is alone.

    Args:
        function: what it does for a row must not depend on the rows beside it.
        rows: int64 [n]; for n = 0 the function is not called.

    Yields:
        Parts of ``rows``, in order, and what the function returned for them, or the error for a single row.
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
    """Return ``function(images)``, [n, *shape] with n > 0, and NaN for images on which it raises ``NotFiniteError``."""
    parts = in_halves(lambda rows: function(images[rows]), torch.arange(len(images), device=images.device))
    return torch.cat(
        [images.new_full((1, *shape), torch.nan) if isinstance(found, NotFiniteError) else found for _, found in parts]
    )
