"""Links to Markdown files outside of this folder: the site offers the file, as it does for files of other types."""

import os
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


def offer_files(app: Sphinx, doctree: nodes.document) -> None:
    """Turn links to documents outside of the source folder into downloads."""
    source, docname = Path(app.srcdir), app.env.docname
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link.get("refdomain") != "doc":
            continue
        path = Path(os.path.normpath(source / f"{link['reftarget']}.md"))
        if path.is_relative_to(source) or not path.is_file():
            continue
        target = os.path.relpath(path, source / Path(docname).parent)
        download = addnodes.download_reference("", "", *link.children, refdoc=docname, reftarget=target)
        download["filename"] = app.env.dlfiles.add_file(docname, os.path.relpath(path, source)).as_posix()
        link.replace_self(download)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect it."""
    app.connect("doctree-read", offer_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
