"""Detects operations that draw from PyTorch's global random state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .watching import WatchingMode

__all__ = ["NoRandomNumbers", "RandomNumbersError", "without_random_numbers"]

_Result = TypeVar("_Result")


class RandomNumbersError(RuntimeError):
    """A network drew random numbers."""


def without_random_numbers(name: str, function: Callable[[], _Result]) -> _Result:
    """Return ``function()``, which runs the network ``name``; raise ``RandomNumbersError`` if it draws any."""
    try:
        with NoRandomNumbers(name):
            return function()
    except RandomNumbersError:
        raise
    except Exception:  # TorchScript makes calls that a dispatch mode can't forward; other errors are raised again
        return function()


class NoRandomNumbers(WatchingMode):
    """Context manager in which operations of this thread that draw from PyTorch's global random state raise.

    It watches operations, not the state, from which other threads may draw meanwhile. Operations that are given a
    ``torch.Generator`` are allowed.

    Args:
        name: the network that runs inside, for the message.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, unless it is random."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            raise RandomNumbersError(
                f"the {self.name} drew random numbers from PyTorch's global state (by {func}), so its results are not "
                "repeatable; switch it to evaluation mode, or fix its noise"
            )
        return func(*args, **kwargs)


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operation that can be random draws random numbers."""
    arguments = func._schema.arguments
    given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    values = {a.name: given.get(a.name, a.default_value) for a in arguments}
    if values.get("generator") is not None:
        return False
    probability = values.get("dropout_p", values.get("dropout", values.get("p") if "dropout" in str(func) else None))
    return probability != 0 and values.get("train") is not False and values.get("training") is not False
