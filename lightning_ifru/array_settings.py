"""Which of a data module's hyper-parameters are data themselves, so that they are no part of what is written."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from torch_geometric.data.data import BaseData


def holds_data(value: Any, source: Any = None) -> bool:
    """Return whether a hyper-parameter is data: arrays, or something made of arrays or lists.

    That is whatever has the form of an array (tensors, frames, series), PyG's graphs, mappings of lists, lists and
    mappings of any of these, and the columns of ``source`` themselves. Paths, names, numbers, and lists and mappings
    of these are settings.

    Args:
        value: the hyper-parameter.
        source: the data module's source.

    Example:
        >>> holds_data({"user": [1, 2]}), holds_data([np.arange(2)]), holds_data("ratings.csv"), holds_data([64, 64])
        (True, True, False, False)
    """
    columns = source.values() if isinstance(source, Mapping) else ()
    if isinstance(value, BaseData) or (hasattr(value, "__array__") and not isinstance(value, np.generic)):
        return True
    if any(value is column for column in columns):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(one, (list, tuple, range, Set)) or holds_data(one, source) for one in value.values())
    return isinstance(value, (list, tuple, Set)) and any(holds_data(one, source) for one in value)
