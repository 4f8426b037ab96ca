"""How the documentation is built: ``make docs``. Needs no network."""

from __future__ import annotations

from importlib.util import find_spec

import annbatch

project = "annbatch"
author = "The annbatch developers"
copyright = "The annbatch developers"  # noqa: A001
version = release = annbatch.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "sphinx_book_theme"
html_title = "annbatch"
# The search box is in the side bar.
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}
html_static_path = ["_static"]
html_css_files = ["annbatch.css"]
html_show_sourcelink = False
templates_path: list[str] = []
exclude_patterns = ["_build", "versus"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Types stand in the text of the docstrings; signatures show names and defaults.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": False}
# So that the page of AnnDataModule needs neither Lightning nor torch.
autodoc_mock_imports = [] if find_spec("lightning") else ["lightning"]
# The class docstring documents __init__.
autoclass_content = "class"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# A reference to a name of ours that does not exist is an error. Names of other libraries are left as text: looking them up
# would need the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"^(?!annbatch\b).*")]
# A pattern may match nothing: pages that a release does not have.
suppress_warnings = ["toc.empty_glob"]
