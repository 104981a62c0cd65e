"""Sphinx's settings. The build reads nothing from the network."""

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from skpbas import __version__

project = "skpbas"
author = "The skpbas developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "transcript",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "_static", "_templates", "**/_generated"]
root_doc = "index"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# ":eq:`7`" and the numbers in the margin are those of the paper: method.rst labels its twelve equations in order.
html_math_renderer = "mathml"  # pages are read without a connection
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
    "within_subsection_order": "gallery_order.LessonOrder",
}
warnings.filterwarnings("ignore", message=".*non-interactive, and thus cannot be shown.*")

html_theme = "pydata_sphinx_theme"
html_title = f"skpbas {version}"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": []}
html_static_path = ["_static"]
html_css_files = ["skpbas.css"]
html_show_sourcelink = False
