"""Configuration of Sphinx. The site needs no network, neither to be built nor to be read."""

import pathlib
import re
import sys
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

import pdeopt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import generate

project = "pdeopt"
author = "The pdeopt developers"
copyright = "the pdeopt developers"
version = release = pdeopt.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "benchmarks", "examples", "recorded"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "pdeopt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Single backticks in docstrings name Python objects.
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # several names may stand in one line
napoleon_use_rtype = False

_DIGIT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)(\d)")
# A bar, or an underscore at the end of a word, unless it stands between backticks.
_REFERENCE = re.compile(r"(``.+?``|`[^`]+`)|(\||(?<=\w)_(?!\w))")
_logger = logging.getLogger(__name__)


def render_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    r"""Write a formula as MathML, which browsers render themselves.

    The converter of docutils reads \frac12 as a fraction of the number 12, hence the braces.
    """
    block = isinstance(node, nodes.math_block)
    latex = _DIGIT_FRACTION.sub(r"\1{\2}{\3}", node.astext())
    try:
        mathml = latex2mathml.tex2mathml(latex, as_block=block)
    except Exception as error:  # a warning names the page, and ends the build
        _logger.warning("formula cannot be converted (%s): %s", error, latex, location=node)
        mathml = translator.encode(latex)
    tag = "div" if block else "span"
    translator.body.append(f'<{tag} class="math">{mathml}</{tag}>')
    raise nodes.SkipNode


def prepare_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a docstring reStructuredText: | and name_ are no references, "Collective: yes." is a field of its own."""
    result: list[str] = []
    inside = False
    for line in lines:
        line = _REFERENCE.sub(lambda match: match[1] or f"\\{match[2]}", line)
        inside = line.startswith("Collective: ") or (inside and line.strip() != "")
        if line.startswith("Collective: "):
            result += ["", ""]  # two blank lines end a section for napoleon
            line = f":{line}"
        elif inside:
            line = f"   {line}"
        result.append(line)
    lines[:] = result


def fill_in_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Put generated text into a page before it is parsed."""
    source[0] = generate.fill_in(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the demos' pages and hook into the build."""
    generate.write_demo_pages(pathlib.Path(app.srcdir) / "demos")
    app.add_html_math_renderer("mathml", (render_math, None), (render_math, None))
    app.connect("source-read", fill_in_page)
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)  # napoleon's is 500
    return {"parallel_read_safe": True}
