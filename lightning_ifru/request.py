"""What is to be forgotten, in the ids of whoever asks.

Ids are compared by their text: 42 and ``"42"`` name the same user, whether the data came from a file or from
arrays of integers.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import re
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_ifru.bounded import MAX_DIGITS, MAX_REQUEST, check_depth, id_flaw, opened, shown
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.ids import id_text
from lightning_ifru.sources import PARQUET, read_parquet_table, read_text_table

Pair = tuple[Any, Any]
LineKey = tuple[str, Hashable]
"""A kind (``"user"``, ``"item"``, ``"interaction"``) and the text of the id, or the pair of texts."""

_KINDS = {"users": "user", "items": "item", "interactions": "interaction"}
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


@dataclass(frozen=True, eq=False)
class UnlearningRequest:
    """What to forget: whole users, whole items and single interactions, in the data's own ids.

    Args:
        users: Ids of users to forget with everything they did; any iterable.
        items: Ids of items to forget with everything done to them; any iterable.
        interactions: ``(user, item)`` pairs; any iterable of pairs, or an array ``[n, 2]``.
        lines: In which line of its file each id stands; filled by :meth:`from_file`.
        rows: In which row of its Parquet file each id stands, the first being 0; filled by :meth:`from_file`.

    Raises:
        RequestError: If nothing is asked for, an id is missing, or the ids are not in an iterable.

    Example:
        >>> UnlearningRequest(users=[42]) | UnlearningRequest(users=["42"], items=["a"])
        UnlearningRequest(users=(42,), items=('a',), interactions=())
        >>> UnlearningRequest(users=[1, 2]) == UnlearningRequest(users=["2", "1"])
        True
    """

    users: Collection[Any] = ()
    items: Collection[Any] = ()
    interactions: Collection[Any] = ()
    lines: Mapping[LineKey, int] = field(default_factory=dict, repr=False)
    rows: Mapping[LineKey, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "users", _ids(self.users, "users"))
        object.__setattr__(self, "items", _ids(self.items, "items"))
        object.__setattr__(self, "interactions", _pairs(self.interactions))
        if not (self.users or self.items or self.interactions):
            raise RequestError("the request is empty; name at least one user, item or interaction to forget.")

    @functools.cached_property
    def texts(self) -> dict[LineKey, Any]:
        """Every id once, by kind and text, in the form in which it was given first."""
        texts: dict[LineKey, Any] = {}
        for kind, values in (("user", self.users), ("item", self.items)):
            for value in values:
                texts.setdefault((kind, id_text(value)), value)
        for user, item in self.interactions:
            texts.setdefault(("interaction", (id_text(user), id_text(item))), (user, item))
        return texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnlearningRequest):
            return NotImplemented
        return self.texts.keys() == other.texts.keys()

    def __hash__(self) -> int:
        return hash(frozenset(self.texts))

    def __or__(self, other: UnlearningRequest) -> UnlearningRequest:
        if not isinstance(other, UnlearningRequest):
            return NotImplemented
        texts = self.texts | {key: value for key, value in other.texts.items() if key not in self.texts}
        parts = {part: [value for (kind, _), value in texts.items() if kind == _KINDS[part]] for part in _KINDS}
        lines, rows = {**other.lines, **self.lines}, {**other.rows, **self.rows}
        return UnlearningRequest(**parts, lines=lines, rows=rows)

    def named(self, key: LineKey) -> str:
        """Return an entry as it was given and where, by its key in :attr:`texts`: ``"user 'x' (line 3)"``."""
        places = {"line": self.lines.get(key), "row": self.rows.get(key)}
        place = next((f" ({what} {number})" for what, number in places.items() if number is not None), "")
        value = self.texts[key]
        name = f"({', '.join(map(shown, value))})" if isinstance(value, tuple) else shown(value)
        return f"{key[0]} {name}{place}"

    def digest(self, key: bytes) -> str:
        """Return the HMAC-SHA256 of the request in hex, whatever the order, repetition and type of the ids.

        A plain hash could be reversed by trying all ids; this one only by who has the ``key`` (see
        :func:`~lightning_ifru.keys.digest_key`).

        Raises:
            RequestError: If the key is empty.

        Example:
            >>> one, other = UnlearningRequest(users=[1, 2]), UnlearningRequest(users=["2", 1, 1])
            >>> one.digest(b"k") == other.digest(b"k")
            True
        """
        if not key:
            raise RequestError("the digest's key is empty; pass at least one byte, or digest_key().")
        canonical = json.dumps(sorted([kind, text] for kind, text in self.texts), separators=(",", ":"))
        return hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()

    @classmethod
    def from_file(cls, path: str | Path, user: str = "user", item: str = "item") -> UnlearningRequest:
        """Read a request from a CSV, Parquet or JSON file, remembering the place of every id for later errors.

        Args:
            path: A CSV or Parquet file with the columns ``user`` and/or ``item`` (a row with both is an interaction,
                a row with one, the other blank or null, a whole user or item), or a JSON file ``{"users": [...],
                "items": [...], "interactions": [[user, item], ...]}``.
            user: Name of the table's column of users.
            item: Name of the table's column of items.

        Raises:
            RequestError: If the file cannot be read, or says nothing, or something else than a request.
        """
        path = Path(path)
        lines: dict[LineKey, int] = {}
        rows: dict[LineKey, int] = {}
        try:
            if path.suffix.lower() == ".json":
                parts, lines = _read_json(path)
            elif path.suffix.lower() == PARQUET:
                parts, rows = _read_table(read_parquet_table(path, MAX_REQUEST), user, item, "row")
            elif ".csv" in (suffix.lower() for suffix in path.suffixes):
                parts, lines = _read_table(read_text_table(path, MAX_REQUEST), user, item, "line")
            else:
                raise RequestError(
                    "this kind of file is not supported; write .csv (possibly compressed), .parquet or .json."
                )
            return cls(**parts, lines=lines, rows=rows)
        except (RequestError, DataError) as error:
            raise RequestError(f"the request file {path.name!r} is refused: {error}") from error


def _listed(values: Any, name: str, example: str) -> list[Any]:
    if hasattr(values, "tolist"):  # arrays, tensors and Series give Python's own numbers
        values = values.tolist()
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise RequestError(f"{name}={shown(values)} is a {type(values).__name__}, not a list; write {name}={example}.")
    return list(values)


def _ids(values: Any, name: str) -> tuple[Any, ...]:
    ids = _listed(values, name, f"[{shown(values)}]" if isinstance(values, (str, int)) else "[...]")
    for value in ids:
        _check_id(value, name)
    return tuple(ids)


def _pairs(values: Any) -> tuple[Pair, ...]:
    pairs = []
    for value in _listed(values, "interactions", "[(user, item), ...]"):
        pair = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise RequestError(f"interactions holds {shown(value)}, which is no pair; write [(user, item), ...].")
        for part in pair:
            _check_id(part, "interactions")
        pairs.append((pair[0], pair[1]))
    return tuple(pairs)


def _check_id(value: Any, name: str) -> None:
    missing = value is None or (isinstance(value, str) and not value)
    if missing or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"{name} holds a missing id ({value!r}); give every id or leave the entry out.")
    if not isinstance(value, Hashable) or isinstance(value, (tuple, bytes)):
        raise RequestError(f"{name} holds {shown(value)}, which is no id; ids are strings or numbers.")
    flaw = id_flaw(value) if isinstance(value, str) else None
    if flaw is not None:
        raise RequestError(f"{name} holds {shown(value)}, which {flaw}; give ids as they stand in the data.")


def _read_table(
    table: pd.DataFrame, user: str, item: str, what: str
) -> tuple[dict[str, list[Any]], dict[LineKey, int]]:
    """The parts of a request, and in which row of the table each entry stands; ``what`` a row is called."""
    names = [name for name in (user, item) if name in table.columns]
    if not names or user == item:
        joined = len(table.columns) == 1 and re.search(r"[;\t|]", str(table.columns[0]))
        remedy = (
            "separate the columns by commas" if joined else "rename them, or in Python name them by user= and item="
        )
        raise RequestError(
            f"wanted a column {user!r} or {item!r}, or both, but its columns are {shown(list(table.columns), 500)}; "
            f"{remedy}."
        )
    if len(names) == 1 and len(table.columns) > 1:
        # A misspelt column of items would otherwise turn every row into the erasure of a whole user.
        raise RequestError(
            f"it has the column {names[0]!r} but not {(item if names[0] == user else user)!r} beside "
            f"{shown([name for name in table.columns if name not in names], 500)}, so that single interactions and "
            f"whole {'users' if names[0] == user else 'items'} cannot be told apart; name both or keep only one."
        )
    parts: dict[str, list[Any]] = {part: [] for part in _KINDS}
    places: dict[LineKey, int] = {}
    blank = [""] * len(table)
    users, items = (_with_blanks(table[name]) if name in names else blank for name in (user, item))
    for place, user_id, item_id in zip(table.index.tolist(), users, items, strict=True):
        if user_id != "" and item_id != "":
            parts["interactions"].append((user_id, item_id))
            places.setdefault(("interaction", (id_text(user_id), id_text(item_id))), place)
        elif user_id != "":
            parts["users"].append(user_id)
            places.setdefault(("user", id_text(user_id)), place)
        elif item_id != "":
            parts["items"].append(item_id)
            places.setdefault(("item", id_text(item_id)), place)
        else:
            raise RequestError(f"{what} {place} names neither user nor item; fill it in or delete it.")
    return parts, places


def _with_blanks(column: pd.Series[Any]) -> list[Any]:
    """The column's values with ``""`` for nulls; 0 is an id."""
    return column.astype(object).where(column.notna(), "").tolist()


