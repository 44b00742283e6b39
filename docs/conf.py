"""How Sphinx makes the site of this folder; `scripts/docs` calls it."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import cutnmix_jax  # noqa: E402

project = "cutnmix_jax"
author = "the authors of cutnmix_jax"
project_copyright = f"2026, {author}"
version = release = cutnmix_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # the site needs no network, its formulas included
    "rows",
]
exclude_patterns = ["_build"]
nitpicky = True  # a name that leads nowhere is a warning, and warnings are errors
# What is not ours, and names of types that stand for others.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|numpy|collections|os|pathlib|signal|typing)\..*|Split|Tree|Views|Terms|ImageShape")
]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_notebooks.py runs them; they are kept with their output

smartquotes = False  # `--list` is no dash
default_role = "code"  # what docstrings put between backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "cutnmix_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "navbar_persistent": [],  # a second search field otherwise
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
