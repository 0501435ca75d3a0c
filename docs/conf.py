"""Settings of the documentation's generator, Sphinx: `make docs` builds the pages, and nothing is fetched for it."""

import os
import sys
from pathlib import Path

import pursamere

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Pursamere"
author = "Pursamere contributors"
release = version = pursamere.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "mathml",
    "api_pages",
    "repository_files",
]
exclude_patterns = ["_extensions"]

# Pages are Markdown that reads well on GitHub, too: headings are link targets, and $...$ and blocks of math are
# mathematics.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

# Notebooks are executed in a temporary folder, and an error in a cell fails the build. Nobody sees progress bars there.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "no-value": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Optional attributes", "params_style")]
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"Pursamere {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_math_renderer = "mathml"
