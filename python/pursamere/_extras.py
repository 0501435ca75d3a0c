"""Optional dependencies: imported where they are used, with an error that says how to install them."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ImportError):
    """A package of an optional extra is missing or cannot be imported; the message names the extra."""


def require(module: str, *, extra: str) -> Any:
    """Import ``module``, or raise a ``MissingExtraError`` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # The extra helps only if the package itself is missing, so keep the original reason.
        raise MissingExtraError(
            f"{module.partition('.')[0]} is required and could not be imported ({error}); "
            f'install it with: pip install "pursamere[{extra}]"'
        ) from error
