"""What copies of a model with other gradients need."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pursamere.stepping import IterativePurifier


def record_gradients(purifier: IterativePurifier) -> set[str]:
    """Return a set that gets the gradient of every call of the purifier."""
    seen: set[str] = set()
    forward = purifier.forward

    def recording(x: Tensor, gradient: str = "exact", **others: Any) -> Tensor:
        seen.add(gradient)
        return forward(x, gradient, **others)

    purifier.forward = recording  # type: ignore[method-assign]
    return seen


def check_copyable(name: str, module: nn.Module) -> None:
    """Refuse a module that calls something of its own instance, which in a copy would still be that of the module."""
    for attribute in ("forward", "_call_impl", "_compiled_call_impl"):
        if vars(module).get(attribute) is not None:
            how = (
                "was compiled" if attribute == "_compiled_call_impl" else f"has {attribute!r} assigned to the instance"
            )
            raise TypeError(
                f"{name} {how}, which its copies with other gradients would not have; override forward in a subclass, "
                "use a hook, or evaluate it uncompiled"
            )
