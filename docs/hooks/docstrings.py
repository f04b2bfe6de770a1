"""Docstrings in Sphinx's markup as Markdown, for mkdocstrings: roles, ``.. math::`` blocks and simple tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import griffe

_ROLE = re.compile(r":(?P<role>[a-z]+):`(?P<hidden>~?)(?P<text>[^`]+)`")
_MATH = re.compile(r"^(?P<indent> *)\.\. math::(?P<line>.*)\n(?P<block>(?:(?P=indent) +\S.*\n|\s*\n)*)", re.MULTILINE)
_TABLE = re.compile(r"^(?P<rule>=+(?:  +=+)+)\n(?P<head>.+)\n(?P=rule)\n(?P<body>(?:.+\n)+?)(?P=rule)$", re.MULTILINE)
_TOGETHER = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+)(?P<text>: .+\n(?:(?P=indent) +.+\n)*)", re.MULTILINE)

Resolve = Callable[[str], str]


class Markdown(griffe.Extension):
    """Rewrites the docstrings of a package once it is loaded, when names can be resolved."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, lambda name: _path(obj, name))


def markdown(text: str, resolve: Resolve) -> str:
    """Return a docstring as Markdown.

    Args:
        text: The docstring.
        resolve: Gives the full path of a name in it.
    """
    text = _TABLE.sub(_table, _MATH.sub(_equation, text + "\n"))
    # Arguments and attributes described together, each with its own type.
    text = _TOGETHER.sub(
        lambda found: "".join(found["indent"] + n + found["text"] for n in found["names"].split(", ")), text
    )
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)Source: ", r"\1**Source:** ", text, flags=re.MULTILINE)
    return _ROLE.sub(lambda found: _role(found, resolve), text).rstrip("\n")


def _role(found: re.Match[str], resolve: Resolve) -> str:
    text = found["text"]
    if found["role"] == "math":
        return f"${text}$"
    shown = text.rpartition(".")[2] if found["hidden"] else text
    # Optional: what the site does not describe is shown as code, without a link.
    return f'<autoref optional identifier="{resolve(text)}"><code>{shown}</code></autoref>'


def _equation(found: re.Match[str]) -> str:
    indent, lines = found["indent"], [found["line"], *found["block"].splitlines()]
    latex = " ".join(line.strip() for line in lines if line.strip())
    return f"{indent}$$\n{indent}{latex}\n{indent}$$\n\n"


def _table(found: re.Match[str]) -> str:
    starts = [rule.start() for rule in re.finditer("=+", found["rule"])]
    spans = list(zip(starts, [*starts[1:], None], strict=True))

    def cells(line: str) -> list[str]:
        return [line[low:high].strip() for low, high in spans]

    rows = [cells(found["head"]), ["---"] * len(spans)]
    for line in found["body"].splitlines():
        row = cells(line)
        if row[0]:
            rows.append(row)
        else:  # the row before goes on
            rows[-1] = [f"{above} {below}".strip() for above, below in zip(rows[-1], row, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _path(obj: griffe.Object, name: str) -> str:
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name
