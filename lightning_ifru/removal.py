"""Which rows, users and items go with a request, found from the rows of those it names alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_ifru.errors import RequestError
from lightning_ifru.forgotten import Known
from lightning_ifru.ids import IdIndex, Positions, whole_text
from lightning_ifru.incidence import Incidence
from lightning_ifru.keys import digest_key
from lightning_ifru.request import LineKey, UnlearningRequest
from lightning_ifru.splits import SPLITS

if TYPE_CHECKING:
    from lightning_ifru.interactions import InteractionTable


@dataclass(frozen=True, eq=False)
class Removal:
    """What a request removes from a table.

    Attributes:
        positions: Numbers (int64, ascending) of the rows of the table that go: the interactions.
        rows: The same as a bool mask over all rows of the table.
        users: Sorted positions (int64) of the users erased: requested as a whole, or losing by the request
            their last training interaction, or their last of all. No example of training is theirs any more,
            so that nothing but the regularisation acts on their rows, which are drawn anew.
        items: The same for items; of a pairwise loss the negatives still act on those not withdrawn.
        withdrawn: Sorted positions (int64) of the items that leave the candidates: without an interaction in any
            split, as the shortened source would not know them. One that is held out can still be drawn and
            recommended, as an item that was never trained on can.
        counts: Number of interactions that go, per split.
        absent: Number of the request's entries of which nothing is there any more, because it was forgotten before.
            With all of them absent nothing goes.
    """

    positions: Tensor
    rows: Tensor
    users: Tensor
    items: Tensor
    withdrawn: Tensor
    counts: dict[str, int]
    absent: int = 0


def plan_removal(table: InteractionTable, request: UnlearningRequest) -> Removal:
    """Return what a request would remove from a table; nothing is changed.

    Raises:
        RequestError: If an id or pair was never there, or nothing would be left to train on.
        UnlearningError: If there is no key under which to record what goes, and none can be made.
    """
    keys: dict[str, list[Any]] = {"user": [], "item": [], "interaction": []}
    for kind, text in request.texts:
        keys[kind].append(text)
    pairs = keys["interaction"]
    named: dict[str, list[Any]] = {side: _meant(table, side, keys[side]) for side in ("user", "item")}
    sides = (_meant(table, side, [pair[k] for pair in pairs]) for k, side in enumerate(named))
    named["interaction"] = [*zip(*sides, strict=True)]
    users, items = table.users.lookup(named["user"]), table.items.lookup(named["item"])
    pair_user = table.users.lookup(pair[0] for pair in named["interaction"])
    pair_item = table.items.lookup(pair[1] for pair in named["interaction"])
    pair_rows, pair_known = _rows_of_pairs(table, pair_user, pair_item)
    # Nodes of a graph have a position, and yet nothing to forget where they have no edges.
    missing = {
        "user": _without_rows(table.by_user, users),
        "item": _without_rows(table.by_item, items),
        "interaction": np.flatnonzero(~pair_known),
    }
    absent: dict[LineKey, LineKey] = {
        (kind, keys[kind][k]): (kind, named[kind][k]) for kind, places in missing.items() for k in places
    }
    if absent:
        _check_forgotten(table, absent, request)

    # What is missing has no rows; -1 would be the last position.
    whole = (
        table.by_user.rows(torch.from_numpy(np.unique(users[users >= 0])))[0],
        table.by_item.rows(torch.from_numpy(np.unique(items[items >= 0])))[0],
    )
    positions = torch.cat([*whole, pair_rows]).unique()
    if len(positions):
        digest_key()  # refused now, rather than when the weights are about to change
    split = table.split[positions]
    counts = {name: int((split == k).sum()) for k, name in enumerate(SPLITS)}
    present = int(table.train_counts[0].sum())
    if counts["train"] == present:
        raise RequestError(f"the request leaves none of the {present} training interactions; ask for fewer.")
    gone_users, _ = _emptied(table.user[positions], split, table.by_user.counts, table.train_counts[0])
    gone_items, withdrawn = _emptied(table.item[positions], split, table.by_item.counts, table.train_counts[1])
    rows = torch.zeros(len(table), dtype=torch.bool)
    rows[positions] = True
    return Removal(positions, rows, gone_users, gone_items, withdrawn, counts, absent=len(absent))


def _meant(table: InteractionTable, side: str, texts: list[str]) -> list[str]:
    """Return ids as the data have them: tables with gaps write 42.0 for 42, which it is unless 42.0 is or was there."""
    index: IdIndex = table.users if side == "user" else table.items
    known = None
    meant = list(texts)
    for k in np.flatnonzero(index.lookup(texts) < 0):
        whole = whole_text(texts[k])
        if whole is None:
            continue
        if table.record:
            known = known or table.record.under(digest_key())
            if known.others or (known.user if side == "user" else known.item)(texts[k]):
                continue
        meant[k] = whole
    return meant


def _rows_of_pairs(table: InteractionTable, user: Positions, item: Positions) -> tuple[Tensor, Any]:
    """The rows of some pairs, and which of the pairs have any."""
    code = torch.from_numpy(np.where((user < 0) | (item < 0), -1, user * len(table.items) + item))
    wanted, which = code.unique(return_inverse=True)
    if not len(wanted):
        return wanted, np.zeros(0, dtype=np.bool_)
    rows, _ = table.by_user.rows((wanted[wanted >= 0] // len(table.items)).unique())
    have = table.user.index_select(0, rows) * len(table.items) + table.item.index_select(0, rows)
    at = torch.searchsorted(wanted, have).clamp(max=len(wanted) - 1)
    hit = wanted.index_select(0, at) == have
    known = torch.zeros(len(wanted), dtype=torch.bool)
    known[at[hit]] = True
    return rows[hit], known[which].numpy()


def _without_rows(incidence: Incidence, positions: Positions) -> Positions:
    """Which of some positions are -1 or have no row left, as an index."""
    counts = incidence.counts[torch.from_numpy(positions)].numpy()
    return np.flatnonzero((positions < 0) | (counts == 0))


def _emptied(column: Tensor, split: Tensor, counts: Tensor, train_counts: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that lose with some rows their last in train or their last of all, and the latter alone.

    ``column`` and ``split`` are of the rows that go; ``counts`` and ``train_counts`` of every position as it is now.
    """
    touched, which = column.unique(return_inverse=True)
    going, of_train = (torch.bincount(part, minlength=len(touched)) for part in (which, which[split == 0]))
    absent = counts[touched] == going
    untrained = (of_train > 0) & (train_counts[touched] == of_train)
    return touched[absent | untrained], touched[absent]


