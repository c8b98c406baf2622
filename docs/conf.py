"""The site: `make site` builds it with Sphinx from the pages that GitHub shows, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import builder  # noqa: E402

project = "Robust Filter Lens"
author = copyright = "The Robust Filter Lens authors"
release = version = builder.__version__
html_title = f"{project} {release}"

extensions = ["myst_parser"]
exclude_patterns = ["README.md"]  # index.md includes it
myst_enable_extensions = ["dollarmath", "tasklist"]
myst_fence_as_directive = ["math"]  # as GitHub does
myst_heading_anchors = 4
nitpicky = True
smartquotes = False  # which make one dash of --full

html_theme = "furo"
html_theme_options = {"light_css_variables": {"color-brand-primary": "#0072B2"}}
html_show_sphinx = False
html_copy_source = False
html_permalinks_icon = "#"
html_math_renderer = "mathml"

logger = getLogger(__name__)


def _write_math(tag: str, display: bool) -> Any:
    def write(writer: Any, node: Any) -> None:
        try:
            formula = tex2mathml(node.astext(), as_block=display)
        except MathError as e:
            logger.warning("formula: %s", e, location=node)
        else:
            writer.body.append(f'<{tag} class="math">{formula}</{tag}>')
        raise SkipNode

    return write


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers show without a script from elsewhere; CSV as it is."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_write_math("span", False), None),
        block_renderers=(_write_math("div", True), None),
    )
    app.add_lexer("csv", TextLexer)
