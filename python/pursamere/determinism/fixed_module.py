"""Modules with read-only attributes."""

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
        module._fixed = module._fixed_names()
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

    def _fixed_names(self) -> frozenset[str]:
        """The attributes that are read-only: by default all that the constructors have set, those of subclasses too."""
        return frozenset((*vars(self), *self._modules)) - {"training"}

    def train(self, mode: bool = True) -> Self:
        """Switch to evaluation mode whatever ``mode`` is: attack libraries save a model's mode and restore it."""
        return super().train(False)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_change(name)
        super().__setattr__(name, value)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a module under a new name."""
        self._refuse_change(name)
        super().add_module(name, module)

    def __delattr__(self, name: str) -> None:
        self._refuse_change(name)
        super().__delattr__(name)

    def _refuse_change(self, name: str) -> None:
        if self._fixed is None or name.startswith("_"):
            return
        if name in self._fixed or self._is_default(name):
            kind = type(self).__name__
            raise AttributeError(f"{kind}.{name} is read-only: construct a new {kind} with another {name}")

    def _is_default(self, name: str) -> bool:
        """Whether it is an attribute, not a method, of one of the library's classes."""
        owner = next((kind for kind in type(self).__mro__ if name in vars(kind)), nn.Module)
        return owner.__module__.startswith("pursamere.") and not callable(getattr(type(self), name))

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
    forget: Any = getattr(copy, "_forget", None)
    if forget is not None:
        forget()
    return copy
