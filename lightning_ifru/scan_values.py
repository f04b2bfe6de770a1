"""Ids in nested values, as checkpoints, JSON and YAML hold them: by the names above them, whole columns at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_ifru.ids import id_text
from lightning_ifru.needles import Found, Kind, Needles

_PLAIN = (str, int, float, bool, type(None))


class Hit(NamedTuple):
    """Where in a value something was found, and which entries how often."""

    where: str
    found: Found


def look_through(value: Any, needles: Needles, skip: Set[str] = frozenset()) -> Iterator[Hit]:
    """Yield where in nested dicts, lists, arrays and tensors the ids stand.

    Args:
        value: what to look through.
        needles: the ids.
        skip: places, as in :class:`Hit`, not to look at.

    Example:
        >>> from lightning_ifru.request import UnlearningRequest
        >>> needles = Needles(UnlearningRequest(users=[7], interactions=[("a", 8)]))
        >>> state = {"steps": 7, "users": {"ids": [5, 7]}, "source": {"user": ["a", "b"], "item": [8, 8]}}
        >>> [(where, dict(found)) for where, found in look_through(state, needles)]
        [('source', {1: 1}), ('users.ids', {0: 1})]
    """
    waiting: list[tuple[str, Any, Kind | None]] = [("", value, None)]
    seen: set[int] = set()  # their numbers stay theirs, for all are parts of the value
    hits: dict[str, Found] = {}  # by their place, of which a list of records has few
    while waiting:
        where, node, kind = waiting.pop()
        if where in skip or id(node) in seen:
            continue
        if not isinstance(node, _PLAIN):
            seen.add(id(node))
        if isinstance(node, Mapping):
            found = needles.in_values(list(node), kind)
            found |= _pairs_in(node, where, skip, needles)
            plain = [part for part in node.values() if isinstance(part, _PLAIN)]
            nothing = not needles.in_values(plain, None)  # asked at once, for records have many fields
            for key, part in node.items():
                under = needles.kind_of(key) or (kind if _is_plain_id(key) else None)
                if not (_is_empty(part) or (nothing and under is None and isinstance(part, _PLAIN))):
                    waiting.append((_below(where, key, needles), part, under))
        elif isinstance(node, (list, tuple, Set)):
            found = needles.in_values([part for part in node if isinstance(part, _PLAIN)], kind)
            found |= _pairs_listed(node, where, needles)
            below = f"{where}[]"
            waiting += [(below, part, kind) for part in node if not (isinstance(part, _PLAIN) or _is_empty(part))]
        elif isinstance(node, (torch.Tensor, np.ndarray)):
            found = _in_array(node, kind, needles)
        elif isinstance(node, (bytes, bytearray)):
            found = needles.in_bytes(bytes(node), text=False)
        else:
            found = needles.in_values([node], kind)
        if found:
            hits.setdefault(where or "the top", Found()).update(found)
    yield from itertools.starmap(Hit, hits.items())


def _in_array(value: torch.Tensor | np.ndarray[Any, Any], kind: Kind | None, needles: Needles) -> Found:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            entries = value.detach().to_sparse_coo().coalesce()
            return _in_array(entries.indices(), None, needles) | _in_array(entries.values(), kind, needles)
        if value.dtype in _COARSE:
            return _in_array(value.float(), kind, needles) if kind and value.is_floating_point() else Found()
        # A part of a tensor is written with all of the tensor.
        whole = torch.empty(0, dtype=value.dtype).set_(value.detach().cpu().untyped_storage())
        return _in_array(whole.numpy(), kind, needles)
    if value.dtype.kind in "OUS":
        return needles.in_values([part for part in value.flatten().tolist() if isinstance(part, _PLAIN)], kind)
    if value.dtype == np.uint8:
        return needles.in_bytes(value.tobytes(), text=False)
    return needles.in_numbers(value.reshape(-1), kind)


def _pairs_in(value: Mapping[Any, Any], where: str, skip: Set[str], needles: Needles) -> Found:
    """Pairs in a record with a user and an item, and in two columns beside each other."""
    if len(value) < 2:
        return Found()
    kinds = ((needles.kind_of(key), key) for key in value)
    columns = {kind: value[key] for kind, key in kinds if kind and _below(where, key, needles) not in skip}
    if not {"user", "item"} <= columns.keys():
        return Found()
    users, items = (_texts(columns[kind]) for kind in ("user", "item"))
    return needles.in_pairs(users, items) if len(users) == len(items) else Found()


def _pairs_listed(value: Sequence[Any] | Set[Any], where: str, needles: Needles) -> Found:
    """Pairs in a list of lists of two."""
    pairs = [tuple(_texts(part)) for part in value if isinstance(part, (list, tuple)) and len(part) == 2]
    if where.rpartition(".")[2] == "interactions":
        return needles.in_pairs([pair[0] for pair in pairs if pair], [pair[1] for pair in pairs if pair])
    telling = [pair for pair in pairs if len(pair) == 2 and needles.is_telling_pair((pair[0], pair[1]))]
    return needles.in_pairs(*zip(*telling, strict=True)) if telling else Found()


def _texts(column: Any) -> list[str]:
    if isinstance(column, (torch.Tensor, np.ndarray)):
        column = column.tolist() if column.ndim == 1 else []
    if isinstance(column, (str, int, float)):
        return [id_text(column)]
    if not isinstance(column, (list, tuple)) or not all(isinstance(part, _PLAIN) for part in column):
        return []
    return [id_text(part) for part in column]


def _below(where: str, key: Any, needles: Needles) -> str:
    """The place below a key, which may itself be an id and is then left out."""
    name = "…" if needles.in_values([key], None) or not isinstance(key, (str, int)) else str(key)
    return f"{where}.{name}".lstrip(".")


def _is_empty(part: Any) -> bool:
    return isinstance(part, (dict, list, tuple)) and not part


def _is_plain_id(key: Any) -> bool:
    return isinstance(key, str) and key.casefold() in ("id", "ids")


#: What no long number fits into, or what numpy does not know.
_COARSE = {torch.bool, torch.bfloat16, torch.float16, torch.complex64, torch.complex128}
