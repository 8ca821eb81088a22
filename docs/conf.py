"""How Sphinx makes a site of these pages; script/docs starts it. The order of the pages is that of docs/index.md."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

LINK = re.compile(r"\]\(([\w./-]+)\.md\)")
ROOT_PAGE = "README"

project = "hutch"
extensions = ["myst_parser"]
root_doc = ROOT_PAGE
myst_heading_anchors = 4  # as forges make them, so that a link that works here works there
html_title = "hutch"
html_theme_options = {"description": "Isolated development workspaces from one file", "page_width": "70rem"}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False


def navigation(index: str) -> str:
    """A table of contents with every page that the index links to; Sphinx complains of one that it does not."""
    linked = (posixpath.normpath(f"docs/{link}") for link in LINK.findall(index))
    pages = [page for page in dict.fromkeys(["docs/index", *linked]) if page != ROOT_PAGE]
    return "\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```", ""])


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Forges show pages as they are, so none of them holds Sphinx's own words."""
    if page == ROOT_PAGE:
        source[0] += navigation(Path(app.srcdir, "docs/index.md").read_text(encoding="utf-8"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
