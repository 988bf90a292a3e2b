"""Sphinx: `make docs` builds with warnings as errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from xsalt import __version__

project = "xsalt"
author = "xsalt authors"
copyright = "2026, xsalt authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "xsalt"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
autodoc_preserve_defaults = True
suppress_warnings = ["ref.python"]  # the builtin `type` in annotations, where classes have fields of that name
napoleon_google_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True
