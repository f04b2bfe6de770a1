"""A clock for durations: it never goes backwards, also where that of the machine does."""

from __future__ import annotations

import time

_latest = 0.0


def ticks() -> float:
    """Return the seconds since some moment, never fewer than before in this process.

    Example:
        >>> since = ticks()
        >>> ticks() >= since
        True
    """
    global _latest  # noqa: PLW0603  # there is one time
    _latest = max(_latest, time.perf_counter())
    return _latest