def _read_json(path: Path) -> tuple[dict[str, list[Any]], dict[LineKey, int]]:
    if not path.is_file():
        raise RequestError(f"there is no file {str(path)!r}; give the path of an existing JSON file.")
    try:
        with opened(path, MAX_REQUEST) as stream:
            text = stream.read().decode("utf-8-sig")
        check_depth(text)
        content = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise RequestError(f"it is not JSON ({error.msg} in line {error.lineno}); correct it.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"it cannot be read as JSON in UTF-8 ({error}); check the file.") from error
    unknown = sorted(set(content) - set(_KINDS)) if isinstance(content, dict) else [type(content).__name__]
    if unknown:
        raise RequestError(
            f'wanted {{"users": [...], "items": [...], "interactions": [...]}}, got {shown(unknown[0])}.'
        )
    request = UnlearningRequest(**content)
    lines: dict[LineKey, int] = {}
    scalars = _scalar_lines(text)
    for part in content:  # the order of the file, which is also the order of the scalars
        next(scalars)  # the key itself
        for value in getattr(request, part):
            if part == "interactions":
                line, _ = islice(scalars, 2)
                lines.setdefault(("interaction", (id_text(value[0]), id_text(value[1]))), line)
            else:
                lines.setdefault((_KINDS[part], id_text(value)), next(scalars))
    return content, lines


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key given twice: the standard parser would silently drop the ids of the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise RequestError(
            f"it has a key more than once ({shown([key for key, _ in pairs])}); put its ids in one list."
        )
    return content


def _whole_number(digits: str) -> int:
    """Refuse numbers that would take longer to read than the rest of the file; before Python 3.11 nothing else does."""
    if len(digits) > MAX_DIGITS:
        raise RequestError(f"it has a number of {len(digits):,} digits, which is no id; wanted at most {MAX_DIGITS:,}.")
    return int(digits)


def _scalar_lines(text: str) -> Iterator[int]:
    """The line of every string and number of a valid JSON text, in order (the parser does not tell)."""
    ends = [match.start() for match in re.finditer("\n", text)]
    for token in _JSON_TOKEN.finditer(text):
        if token.group()[0] not in "[]{},:":
            yield bisect_right(ends, token.start()) + 1
