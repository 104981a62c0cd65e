"""Equations as MathML, which browsers draw themselves: pages need no script and no connection.

docutils converts them. An equation that it does not understand is a warning at its place, and an error under ``-W``.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

_log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(_mathml(node, displayed=False))
    raise nodes.SkipNode


def _displayed(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(_mathml(node, displayed=True) + "\n</div>\n")
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, displayed: bool) -> str:
    try:
        return str(tex2mathml(node.astext(), as_block=displayed))
    except MathError as error:
        _log.warning("equation %r: %s", node.astext(), error, location=node)
        return f"<code>{node.astext()}</code>"
