"""What all figures share: their colours, and how they get into a page."""

from __future__ import annotations

import base64
import io

import matplotlib
from matplotlib.figure import Figure

#: The colours of what was before an unlearning and of what is after it.
BEFORE, AFTER = "#ee8866", "#4477aa"


def embedded(figure: Figure) -> str:
    """Return a figure as a ``data:`` address that stands for itself in a page.

    Example:
        >>> embedded(Figure()).partition(",")[0]
        'data:image/svg+xml;base64'
    """
    buffer = io.BytesIO()
    # The same report is the same page: no date, and no random names within the drawing.
    with matplotlib.rc_context({"svg.hashsalt": "lightning-ifru"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
