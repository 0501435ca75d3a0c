"""Tables for a terminal, lists in messages, and text made safe to show."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first row being the header, with a rule below it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names in quotes, the first ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def printable(text: object) -> str:
    """``text`` on one line: a file name may hold line breaks, terminal escapes or bytes that are no text at all."""
    joined = " ".join(str(text).split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in joined)
