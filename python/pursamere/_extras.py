"""Optional dependencies: imported where they are used, with an error that says how to install them."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A package of an extra is not installed, or cannot be loaded; the message names the extra."""


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or raise a ``MissingExtraError`` that names the extra of the distribution that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # Only the package itself being absent (or unloadable) is cured by the extra, so keep the original reason.
        raise MissingExtraError(
            f"{module.partition('.')[0]} is needed here and could not be imported ({error}); "
            f'install it with: pip install "pursamere[{extra}]"'
        ) from error
