"""Text tables, lists in messages, and escaping of unprintable text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as an aligned table with the first row as its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Quote and join names, at most ``most`` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def radius(eps: float) -> str:
    """A radius in pixel units, with the multiple of 1/255 that it equals, if it does."""
    short, parts = f"{eps:.4g}", round(eps * 255)
    return f"{short} ({parts}/255)" if float(short) != eps and abs(parts / 255 - eps) < 1e-6 else short


def printable(text: object) -> str:
    """Put ``text`` on one line and escape unprintable characters, which file names may contain."""
    joined = " ".join(str(text).split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in joined)
