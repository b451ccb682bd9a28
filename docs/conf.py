"""The site: python -m sphinx -W -b html docs build/site."""

import pathlib
import sys

import segmenter_jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))

project = "segmenter_jax"
copyright = "the authors of segmenter_jax"
version = release = segmenter_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated",
]
html_theme = "furo"
html_title = "segmenter_jax"

# A block without a language is shell, here as in the tests of the documentation.
highlight_language = "bash"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Attributes are said once, in the docstring of their class.
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
