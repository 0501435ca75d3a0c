"""The report as one self-contained HTML file, rendered from its Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

from pursamere._extras import require

__all__ = ["html_page"]

_IMAGE = re.compile(r'(<img alt="[^"]*" src=")([a-z]+\.png)"')
# A second line of defense: whatever slips into the page can neither run nor load anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; background: #fff; color: #1f2328;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; padding-bottom: .2rem; border-bottom: 1px solid #d1d9e0; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
h1 + p { padding: .8rem 1rem; background: #f6f8fa; border-left: 4px solid #0969da; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1.2rem; font-size: .82rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #e4e8ec; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #d1d9e0; white-space: nowrap; }
td:first-child, td[style*="right"] { white-space: nowrap; }
td.pass { color: #1a7f37; }
td.warn { color: #cf222e; font-weight: 600; }
img { display: block; max-width: 100%; margin: .8rem auto; }
code { font: .82rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { padding: .7rem 1rem; background: #f6f8fa; white-space: pre-wrap; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; }
  tr, img, pre { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""


def html_page(title: str, text: str, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        title: plain text.
        text: Markdown with tables; anything that users wrote is escaped in it.
        pictures: contents of the PNG files that it refers to, by file name.
    """
    body = require("markdown", extra="evaluation").markdown(text, extensions=["tables"])

    def embed(match: re.Match[str]) -> str:
        return f'{match[1]}data:image/png;base64,{base64.b64encode(pictures[match[2]]).decode()}"'

    # Both patterns contain an angle bracket, which escaped text cannot.
    body = _IMAGE.sub(embed, body)
    for word in ("pass", "warn"):
        body = body.replace(f"<td><strong>{word}</strong></td>", f'<td class="{word}">{word}</td>')
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            body,
            "</body>",
            "</html>",
            "",
        ]
    )
