"""Parts of a document between markers, which a command makes anew; the prose around them is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping


def fill(document: str, kind: str, made: Mapping[str, str]) -> str:
    r"""Put texts between ``<!-- KIND: NAME -->`` and ``<!-- end -->``.

    Args:
        document: the text with the markers.
        kind: the word that the markers of one command begin with; those of others are left alone.
        made: the texts by name.

    Raises:
        ValueError: If a marker's name is not known, or a text has no marker.

    Example:
        >>> fill("Prose. <!-- rows: one -->\nold <!-- end -->", "rows", {"one": "new"})
        'Prose. <!-- rows: one -->\n\nnew\n\n<!-- end -->'
    """
    section = re.compile(rf"(<!-- {kind}: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    names = [match[2] for match in section.finditer(document)]
    if odd := sorted(set(names) ^ set(made)):
        raise ValueError(
            f"the document and the sections differ in {odd}; write '<!-- {kind}: NAME -->', '<!-- end -->'."
        )
    return section.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n\n{match[3]}", document)
