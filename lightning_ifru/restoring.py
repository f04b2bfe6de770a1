"""What a table becomes when it takes over a checkpoint's positions, splits and holes; nothing is changed here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_ifru.errors import DataError
from lightning_ifru.forgotten import Digests, ForgottenRecord, id_digests, pair_digests
from lightning_ifru.ids import IdIndex, Positions
from lightning_ifru.keys import digest_key
from lightning_ifru.placement import ByHash, ByList, placement_of

if TYPE_CHECKING:
    from lightning_ifru.interactions import InteractionTable


@dataclass(frozen=True, eq=False)
class Restored:
    """The rows of a table, ``n`` with the cleared ones, as a checkpoint has them.

    Attributes:
        users, items: the ids of all positions.
        user, item: positions int64 ``[n]``, -1 where a row is cleared.
        split: numbers of the splits, int8 ``[n]``.
        trained: which rows training had before anything was forgotten, a bool mask ``[n]``.
        kept: which rows are not cleared, a bool mask ``[n]``.
        candidate: which items can be drawn, a bool mask over their positions.
        placement: where pairs belong.
        record: what either side has forgotten.
        num_forgotten: how many interactions that was.
    """

    users: IdIndex
    items: IdIndex
    user: Tensor
    item: Tensor
    split: Tensor
    trained: Tensor
    kept: Tensor
    candidate: Tensor
    placement: ByHash | ByList
    record: ForgottenRecord
    num_forgotten: int


def restored(table: InteractionTable, state: Mapping[str, Any]) -> Restored:
    """Return what a table is with the positions, splits and holes of ``state``; what either forgot stays forgotten.

    Raises:
        DataError: If the data are not those of the checkpoint.
        UnlearningError: If what the checkpoint has forgotten was recorded under another key, and has to be looked for.
    """
    placement, theirs = placement_of(state), ForgottenRecord.of_state(state["forgotten_record"])
    users, items = IdIndex(state["user_ids"]), IdIndex(state["item_ids"])
    same_layout = table.users.fits(users) and table.items.fits(items)
    here = table.record.beyond(theirs)
    if here and not same_layout:
        raise _other_data(table, state)  # of what was forgotten here alone the ids are gone, and so are their positions
    drop = _rows_to_drop(table, state, theirs.beyond(table.record))
    kept = table.alive & ~drop
    record = theirs | table.record
    user = torch.from_numpy(_moves(table.users, users, table.user[kept], record, "user"))[table.user]
    item = torch.from_numpy(_moves(table.items, items, table.item[kept], record, "item"))[table.item]
    split = torch.full_like(table.split, -1)
    split[table.alive] = placement.assign(table.row_hashes(table.alive, placement.seed))
    if bool(((user < 0) | (item < 0))[kept].any()) or not (split[kept] == 0).any():
        raise _other_data(table, state)
    trained = torch.where(table.alive, split == 0, table.trained)
    if isinstance(placement, ByList) and len(table) == state["num_rows"]:
        # The lists tell nothing of what was forgotten. Beside another source nothing does, and then it counts as train.
        forgotten = state["forgotten"].cpu()
        dropped = drop[forgotten]
        if int(dropped.sum()) == int(drop.sum()):
            trained[forgotten[dropped]] = state["forgotten_trained"].cpu()[dropped]

    candidate = torch.ones(len(items), dtype=torch.bool)
    candidate[state["withdrawn_items"].cpu()] = False
    _retire(users, table.users, [place for part in here.parts.values() for place in part.users.values()])
    gone = _retire(items, table.items, [place for part in here.parts.values() for place in part.items.values()])
    candidate[gone] = False
    candidate[item[kept]] = True  # an item can have its first interaction since
    return Restored(
        users,
        items,
        user.where(kept, -1),
        item.where(kept, -1),
        split,
        trained,
        kept,
        candidate,
        placement,
        record,
        max(table.num_forgotten, int(state["num_forgotten"]), int((~kept).sum())),
    )


def _rows_to_drop(table: InteractionTable, state: Mapping[str, Any], there: ForgottenRecord) -> Tensor:
    """The alive rows that the checkpoint has forgotten; ``there`` is what it has forgotten and the table has not."""
    nothing = torch.zeros(len(table), dtype=torch.bool)
    forgotten = nothing.clone()
    if len(table) == state["num_rows"]:
        forgotten[state["forgotten"].cpu()] = True
    # The source is mostly the one of the training, or that without the forgotten, and a sum tells.
    for drop in (nothing, forgotten):
        rows = table.alive & ~drop
        same_count = int(rows.sum()) == state["num_rows"] - len(state["forgotten"])
        if same_count and table.labelled_hashes(rows).sum(dtype=np.uint64) == state["fingerprint"]:
            return drop
    if not table.record:  # or rows may be missing because they were forgotten here
        then = state["num_rows"] - len(state["forgotten"])
        warnings.warn(
            f"the source does not hold the rows that the checkpoint was saved with ({int(table.alive.sum()):,} "
            f"interactions now, {then:,} then): all is worked out on the rows as they are now, new ones included, "
            "which the weights may not have seen; read the same source again if that is not meant.",
            stacklevel=2,
        )
    if not len(there):
        return nothing
    known = there.under(digest_key())
    known.check()
    rows = table.alive.nonzero().flatten()
    sides = []
    for side, index, column in (("user", table.users, table.user), ("item", table.items, table.item)):
        place, which = column[rows].unique(return_inverse=True)
        digests = id_digests(known.key, side, index.texts(place.numpy()))
        sides.append([digests[k] for k in which.tolist()])
    pairs = known.part.pairs
    nothing[rows] = torch.tensor([digest in pairs for digest in pair_digests(known.key, *sides)], dtype=torch.bool)
    return nothing


def _moves(mine: IdIndex, theirs: IdIndex, used: Tensor, record: ForgottenRecord, side: str) -> Positions:
    """Where every position of mine is in theirs, -1 where it is not; who has come back gets the old position there.

    ``used`` are the positions in mine of which there are rows.
    """
    moves = mine.moves(theirs)
    strangers = used.unique().numpy()
    strangers = strangers[moves[strangers] < 0]
    if not len(strangers) or not record:
        return moves
    known = record.under(digest_key())
    tombstones: Digests = known.part.users if side == "user" else known.part.items
    back: dict[int, Any] = {}
    for stranger, digest in zip(strangers.tolist(), id_digests(known.key, side, mine.texts(strangers)), strict=True):
        place = tombstones.get(digest, -1)
        if 0 <= place < len(theirs) and theirs.ids[place] is None:
            moves[stranger], back[place] = place, mine.ids[stranger]
        else:
            known.check()  # under another key it may have been here
    theirs.revive(back)
    return moves


def _retire(theirs: IdIndex, mine: IdIndex, places: list[int]) -> Positions:
    """Erase in theirs the ids of these positions, as far as they are erased in mine; return them."""
    gone = np.array(places, dtype=np.int64)
    gone = gone[mine.erased[gone]]
    theirs.retire(torch.from_numpy(gone))
    return gone


def _other_data(table: InteractionTable, state: Mapping[str, Any]) -> DataError:
    return DataError(
        f"the data are not those the checkpoint was trained on: they have {int(table.alive.sum())} "
        f"interactions, the checkpoint {state['num_rows']} with {len(state['forgotten'])} forgotten; "
        "read the same source, columns and threshold again, or the same without what was forgotten."
    )
