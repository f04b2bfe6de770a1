"""Interactions as tensors: who did what, in which split, and how to forget some without moving the rest.

Positions are for ever. What is forgotten leaves a hole: its row is cleared, an erased user's id becomes
``None``, and everybody else keeps the position that the model's embedding rows are tied to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_ifru.encoding import Duplicates, Encoded
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.ids import IdIndex, Positions
from lightning_ifru.placement import ByList, Hashes, mix, pair_hashes, placement_of
from lightning_ifru.request import LineKey, UnlearningRequest
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


@dataclass(frozen=True, eq=False)
class Removal:
    """What a request removes from a table.

    Attributes:
        rows: Bool mask over all rows of the table: the interactions that go.
        users: Sorted positions (int64) of the users erased: requested as a whole, or losing by the request
            their last training interaction, or their last of all. No example of training is theirs any more,
            so that nothing but the regularisation acts on their rows, which are drawn anew.
        items: The same for items; of a pairwise loss the negatives still act on those not withdrawn.
        withdrawn: Sorted positions (int64) of the items that leave the candidates: without an interaction in any
            split, as the shortened source would not know them. One that is held out can still be drawn and
            recommended, as an item that was never trained on can.
        counts: Number of interactions that go, per split.
    """

    rows: Tensor
    users: Tensor
    items: Tensor
    withdrawn: Tensor
    counts: dict[str, int]


class InteractionTable:
    """All interactions of a source with their split, and what has become of them.

    The latest occurrence of a pair is that by timestamp, and by the order of the source where there is none or a
    tie. The label is whether the rating reaches the threshold (1 or 0), the rating itself without a threshold, and 1
    without ratings. Positive interactions, the edges of the graph, are those with a label above 0; for ratings
    without a threshold every interaction is an edge.

    Attributes:
        trained: Which rows training had before anything was forgotten, a bool mask over all rows.

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
        self._all_edges = self.labelled and threshold is None
        encoded = Encoded.of(frame, threshold, duplicates, user_ids, item_ids)
        self.users, self.items = encoded.users, encoded.items
        self.user, self.item = torch.from_numpy(encoded.user), torch.from_numpy(encoded.item)
        self.label = torch.from_numpy(encoded.label)
        self.alive = torch.ones(len(self.user), dtype=torch.bool)
        self._candidate = _mask(encoded.item, len(self.items))
        self._forgotten_elsewhere = 0
        self._placement = split.place(encoded.pairs)
        self.split = self._placement.assign(self._row_hashes(self.alive, self._placement.seed))
        self.trained = self.split == 0
        if not self.trained.any():
            raise DataError(f"none of {len(self)} rows is left for training; give more or choose smaller fractions.")

    def __len__(self) -> int:
        """Return the number of rows, including the cleared ones."""
        return len(self.user)

    @property
    def candidates(self) -> Tensor:
        """The positions of the items with an interaction in any split, which a sampler may draw; int64."""
        return self._candidate.nonzero().flatten()

    @property
    def positive(self) -> Tensor:
        """Bool mask over all rows: alive and an edge of the graph (in whatever split)."""
        return self.alive if self._all_edges else self.alive & (self.label > 0)

    def rows(self, split: str, *, positive: bool = False) -> Tensor:
        """Return which rows are alive in ``"train"``, ``"val"`` or ``"test"``: a bool mask over all rows."""
        return (self.positive if positive else self.alive) & (self.split == SPLITS.index(split))

    @torch.inference_mode(False)
    def select(self, split: str, *, positive: bool = False, without: Removal | None = None) -> Interactions:
        """Return what is alive of a split, in the table's order; as it would be after a removal, if one is given."""
        rows = self.rows(split, positive=positive)
        if without is not None:
            rows = rows & ~without.rows
        return Interactions(self.user[rows], self.item[rows], self.label[rows])

    def plan(self, request: UnlearningRequest) -> Removal:
        """Return what a request would remove; nothing is changed.

        Raises:
            RequestError: If an id or pair is unknown or already forgotten, or nothing would be left to train
                on.
        """
        keys: dict[str, list[Any]] = {"user": [], "item": [], "interaction": []}
        for kind, text in request.texts:
            keys[kind].append(text)
        users, items = self.users.lookup(keys["user"]), self.items.lookup(keys["item"])
        pairs = keys["interaction"]
        pair_user = self.users.lookup(pair[0] for pair in pairs)
        pair_item = self.items.lookup(pair[1] for pair in pairs)
        pair_code = np.where((pair_user < 0) | (pair_item < 0), -1, pair_user * len(self.items) + pair_item)
        code = np.where(self.alive.numpy(), (self.user * len(self.items) + self.item).numpy(), -2)
        # Nodes of a graph have a position, and yet nothing to forget where they have no edges.
        alive_users, alive_items = self.user[self.alive].numpy(), self.item[self.alive].numpy()
        unknown: list[LineKey] = [("user", keys["user"][k]) for k in np.flatnonzero(~np.isin(users, alive_users))]
        unknown += [("item", keys["item"][k]) for k in np.flatnonzero(~np.isin(items, alive_items))]
        unknown += [("interaction", pairs[k]) for k in np.flatnonzero(~np.isin(pair_code, code))]
        if unknown:
            raise RequestError(_unknown(unknown, request))

        whole_users, whole_items = _mask(users, len(self.users)), _mask(items, len(self.items))
        rows = self.alive & (
            whole_users[self.user] | whole_items[self.item] | torch.from_numpy(np.isin(code, pair_code))
        )
        train = self.alive & (self.split == 0)
        if not (train & ~rows).any():
            raise RequestError(
                f"the request leaves none of the {int(train.sum())} training interactions; ask for fewer."
            )
        counts = {name: int((rows & (self.split == k)).sum()) for k, name in enumerate(SPLITS)}
        absent = [
            whole | _emptied(column, self.alive, rows, len(whole))
            for column, whole in ((self.user, whole_users), (self.item, whole_items))
        ]
        erased = [
            gone | _emptied(column, train, rows, len(gone))
            for column, gone in zip((self.user, self.item), absent, strict=True)
        ]
        gone_users, gone_items, withdrawn = (mask.nonzero().flatten() for mask in (*erased, absent[1]))
        return Removal(rows, gone_users, gone_items, withdrawn, counts)

    def remove(self, removal: Removal) -> None:
        """Apply a removal: clear its rows, erase the ids and withdraw the candidates without any interaction.

        An id is kept as long as validation or test still hold one of its interactions: it is then no secret.
        """
        self._clear(removal.rows)
        self._candidate[removal.withdrawn] = False
        for ids, column, erased in (
            (self.users, self.user, removal.users),
            (self.items, self.item, removal.items),
        ):
            present = _mask(column[self.alive].numpy(), len(ids))
            ids.retire(erased[~present[erased]])

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
            "num_forgotten": len(forgotten) + self._forgotten_elsewhere,
            "fingerprint": self._fingerprint(self.alive),
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
        self.split, self.trained, self._placement = split, trained, placement
        self._clear(~kept)
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
            if same_count and self._fingerprint(rows) == state["fingerprint"]:
                return drop
        if mine and same_layout and (same_source or not state["num_forgotten"]):
            # What was forgotten here can no longer be compared, its values are gone: equal ids must do.
            return forgotten
        return None if mine or state["num_forgotten"] else nothing

    def _clear(self, rows: Tensor) -> None:
        for column, blank in ((self.user, -1), (self.item, -1), (self.label, 0), (self.split, -1)):
            column[rows] = blank
        self.alive[rows] = False
        self._placement = self._placement.keeping(self._row_hashes(self.alive, self._placement.seed))

    def _row_hashes(self, rows: Tensor, seed: int) -> Hashes:
        user = self.users.hashes()[self.user[rows].numpy()]
        return pair_hashes(user, self.items.hashes()[self.item[rows].numpy()], seed)

    def _fingerprint(self, rows: Tensor) -> int:
        """A number for a set of labelled pairs, whatever their order and positions."""
        label = self.label[rows].numpy().view(np.uint32).astype(np.uint64)
        return int(mix(self._row_hashes(rows, 0) + mix(label)).sum(dtype=np.uint64))


#: What every state of the data holds; one that lists its held-out pairs has no cuts and some more.
STATE_KEYS = {
    *("user_ids", "item_ids", "withdrawn_items", "seed", "cuts"),
    *("num_rows", "forgotten", "num_forgotten", "fingerprint"),
}


def _mask(positions: Positions, size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(positions)] = True
    return mask


def _emptied(column: Tensor, among: Tensor, rows: Tensor, size: int) -> Tensor:
    """Which positions occur in ``column`` among some rows, but no longer without ``rows``."""
    return _mask(column[among].numpy(), size) & ~_mask(column[among & ~rows].numpy(), size)


def _unknown(keys: list[LineKey], request: UnlearningRequest) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return (
        f"{len(keys)} of the request's entries are not in the data or were forgotten before: "
        f"{', '.join(map(request.named, keys[:5]))}{more}; correct or remove them and ask again."
    )
