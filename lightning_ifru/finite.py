"""Numbers that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> Any:
    """Return a value with ``None`` in place of every number that is not finite, at any depth of mappings and lists.

    Example:
        >>> finite({"norms": [0.5, math.inf], "steps": 3})
        {'norms': [0.5, None], 'steps': 3}
    """
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
