"""How `make docs` turns these pages into a site: Sphinx with MyST, no network, warnings are errors."""

import re

project = "statepool"
author = "The statepool authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "statepool"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# The drawings in code blocks are plain text, and some shell lines hold characters that no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
html_show_copyright = False
html_copy_source = False

CONTENTS = "\n\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def prepare(_app, name, content):
    """Give the front page its table of contents, and name the files outside of this folder without a link."""
    content[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", content[0])
    if name == "index":
        content[0] += CONTENTS


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", prepare)
