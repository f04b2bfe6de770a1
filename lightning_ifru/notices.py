"""Warnings that name a line of the user's, and none of ours or Lightning's."""

from __future__ import annotations

import sys

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

_OURS = ("lightning_ifru", "lightning", "contextlib")


def warn(message: str) -> None:
    """Warn of something, on the first process: at the line of the user's that called, or without one.

    There is none on the command line, which says it as it says the rest.
    """
    frame, above = sys._getframe(0), 0
    while frame.f_back is not None and _module(frame).partition(".")[0] in _OURS:
        if _module(frame) == "lightning_ifru.cli":
            return rank_zero_info(message)
        frame, above = frame.f_back, above + 1
    rank_zero_warn(message, stacklevel=4 + above)  # the first four are those of this very call
    return None


def _module(frame: object) -> str:
    return str(getattr(frame, "f_globals", {}).get("__name__", ""))
