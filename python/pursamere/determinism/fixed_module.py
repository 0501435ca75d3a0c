"""Modules that stay as they were constructed."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FixedModule", "copy_with"]


class _Constructor(ABCMeta):
    """Fixes the attributes of an instance once its ``__init__``, with those of its subclasses, has returned."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        module = super().__call__(*args, **kwargs)
        module._fixed = frozenset(name for name in (*vars(module), *module._modules) if name != "training")
        return module

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of ``__init__``, which ``inspect.signature`` would otherwise replace with that of ``__call__``."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class FixedModule(nn.Module, metaclass=_Constructor):
    """A module in evaluation mode whose attributes are read-only after construction.

    Settings are checked by the constructor and a network's determinism once, so neither can change later. Not fixed are
    methods, parameters, buffers, attributes added after construction, and attributes whose names begin with ``_``.
    Subclasses call ``self.eval()`` once their submodules are set.
    """

    _fixed: frozenset[str] | None = None  # names, once the constructor has returned

    def train(self, mode: bool = True) -> Self:
        """Switch to evaluation mode whatever ``mode`` is: attack libraries save a model's mode and restore it."""
        return super().train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_change(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse_change(name)
        super().__delattr__(name)

    def _refuse_change(self, name: str) -> None:
        if self._fixed is None or name.startswith("_"):
            return
        default = getattr(type(self), name, None)  # of the class, if it is no method
        if name in self._fixed or (default is not None and not callable(default)):
            kind = type(self).__name__
            raise AttributeError(f"{kind}.{name} is read-only: construct a new {kind} with another {name}")

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        replica._fixed = None  # torch.nn.parallel.replicate sets its submodules
        return replica


_Module = TypeVar("_Module", bound=nn.Module)


def copy_with(module: _Module, **changes: Any) -> _Module:
    """Return a shallow copy of a module with other attributes or submodules, which are not checked."""
    copy = object.__new__(type(module))  # copy.copy refuses a module with parametrizations
    vars(copy).update({name: dict(v) if name == "_modules" else v for name, v in vars(module).items()})
    for name, value in changes.items():
        (copy._modules if name in copy._modules else vars(copy))[name] = value
    return copy
