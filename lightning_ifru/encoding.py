"""From a table of ids, ratings and times to positions, labels and distinct pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_ifru.errors import DataError
from lightning_ifru.ids import IdIndex, Positions
from lightning_ifru.splits import Pairs

Duplicates = Literal["latest", "keep"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A table's rows that count, in its order.

    Attributes:
        users: the ids of all users.
        items: the ids of all items.
        user: positions of the rows' users, int64 ``[n]``.
        item: positions of their items, int64 ``[n]``.
        label: their labels, float32 ``[n]``.
        pairs: the distinct pairs among them.
    """

    users: IdIndex
    items: IdIndex
    user: Positions
    item: Positions
    label: npt.NDArray[np.float32]
    pairs: Pairs

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        threshold: float | None = None,
        duplicates: Duplicates = "latest",
        user_ids: Iterable[Any] | None = None,
        item_ids: Iterable[Any] | None = None,
    ) -> Encoded:
        """Encode the rows of ``frame``; the arguments are those of :class:`InteractionTable`.

        Raises:
            DataError: If there is a threshold without ratings, or an id beside those given.

        Example:
            >>> frame = pd.DataFrame({"user": [7, 7, 7], "item": ["b", "a", "b"], "rating": [1.0, 2.0, 5.0]})
            >>> some = Encoded.of(frame, threshold=2.0)
            >>> some.item, some.label
            (array([1, 0]), array([1., 1.], dtype=float32))
        """
        if threshold is not None and "rating" not in frame:
            raise DataError(f"threshold={threshold} needs ratings; name the column of ratings, or drop it.")
        users, user = _positions(frame["user"], user_ids)
        items, item = _positions(frame["item"], item_ids)
        label = np.ones(len(frame), dtype=np.float32)
        if "rating" in frame:
            rating = frame["rating"].to_numpy(dtype=np.float64)
            label[:] = rating if threshold is None else rating >= threshold
        latest = _latest(user * len(items) + item, frame)
        kept = latest if duplicates == "latest" else np.arange(len(frame))
        time, given = (frame[name].to_numpy()[latest] if name in frame else None for name in ("timestamp", "split"))
        hashes = users.hashes()[user[latest]], items.hashes()[item[latest]]
        return cls(users, items, user[kept], item[kept], label[kept], Pairs(user[latest], *hashes, time, given))


def _positions(column: pd.Series[Any], ids: Iterable[Any] | None) -> tuple[IdIndex, Positions]:
    """All ids, those given or else those of the column, and the position of every entry."""
    own, codes = IdIndex.factorize(column)
    if ids is None:
        return own, codes
    index = IdIndex(ids)
    positions = own.moves(index)
    if (positions < 0).any():
        unknown = own.ids[int((positions < 0).argmax())]
        raise DataError(f"the {column.name} {unknown!r} is none of the {len(index)} given; give the ids of all.")
    return index, positions[codes]


def _latest(code: Positions, frame: pd.DataFrame) -> Positions:
    """One row of each pair, ascending: of equal codes the one with the largest timestamp, the last among ties."""
    time = frame["timestamp"].to_numpy() if "timestamp" in frame else np.zeros(len(code))
    order = np.argsort(time, kind="stable")
    repeated = pd.Series(code[order]).duplicated(keep="last").to_numpy()
    return np.sort(order[~repeated])
