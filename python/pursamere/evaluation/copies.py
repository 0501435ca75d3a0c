"""What copies of a model with another gradient require of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursamere.stepping import IterativePurifier

__all__ = ["check_copyable", "record_gradients"]


def record_gradients(purifier: IterativePurifier) -> set[str]:
    """Return a set to which every call of the purifier adds its gradient."""
    seen: set[str] = set()
    forward = purifier.forward

    def recording(x: Tensor, gradient: str = "exact", **others: Any) -> Tensor:
        seen.add(gradient)
        return forward(x, gradient, **others)

    purifier.forward = recording  # type: ignore[method-assign]
    return seen


def check_copyable(name: str, module: nn.Module) -> None:
    """Refuse a module whose instance has its own ``forward`` or was compiled: its copies would call the original."""
    for attribute in ("forward", "_call_impl", "_compiled_call_impl"):
        if vars(module).get(attribute) is not None:
            how = (
                "was compiled" if attribute == "_compiled_call_impl" else f"has {attribute!r} assigned to the instance"
            )
            raise TypeError(
                f"{name} {how}, which its copies with other gradients would not have; override forward in a subclass, "
                "use a hook, or evaluate it uncompiled"
            )
