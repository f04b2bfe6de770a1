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

from lightning_ifru.encoding import Duplicates, Encoded
from lightning_ifru.errors import DataError
from lightning_ifru.ids import IdIndex, Positions
from lightning_ifru.incidence import Incidence
from lightning_ifru.placement import ByList, Hashes, mix, pair_hashes, placement_of
from lightning_ifru.removal import Removal, plan_removal
from lightning_ifru.request import UnlearningRequest
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
        self._forgotten_elsewhere = 0
        self._written: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self._index: RowIndex | None = None
        self._placement = split.place(encoded.pairs)
        self.split = self._placement.assign(self._row_hashes(self.alive, self._placement.seed))
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

        Raises:
            RequestError: If an id or pair is unknown or already forgotten, or nothing would be left to train
                on.
        """
        return plan_removal(self, request)

    @torch.inference_mode(False)
    def remove(self, removal: Removal) -> None:
        """Apply a removal: clear its rows, erase the ids and withdraw the candidates without any interaction.

        An id is kept as long as validation or test still hold one of its interactions: it is then no secret.
        """
        rows = removal.positions[self.alive[removal.positions]]
        if not len(rows):
            return
        # To hash, count and sort all that stays took far longer than one person's rows do.
        index, hashes = self._indexed(), self._row_hashes(rows, self._placement.seed)
        index.drop(rows, self.user[rows], self.item[rows], self.split[rows] == 0, self._labelled_hashes(rows))
        self._clear(rows)
        self._placement = self._placement.without(hashes)
        self._candidate = self._candidate.clone()
        self._candidate[removal.withdrawn] = False
        self.users.retire(removal.users[index.by_user.counts[removal.users] == 0])
        self.items.retire(removal.items[index.by_item.counts[removal.items] == 0])

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

        Of the forgotten rows it holds the positions in the table only, and whether training had them where that
        cannot be worked out again: not even a hash, which could be reversed.
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
            "fingerprint": self._indexed().fingerprint,
        }

    @torch.inference_mode(False)
    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's positions, splits and holes; what either has forgotten stays forgotten.

        The source may be the one the checkpoint was trained on, or the same without the forgotten rows. If
        nothing was ever forgotten, other interactions between the checkpoint's users and items will do as
        well; where the checkpoint lists its validation and test pairs, all others are then train.

        Raises:
            DataError: If the data are not those of the checkpoint; the table is as it was.
        """
        absent = sorted(STATE_KEYS - set(state))
        if absent:
            raise DataError(f"the state of the data lacks {absent[0]!r}; pass one that state() has returned.")
        placement = placement_of(state)
        users, items = IdIndex(state["user_ids"]), IdIndex(state["item_ids"])
        same_layout = self.users.fits(users) and self.items.fits(items)
        mine = int((~self.alive).sum()) + self._forgotten_elsewhere
        drop = self._rows_to_drop(state, same_layout, mine)
        kept = self.alive if drop is None else self.alive & ~drop
        user = torch.from_numpy(self.users.moves(users))[self.user]
        item = torch.from_numpy(self.items.moves(items))[self.item]
        split = torch.full_like(self.split, -1)
        split[self.alive] = placement.assign(self._row_hashes(self.alive, placement.seed))
        trained = torch.where(self.alive, split == 0, self.trained)
        if isinstance(placement, ByList) and drop is not None and drop.any():
            trained[state["forgotten"].cpu()] = state["forgotten_trained"].cpu()
        if drop is None or bool(((user < 0) | (item < 0))[kept].any()) or not (split[kept] == 0).any():
            raise DataError(
                f"the data are not those the checkpoint was trained on: they have {int(self.alive.sum())} "
                f"interactions, the checkpoint {state['num_rows']} with {len(state['forgotten'])} forgotten; "
                "read the same source, columns and threshold again, or the same without what was forgotten."
            )

        candidate = torch.ones(len(items), dtype=torch.bool)
        candidate[state["withdrawn_items"].cpu()] = False
        if mine and same_layout:
            users.retire(torch.from_numpy(self.users.erased))
            items.retire(torch.from_numpy(self.items.erased))
            candidate &= self._candidate
        candidate[item[kept]] = True  # an item can have its first interaction since
        self.users, self.items, self._candidate = users, items, candidate
        self.user, self.item = user.where(kept, -1), item.where(kept, -1)
        self.split, self.trained = split, trained
        self._clear((~kept).nonzero().flatten())
        self._placement = placement.keeping(self._row_hashes(self.alive, placement.seed))
        self._index = None
        cleared = int((~kept).sum())
        self._forgotten_elsewhere = max(mine, int(state["num_forgotten"]), cleared) - cleared

    def _rows_to_drop(self, state: Mapping[str, Any], same_layout: bool, mine: int) -> Tensor | None:
        """The alive rows that the checkpoint has forgotten; None if the data are not the checkpoint's."""
        nothing = torch.zeros(len(self), dtype=torch.bool)
        same_source = len(self) == state["num_rows"]
        forgotten = _mask(state["forgotten"].cpu().numpy(), len(self)) if same_source else nothing
        for drop in (nothing, forgotten):
            rows = self.alive & ~drop
            same_count = int(rows.sum()) == state["num_rows"] - len(state["forgotten"])
            if same_count and self._labelled_hashes(rows).sum(dtype=np.uint64) == state["fingerprint"]:
                return drop
        if mine and same_layout and (same_source or not state["num_forgotten"]):
            # What was forgotten here can no longer be compared, its values are gone: equal ids must do.
            return forgotten
        return None if mine or state["num_forgotten"] else nothing

    def _clear(self, rows: Tensor) -> None:
        for column, blank in ((self.user, -1), (self.item, -1), (self.label, 0), (self.split, -1), (self.alive, False)):
            if self._written is not None:
                self._written.append((column, rows, column[rows]))
            column[rows] = blank

    def _indexed(self) -> RowIndex:
        if self._index is None:
            hashes, sizes = self._labelled_hashes(self.alive), (len(self.users), len(self.items))
            self._index = RowIndex(self.user, self.item, self.rows("train"), hashes, sizes)
        return self._index

    def _row_hashes(self, rows: Tensor, seed: int) -> Hashes:
        user = self.users.hashes()[self.user[rows].numpy()]
        return pair_hashes(user, self.items.hashes()[self.item[rows].numpy()], seed)

    def _labelled_hashes(self, rows: Tensor) -> Hashes:
        """A number for each labelled pair, whatever its position; their sum is that of the set."""
        label = self.label[rows].numpy().view(np.uint32).astype(np.uint64)
        return mix(self._row_hashes(rows, 0) + mix(label))


#: What every state of the data holds; one that lists its held-out pairs has no cuts and some more.
STATE_KEYS = {
    *("user_ids", "item_ids", "withdrawn_items", "seed", "cuts"),
    *("num_rows", "forgotten", "num_forgotten", "fingerprint"),
}


def _mask(positions: Positions, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(positions)] = True
    return mask
