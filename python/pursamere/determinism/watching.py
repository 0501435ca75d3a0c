"""A dispatch mode that watches the operations of its thread alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WatchingMode"]


class WatchingMode(TorchDispatchMode):
    """Like the base class, but without its process-wide flags.

    Overlapping threads would leave them set, and torch.compile would then run networks uncompiled from there on.
    """

    def __enter__(self) -> Self:
        """Start watching this thread."""
        _push_mode(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        _pop_mode()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let the operations of torch.compile itself through."""
        return True
