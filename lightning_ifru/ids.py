"""The user's own ids and the positions they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

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
        self._replace(np.fromiter(values, dtype=object, count=len(values)))

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
        merged, _ = pd.factorize(np.fromiter(map(id_text, ids), dtype=object, count=len(ids)))
        first = np.unique(merged, return_index=True)[1]
        return cls(ids[first]), merged[codes].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def erased(self) -> npt.NDArray[np.bool_]:
        """Which positions have no id any more."""
        erased = np.ones(len(self), dtype=np.bool_)
        erased[self._live] = False
        return erased

    def lookup(self, ids: Iterable[Any]) -> Positions:
        """Return the position of every id, compared by text; -1 where it is unknown or erased."""
        found = self._texts.get_indexer(pd.Index([id_text(value) for value in ids], dtype=object))
        return np.append(self._live, -1)[found].astype(np.int64)

    def retire(self, positions: Tensor) -> None:
        """Erase the ids at these positions (an index or a mask); all other positions stay."""
        ids = self.ids.copy()  # an array handed out before stays what it was
        ids[positions.numpy()] = None
        self._replace(ids)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return a 64-bit hash of every id's text; 0 where it was erased."""
        hashes = np.zeros(len(self), dtype=np.uint64)
        hashes[self._live] = pd.util.hash_array(self._texts.to_numpy(), categorize=False)
        return hashes

    def moves(self, other: IdIndex) -> Positions:
        """Return where each position's id stands in another index; -1 where it does not."""
        moves = np.full(len(self), -1, dtype=np.int64)
        moves[self._live] = other.lookup(self.ids[self._live])
        return moves

    def fits(self, other: IdIndex) -> bool:
        """Whether two indices agree on every position, leaving out what either has erased."""
        if len(self) != len(other):
            return False
        moves = self.moves(other)
        return bool(((moves == np.arange(len(self))) | self.erased | (other.erased & (moves < 0))).all())

    def plain(self) -> list[Any]:
        """Return the ids as strings, numbers and ``None``: what a checkpoint can hold."""
        return [value if isinstance(value, (str, int, float, type(None))) else id_text(value) for value in self.ids]

    def _replace(self, ids: npt.NDArray[np.object_]) -> None:
        self.ids = ids
        self._live: Positions = np.array([p for p, value in enumerate(ids) if value is not None], np.int64)
        self._texts = pd.Index([id_text(value) for value in ids[self._live]], dtype=object)
