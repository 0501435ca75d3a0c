"""The Markdown pages, and their code blocks with the comments that say how to test them.

Comments directly before a block, invisible on the page, are

    <!-- not executed: the reason -->
    <!-- needs: module, module -->      (executed where these modules can be imported)
    <!-- setup
    code that is executed before the block
    -->
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_COMMENT = r"<!-- (?:(?!-->)[\s\S])*-->\n"
_BLOCK = re.compile(
    rf"(?P<comments>(?:^{_COMMENT})*)^(?P<fence>```+)(?P<language>.*)\n(?P<code>(?:.*\n)*?)(?P=fence)$", re.M
)


@dataclass(frozen=True)
class Block:
    """A code block. ``line`` is the number of the line above its first one."""

    page: str
    line: int
    language: str
    code: str
    setup: str = ""
    skipped: str | None = None  # why it isn't executed

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks_of(page: str) -> list[Block]:
    text = text_of(page)
    found = []
    for match in _BLOCK.finditer(text):
        setup, skipped = "", None
        for comment in re.findall(r"<!-- ((?:(?!-->)[\s\S])*)-->", match["comments"]):
            if comment.startswith("setup\n"):
                setup += comment.removeprefix("setup\n")
            skipped = skipped or _reason(comment.strip())
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(page, line, match["language"].strip(), match["code"], setup, skipped))
    return found


def _reason(comment: str) -> str | None:
    """Why a comment keeps the block after it from being executed here, if it does."""
    kind, _, told = comment.partition(": ")
    if kind == "not executed":
        return told
    if kind == "needs":
        missing = [name for name in told.split(", ") if importlib.util.find_spec(name) is None]
        return f"no module {', '.join(missing)}" if missing else None
    return None


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block, or those after ``$`` in a block that shows output, each as one line."""
    lines = re.sub(r"\\\n\s*", " ", block.code).splitlines()
    if block.language != "sh":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]
