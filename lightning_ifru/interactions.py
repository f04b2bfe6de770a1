"""Interactions as tensors: who did what, in which split, and how to forget some without moving the rest.

Positions are for ever. What is forgotten leaves a hole: its row is cleared, an erased user's id becomes
``None``, and everybody else keeps the position that the model's embedding rows are tied to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_ifru.data_state import check_state
from lightning_ifru.encoding import Duplicates, Encoded
from lightning_ifru.errors import DataError
from lightning_ifru.forgotten import ForgottenRecord
from lightning_ifru.ids import Positions
from lightning_ifru.incidence import Incidence
from lightning_ifru.keys import digest_key
from lightning_ifru.placement import ByList, Hashes, mix, pair_hashes
from lightning_ifru.removal import Removal, plan_removal
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.restoring import restored
from lightning_ifru.row_index import RowIndex
from lightning_ifru.splits import SPLITS, RandomSplit, Split


@dataclass(frozen=True, eq=False)
class Interactions:
    """``n`` interactions: positions of users and items (int64 ``[n]``) and labels (float32 ``[n]``).

    Example:
        >>> some = Interactions(torch.tensor([0, 1]), torch.tensor([5, 6]), torch.ones(2))
        >>> len(some), some[torch.tensor([1])].item
        (2, tensor([6]))
    """

    user: Tensor
    item: Tensor
    label: Tensor

    def __len__(self) -> int:
        return self.user.numel()

    def __getitem__(self, index: Tensor) -> Interactions:
        """Return the interactions of a boolean mask ``[n]`` or of an index tensor."""
        return Interactions(self.user[index], self.item[index], self.label[index])

    def to(self, device: torch.device | str) -> Interactions:
        """Return the same interactions on another device."""
        return Interactions(self.user.to(device), self.item.to(device), self.label.to(device))

    def distinct(self) -> Interactions:
        """Return each pair once, as it first occurs."""
        pair, order = ((self.user << 32) + self.item).sort(stable=True)
        return self[order[pair.diff(prepend=pair.new_tensor([-1])) != 0].sort().values]


class InteractionTable:
    """All interactions of a source with their split, and what has become of them.

    The latest occurrence of a pair is that by timestamp, and by the order of the source where there is none or a
    tie. The label is whether the rating reaches the threshold (1 or 0), the rating itself without a threshold, and 1
    without ratings. Positive interactions, the edges of the graph, are those with a label above 0; for ratings
    without a threshold every interaction is an edge.

    Attributes:
        trained: Which rows training had before anything was forgotten, a bool mask over all rows.
        record: What was forgotten, here and in the checkpoints taken over.
        all_edges: Whether every interaction is an edge, whatever its label.

    Args:
        frame: Columns ``user``, ``item``, and possibly ``rating``, ``timestamp`` and ``split``, nothing missing.
        threshold: Ratings from here on are positive.
        split: How interactions are divided into train, val and test.
        duplicates: Of a pair that occurs more than once: ``"latest"`` counts the latest alone, ``"keep"`` each
            occurrence, all in the split of the latest.
        user_ids: The users of all positions, with or without interactions; by default those of the frame in order of
            first appearance.
        item_ids: The same for items. Those without an interaction are no candidates.

    Raises:
        DataError: If there is a threshold without ratings, an id beside those given, or nothing is left for training.

    Example:
        >>> frame = pd.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"]})
        >>> table = InteractionTable(frame, split=RandomSplit(0.0, 0.0))
        >>> removal = table.plan(UnlearningRequest(users=[2]))
        >>> table.remove(removal)
        >>> table.users.ids.tolist(), table.select("train").item.tolist(), table.candidates.tolist()
        ([1, None], [0, 1], [0, 1])
    """

    @torch.inference_mode(False)  # built in a validation loop, it must still serve a later fit
    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        threshold: float | None = None,
        split: Split | None = None,
        duplicates: Duplicates = "latest",
        user_ids: Iterable[Any] | None = None,
        item_ids: Iterable[Any] | None = None,
    ) -> None:
        split = RandomSplit() if split is None else split
        self.labelled = "rating" in frame
        self.all_edges = self.labelled and threshold is None
        encoded = Encoded.of(frame, threshold, duplicates, user_ids, item_ids)
        self.users, self.items = encoded.users, encoded.items
        self.user, self.item = torch.from_numpy(encoded.user), torch.from_numpy(encoded.item)
        self.label = torch.from_numpy(encoded.label)
        self.alive = torch.ones(len(self.user), dtype=torch.bool)
        self._candidate = _mask(encoded.item, len(self.items))
        self.record = ForgottenRecord()
        self._forgotten_elsewhere = 0
        self._written: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self._index: RowIndex | None = None
        self._placement = split.place(encoded.pairs)
        self.split = self._placement.assign(self.row_hashes(self.alive, self._placement.seed))
        self.trained = self.split == 0
        if not self.trained.any():
            raise DataError(f"none of {len(self)} rows is left for training; give more or choose smaller fractions.")

    def __len__(self) -> int:
        """Return the number of rows, including the cleared ones."""
        return len(self.user)

    @property
    def by_user(self) -> Incidence:
        """The rows of every user that are alive, in whatever split; built on first use, and kept."""
        return self._indexed().by_user

    @property
    def by_item(self) -> Incidence:
        """The rows of every item that are alive, in whatever split; built on first use, and kept."""
        return self._indexed().by_item

    @property
    def train_counts(self) -> tuple[Tensor, Tensor]:
        """The numbers of training interactions of every user and of every item, int64; not to be written to."""
        return self._indexed().train_counts

    @property
    def num_forgotten(self) -> int:
        """The number of interactions forgotten, here and in the checkpoints taken over."""
        return len(self) - int(self.alive.count_nonzero()) + self._forgotten_elsewhere

    @property
    def candidates(self) -> Tensor:
        """The positions of the items with an interaction in any split, which a sampler may draw; int64."""
        return self._candidate.nonzero().flatten()

    @property
    def positive(self) -> Tensor:
        """Bool mask over all rows: alive and an edge of the graph (in whatever split)."""
        return self.alive if self.all_edges else self.alive & (self.label > 0)

    def rows(self, split: str, *, positive: bool = False) -> Tensor:
        """Return which rows are alive in ``"train"``, ``"val"`` or ``"test"``: a bool mask over all rows."""
        return (self.positive if positive else self.alive) & (self.split == SPLITS.index(split))

    @torch.inference_mode(False)
    def select(self, split: str, *, positive: bool = False, without: Removal | None = None) -> Interactions:
        """Return what is alive of a split, in the table's order; as it would be after a removal, if one is given."""
        rows = self.rows(split, positive=positive)
        if without is not None:
            rows = rows & ~without.rows
        index = rows.nonzero().flatten()  # found once, not for each column
        return Interactions(*(column.index_select(0, index) for column in (self.user, self.item, self.label)))

    def plan(self, request: UnlearningRequest) -> Removal:
        """Return what a request would remove; nothing is changed.

        What was forgotten before is no error: see :attr:`Removal.absent`.

        Raises:
            RequestError: If an id or pair was never there, or nothing would be left to train on.
            UnlearningError: If there is no key under which to record what goes, and none can be made.
        """
        return plan_removal(self, request)

    @torch.inference_mode(False)
    def remove(self, removal: Removal) -> None:
        """Apply a removal: clear its rows, erase the ids and withdraw the candidates without any interaction.

        An id is kept as long as validation or test still hold one of its interactions: it is then no secret. What goes
        is recorded, so that it is recognised when it is named again.

        Raises:
            UnlearningError: If there is no key for the record; see :func:`~lightning_ifru.keys.digest_key`.
        """
        rows = removal.positions[self.alive[removal.positions]]
        if not len(rows):
            return
        key = digest_key()
        # To hash, count and sort all that stays took far longer than one person's rows do.
        index, hashes = self._indexed(), self.row_hashes(rows, self._placement.seed)
        pairs = self.users.texts(self.user[rows].numpy()), self.items.texts(self.item[rows].numpy())
        index.drop(rows, self.user[rows], self.item[rows], self.split[rows] == 0, self.labelled_hashes(rows))
        self._clear(rows)
        self._placement = self._placement.without(hashes)
        self._candidate = self._candidate.clone()
        self._candidate[removal.withdrawn] = False
        users = removal.users[index.by_user.counts[removal.users] == 0]
        items = removal.items[index.by_item.counts[removal.items] == 0]
        whole = (
            dict(zip(side.texts(gone.numpy()), gone.tolist(), strict=True))
            for side, gone in ((self.users, users), (self.items, items))
        )
        self.record = self.record.adding(key, zip(*pairs, strict=True), *whole)
        self.users.retire(users)
        self.items.retire(items)

    @contextmanager
    def revocable(self) -> Iterator[Callable[[], None]]:
        """Yield a function that undoes, exactly, whatever the block has done to the table until then.

        What the block clears is remembered until its end, and nothing else: no copy of the table is made.

        Example:
            >>> table = InteractionTable(pd.DataFrame({"user": [1, 2], "item": [1, 1]}), split=RandomSplit(0.0, 0.0))
            >>> with table.revocable() as undo:
            ...     table.remove(table.plan(UnlearningRequest(users=[2])))
            ...     undo()
            >>> table.users.ids.tolist(), table.user.tolist()
            ([1, 2], [0, 1])
        """
        outer, self._written = self._written, []
        users, items = copy.copy(self.users), copy.copy(self.items)
        before = {**vars(self), "users": users, "items": items}

        def undo() -> None:
            written, index = self._written or [], self._index
            for column, rows, values in reversed(written):
                column[rows] = values
            same = not written and self.user is before["user"]
            vars(self).update({**before, "users": copy.copy(users), "items": copy.copy(items)})
            self._written, self._index = [], index if same else None

        try:
            yield undo
        finally:
            written, self._written = self._written or [], outer
            if outer is not None:
                outer += written

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to find the same positions, splits and holes again.

        Of the forgotten rows it holds the positions in the table, whether training had them where that cannot be
        worked out again, and keyed digests of their pairs; see :class:`~lightning_ifru.forgotten.ForgottenRecord`.
        """
        forgotten = (~self.alive).nonzero().flatten()
        listed = {"forgotten_trained": self.trained[forgotten]} if isinstance(self._placement, ByList) else {}
        return {
            "user_ids": self.users.plain(),
            "item_ids": self.items.plain(),
            "withdrawn_items": (~self._candidate).nonzero().flatten(),
            **self._placement.state(),
            "num_rows": len(self),
            "forgotten": forgotten,
            **listed,
            "num_forgotten": self.num_forgotten,
            "forgotten_record": self.record.state(),
            "fingerprint": self._indexed().fingerprint,
        }

    @torch.inference_mode(False)
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's positions, splits and holes; what either has forgotten stays forgotten.

        The source may be the one the checkpoint was trained on, or the same without the forgotten rows, or any other
        with interactions between the checkpoint's users and items, as one is that has grown since: its forgotten
        pairs are recognised by their digests, and so are users and items that were forgotten and have come back in
        new rows. They get their old position. Where the checkpoint lists its validation and test pairs, all others
        are then train.

        Raises:
            DataError: If the data are not those of the checkpoint; the table is as it was.
            UnlearningError: If the forgotten would have to be recognised with another key than the present one; the
                table is as it was.
        """
        check_state(state)
        found = restored(self, state)
        self.users, self.items, self._candidate, self.record = found.users, found.items, found.candidate, found.record
        self.user, self.item, self.split, self.trained = found.user, found.item, found.split, found.trained
        self._clear((~found.kept).nonzero().flatten())
        self._placement = found.placement.keeping(self.row_hashes(self.alive, found.placement.seed))
        self._index = None
        self._forgotten_elsewhere = found.num_forgotten - int((~self.alive).count_nonzero())

    def _clear(self, rows: Tensor) -> None:
        for column, blank in ((self.user, -1), (self.item, -1), (self.label, 0), (self.split, -1), (self.alive, False)):
            if self._written is not None:
                self._written.append((column, rows, column[rows]))
            column[rows] = blank

    def _indexed(self) -> RowIndex:
        if self._index is None:
            hashes, sizes = self.labelled_hashes(self.alive), (len(self.users), len(self.items))
            self._index = RowIndex(self.user, self.item, self.rows("train"), hashes, sizes)
        return self._index

    def row_hashes(self, rows: Tensor, seed: int) -> Hashes:
        """Return the hashes of the pairs of some rows, a mask or an index; none of them may be cleared."""
        user = self.users.hashes()[self.user[rows].numpy()]
        return pair_hashes(user, self.items.hashes()[self.item[rows].numpy()], seed)

    def labelled_hashes(self, rows: Tensor) -> Hashes:
        """Return a number for each labelled pair, whatever its position; their sum is that of the set."""
        label = self.label[rows].numpy().view(np.uint32).astype(np.uint64)
        return mix(self.row_hashes(rows, 0) + mix(label))


def _mask(positions: Positions, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(positions)] = True
    return mask
