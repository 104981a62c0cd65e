"""Sphinx's settings. The build reads nothing from the network."""

import os
import warnings

os.environ.setdefault("TQDM_DISABLE", "1")

from skpbas import __version__

project = "skpbas"
author = "The skpbas developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
root_doc = "index"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# ":eq:`7`" and the numbers in the margin are those of the paper: method.rst labels its twelve equations in order.
math_number_all = False
math_eqref_format = "Eq. {number}"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "image_scrapers": ("matplotlib",),
    "within_subsection_order": "FileNameSortKey",
}
warnings.filterwarnings("ignore", message=".*non-interactive, and thus cannot be shown.*")

html_theme = "pydata_sphinx_theme"
html_title = f"skpbas {version}"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False
