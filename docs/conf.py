"""Sphinx settings: `make docs` builds the site into docs/_build/html without network access."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from jupyter_client import KernelManager

# Connections to the kernels that execute the pages are encrypted, since other users of a machine can read the loopback.
KernelManager.transport_encryption.default_value = "auto"

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))

project = "Kullback"
author = "The Kullback developers"
copyright = "The Kullback developers"
version = release = installed_version("kullback")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
    "docstrings",
    "generated_pages",
    "mathml",
]
exclude_patterns = ["_build", "extensions"]

# Pages: every code cell is executed at each build. An error in a cell is a warning, and `make docs` fails on warnings.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no scripts from other hosts

# The API reference: docstrings carry the types and shapes, so that signatures list names and defaults alone.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_admonition_for_examples = False
add_module_names = True
toc_object_entries_show_parents = "hide"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrt"
bibtex_reference_style = "author_year"

smartquotes_action = "D"  # dashes only: quotation marks and dots stay as in the code
highlight_language = "none"
html_theme = "furo"
html_title = f"Kullback {release}"
html_static_path = ["static"]
html_css_files = ["kullback.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