def _check_forgotten(table: InteractionTable, absent: dict[LineKey, LineKey], request: UnlearningRequest) -> None:
    """Refuse entries that are not there, as the request names them and as they are meant, unless they were forgotten.

    Raises:
        RequestError: Some were not, or it cannot be told with the present key.
    """
    known = table.record.under(digest_key()) if table.record else None
    unknown = [key for key, meant in absent.items() if known is None or not _was_forgotten(table, known, *meant)]
    if not unknown:
        return
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    some = f"{', '.join(map(request.named, unknown[:5]))}{more}"
    if known is not None and known.others:
        raise RequestError(
            f"{len(unknown)} of the request's entries are not in the data: {some}; whether they were forgotten before "
            f"cannot be told, for {known.wanted}."
        )
    raise RequestError(
        f"{len(unknown)} of the request's entries are not in the data and were not forgotten before: {some}; correct "
        "or remove them and ask again."
    )


def _was_forgotten(table: InteractionTable, known: Known, kind: str, text: Any) -> bool:
    if kind == "interaction":
        user, item = text
        if known.pair(user, item):
            return True
        return _was_forgotten(table, known, "user", user) or _was_forgotten(table, known, "item", item)
    index, asked = (table.users, known.user) if kind == "user" else (table.items, known.item)
    # Who has come back, and has no rows in this source, is not forgotten: the model has learned from the new ones.
    return int(index.lookup([text])[0]) < 0 and asked(text)
