"""API pages from ``__all__``: every module starts with a table of its public names."""

import inspect
import re
import sys
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer


def table(module: ModuleType, elsewhere: set[str]) -> list[str]:
    """A summary of what a module exports, without its submodules, which have pages of their own.

    Constants of a package's modules can't be found by their names in the package, so its page names them.
    Names in ``elsewhere`` are described on the page of the package that defines them.
    """
    constants = {name for _, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs()}
    rows = []
    for name in module.__all__:
        described = getattr(module, name)
        if name in elsewhere:
            rows.append(f"{package_of(described)}.{name}")
        elif inspect.isclass(described) or inspect.isroutine(described) or name in constants:
            rows.append(name)
    return ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {row}" for row in rows), ""]


def package_of(described: Any) -> str:
    """The package whose module defines a class or a function."""
    home = sys.modules[described.__module__]
    return home.__name__ if hasattr(home, "__path__") else home.__name__.rpartition(".")[0]


def process(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """Add the table to a module, and escape the star of shapes such as [B, *], which is no emphasis."""
    lines[:] = [re.sub(r"(?<=[\[ ])\*(?=\w*[],])", r"\\*", line) for line in lines]
    if what == "module":
        lines += table(described, options.get("exclude-members") or set())


def skip_field(app: Sphinx, what: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out fields of named tuples: the class's docstring has them, and theirs is "Alias for field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
