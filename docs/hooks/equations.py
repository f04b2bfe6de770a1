"""Equations as MathML, which browsers render by themselves: a page needs no script and no network for them."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert

# As pymdownx.arithmatex leaves them, with generic=True.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
# A power of a binomial is the power of all of it; latex2mathml would give it to the bracket.
_BINOMIAL = re.compile(r"\\binom\{[^{}]*\}\{[^{}]*\}")
_TAG = re.compile(r"\\tag\{(.*?)\}")
#: How many parts these have, or browsers show an error.
_PARTS = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
# What latex2mathml takes for identifiers, so that it stands without its space.
_OPERATORS = {"<mi>;</mi>": '<mo separator="true">;</mo>', "<mi>&#x029F5;</mi>": "<mo>&#x2216;</mo>"}


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations of a page, those of docstrings included."""
    return _INLINE.sub(_inline, _DISPLAY.sub(_display, content))


def mathml(latex: str, display: str = "inline") -> str:
    """Return LaTeX as MathML.

    Raises:
        ValueError: a command is unknown, which the result would show as text, or the result is no MathML.
    """
    braced = _BINOMIAL.sub(lambda found: f"{{{found[0]}}}", " ".join(html.unescape(latex).split()))
    math = convert(braced, display=display)
    for got, wanted in _OPERATORS.items():
        math = math.replace(got, wanted)
    unknown = re.search(r">\\[a-zA-Z]+<", math)
    if unknown:
        raise ValueError(f"the equation {latex!r} has the unknown command {unknown[0][1:-1]}; write it otherwise.")
    for element in ElementTree.fromstring(math).iter():
        name = element.tag.rpartition("}")[2]
        if len(element) != _PARTS.get(name, len(element)):
            raise ValueError(f"the equation {latex!r} gives an {name} of {len(element)} parts; write it otherwise.")
    return math


def _inline(found: re.Match[str]) -> str:
    return f'<span class="arithmatex">{mathml(found[1])}</span>'


def _display(found: re.Match[str]) -> str:
    tag = _TAG.search(found[1])
    number = f'<span class="equation-number">({tag[1]})</span>' if tag else ""
    return f'<div class="arithmatex">{mathml(_TAG.sub("", found[1]), "block")}{number}</div>'
