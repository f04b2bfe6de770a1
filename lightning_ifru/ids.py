"""The user's own ids and the positions they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from lightning_ifru.bounded import id_flaw
from lightning_ifru.errors import DataError

Positions = npt.NDArray[np.int64]


def id_text(value: Any) -> str:
    """Return the text by which an id is compared: ``str``, with whole floats as integers.

    Example:
        >>> id_text(42), id_text("42"), id_text(42.0), id_text("007")
        ('42', '42', '42', '007')
    """
    if type(value) is str:
        return value
    if hasattr(value, "item"):  # numpy scalars and tensors of one element
        value = value.item()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def whole_text(text: str) -> str | None:
    """Return the whole number that a text with a fraction of zeros stands for, as tables with gaps write it.

    Example:
        >>> whole_text("42.0"), whole_text("42"), whole_text("4.2")
        ('42', None, None)
    """
    number = re.fullmatch(r"(-?\d+)\.0+", text)
    return number and number[1]


class IdIndex:
    """Positions and the user's own ids, in order of first appearance; ``None`` where an id was erased.

    Example:
        >>> import torch
        >>> index = IdIndex(["a", 7])
        >>> index.lookup(["7", "b"]).tolist()
        [1, -1]
        >>> index.retire(torch.tensor([1]))
        >>> index.ids.tolist(), index.lookup([7]).tolist()
        (['a', None], [-1])
    """

    def __init__(self, ids: Iterable[Any]) -> None:
        values = [value.item() if isinstance(value, np.generic) else value for value in ids]
        self.ids: npt.NDArray[np.object_] = np.fromiter(values, dtype=object, count=len(values))
        self._places = {id_text(value): place for place, value in enumerate(values) if value is not None}
        self._hashes: npt.NDArray[np.uint64] | None = None
        self._is_plain = all(isinstance(value, (str, int, float, type(None))) for value in values)

    @classmethod
    def factorize(cls, column: pd.Series[Any]) -> tuple[IdIndex, Positions]:
        """Return the index of a column's distinct ids, and the position of every entry.

        Raises:
            DataError: If an id cannot be compared with others (a list, a dict).
        """
        try:
            codes, distinct = pd.factorize(column)
        except TypeError as error:
            raise DataError(f"the {column.name}s' column holds no ids ({error}); use strings or numbers.") from error
        ids = np.asarray(distinct, dtype=object)
        texts = np.fromiter(map(id_text, ids), dtype=object, count=len(ids))
        for place, text in enumerate(texts):
            if flaw := id_flaw(text):
                raise DataError(f"the {column.name} at position {place} {flaw}; use another id.")
        merged, _ = pd.factorize(texts)
        first = np.unique(merged, return_index=True)[1]
        return cls(ids[first]), merged[codes].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def erased(self) -> npt.NDArray[np.bool_]:
        """Which positions have no id any more."""
        erased = np.ones(len(self), dtype=np.bool_)
        erased[self._live()] = False
        return erased

    def lookup(self, ids: Iterable[Any]) -> Positions:
        """Return the position of every id, compared by text; -1 where it is unknown or erased."""
        return np.array([self._places.get(id_text(value), -1) for value in ids], dtype=np.int64)

    def texts(self, positions: Positions) -> list[str]:
        """Return the texts by which the ids at these positions are compared; none of them may be erased."""
        return [id_text(value) for value in self.ids[positions]]

    def retire(self, positions: Tensor) -> None:
        """Erase the ids at these positions (an index or a mask); all other positions stay."""
        # Copies, because an array handed out before, and a copy of the index, stay what they were. They are copies of
        # pointers: what took long was to make all texts anew.
        ids, places = self.ids.copy(), self._places.copy()
        where = positions.numpy()
        for value in ids[where]:
            places.pop(id_text(value), None)
        ids[where] = None
        if self._hashes is not None:
            self._hashes = self._hashes.copy()
            self._hashes[where] = 0
        self.ids, self._places = ids, places

    def revive(self, ids: Mapping[int, Any]) -> None:
        """Give ids back to positions that have none."""
        texts = self._places | {id_text(value): place for place, value in ids.items()}
        values = self.ids.copy()
        for place, value in ids.items():
            values[place] = value
        self.ids, self._places, self._hashes = values, texts, None
        self._is_plain = self._is_plain and all(isinstance(value, (str, int, float)) for value in ids.values())

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return a 64-bit hash of every id's text, 0 where it was erased; not to be written to."""
        if self._hashes is None:
            hashes = np.zeros(len(self), dtype=np.uint64)
            texts = np.fromiter(self._places, dtype=object, count=len(self._places))
            hashes[self._live()] = pd.util.hash_array(texts, categorize=False)
            self._hashes = hashes
        return self._hashes

    def moves(self, other: IdIndex) -> Positions:
        """Return where each position's id stands in another index; -1 where it does not."""
        moves = np.full(len(self), -1, dtype=np.int64)
        moves[self._live()] = [other._places.get(text, -1) for text in self._places]
        return moves

    def fits(self, other: IdIndex) -> bool:
        """Whether two indices agree on every position, leaving out what either has erased."""
        if len(self) != len(other):
            return False
        moves = self.moves(other)
        return bool(((moves == np.arange(len(self))) | self.erased | (other.erased & (moves < 0))).all())

    def plain(self) -> list[Any]:
        """Return the ids as strings, numbers and ``None``: what a checkpoint can hold."""
        ids: list[Any] = self.ids.tolist()
        if self._is_plain:
            return ids
        return [value if isinstance(value, (str, int, float, type(None))) else id_text(value) for value in ids]

    def _live(self) -> Positions:
        """The positions that have an id, in the order of their texts."""
        return np.fromiter(self._places.values(), dtype=np.int64, count=len(self._places))
