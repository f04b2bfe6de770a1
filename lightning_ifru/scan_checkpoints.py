"""Checkpoints as a scan reads them: what they know of a request, and whether the rows of its people are new."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_ifru.beginning import Beginning
from lightning_ifru.data_state import STATE_KEYS
from lightning_ifru.errors import DataError, UnlearningError
from lightning_ifru.forgotten import ForgottenRecord, Known
from lightning_ifru.ids import IdIndex
from lightning_ifru.ledger import Entry, entries_of
from lightning_ifru.loading import is_packed
from lightning_ifru.needles import Found, Needles
from lightning_ifru.outputs import sha256_of
from lightning_ifru.scan_values import Hit, look_through

#: How a checkpoint begins that an old version of torch has written.
_PICKLE = b"\x80"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint knows of a request.

    Attributes:
        path: of the file.
        hits: where in it the ids stand, or entries that it has not forgotten.
        users, items: the ids by position; none where it holds no state of the data.
        forgotten: the numbers of the entries that it is known to have forgotten.
        unclear: why it cannot be told whether it has forgotten the rest, if so.
        shapes: of its weights, by name.
        entries: of its ledger and its own training; none where it has none, or one that no unlearning has written.
    """

    path: Path
    hits: list[Hit] = field(default_factory=list)
    users: IdIndex = field(default_factory=lambda: IdIndex([]))
    items: IdIndex = field(default_factory=lambda: IdIndex([]))
    forgotten: frozenset[int] = frozenset()
    unclear: str = ""
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    entries: Sequence[Entry] = ()

    @property
    def status(self) -> str:
        """What is said of it: it remembers, has forgotten, never knew, or nobody can tell."""
        if self.hits:
            return "remembers"
        if self.unclear:
            return "cannot be told"
        return "has forgotten" if self.forgotten else "knows none of it"

    def same_model(self, other: Checkpoint) -> bool:
        """Return whether two are of one model: weights of the same shapes, and every id that both have in its place."""
        same = self.shapes == other.shapes and self.users.fits(other.users) and self.items.fits(other.items)
        return same and len(self.users) > 0 and len(self.shapes) > 0

    def follows(self, older: Checkpoint) -> bool:
        """Return whether a ledger says that one was made of this very file of another.

        Shapes and ids can be those of two trainings, and the same requests can have been followed by further epochs.
        """
        before = {one.get("checkpoint_before") for one in self.entries} - {None}
        return bool(before) and sha256_of(older.path) in before

    def is_finite(self) -> bool:
        """Return whether all weights are finite numbers.

        Raises:
            UnlearningError: it cannot be read any more.
        """
        return all(bool(tensor.isfinite().all()) for tensor in weights(read(self.path)).values())


def looks_like_one(path: Path, head: bytes) -> bool:
    """Return whether a file may be a checkpoint, by its name or by its first bytes.

    Args:
        path: of the file.
        head: its first bytes.
    """
    if path.suffix == ".ckpt" or (path.suffix in (".pt", ".pth") and head.startswith(_PICKLE)):
        return True
    if not head.startswith(b"PK") or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as members:
            return any(name.endswith("/data.pkl") for name in members.namelist())
    except Exception:  # a damaged file can raise anything
        return path.suffix in (".pt", ".pth")


def read(path: Path) -> Any:
    """Return what is in a checkpoint: tensors, which stay on the disk until they are looked at, and plain values.

    Raises:
        UnlearningError: it holds more than that, which is not loaded, or cannot be read.
    """
    try:
        if is_packed(path):
            raise ValueError("it holds packed parts, which can be of any size")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can raise anything
        said = str(error)
        reason = f"{type(error).__name__}: {said.partition(chr(10))[0][:200]}"
        if "weights_only" in said or "Weights only" in said:  # torch writes paragraphs about it
            reason = "it holds more than tensors and plain values, or is none"
        raise UnlearningError(f"not read as a checkpoint ({reason})") from error


def look_at(path: Path, content: Any, needles: Needles, key: bytes) -> Checkpoint:
    """Return what a checkpoint knows of a request.

    Args:
        path: of the file.
        content: what :func:`read` has returned.
        needles: the request.
        key: of the digests.
    """
    states = dict(_data_states(content))
    skip = {f"{name}.{ids}" for name in states for ids in ("user_ids", "item_ids")}
    hits = list(hits_in(content, needles, skip))
    shapes = {name: tensor.shape for name, tensor in weights(content).items()}
    entries = _entries_of(content)
    if not states:
        unclear = "holds weights and no state of the data, so that nobody can tell what they remember" if shapes else ""
        return Checkpoint(path, hits, unclear=unclear, shapes=shapes, entries=entries)
    forgotten: set[int] = set()
    doubts = 0
    for name, state in states.items():
        users, items = IdIndex(state["user_ids"]), IdIndex(state["item_ids"])
        known = _known(state, key)
        present, gone, doubtful = _entries(needles, users, items, known)
        forgotten |= gone
        doubts += doubtful
        hits += [Hit(f"{name}, {what}", found) for what, found in present.items() if found]
    unclear = "recorded what it has forgotten under another key, or not at all" if doubts else ""
    return Checkpoint(path, hits, users, items, frozenset(forgotten), unclear, shapes, entries)


def hits_in(content: Any, needles: Needles, skip: Set[str] = frozenset()) -> Iterator[Hit]:
    """Yield where in a checkpoint ids stand, whatever the data say.

    Below a name in ``state_dict`` are positions and no ids, and a number among the hyper-parameters is a count; long
    ids are found there all the same.

    Args:
        content: what was read.
        needles: the request.
        skip: places not to look at.
    """
    if isinstance(content, Mapping):
        content = dict(content)
        for place, kinds in _NAMELESS.items():
            if isinstance(part := content.get(place), Mapping):
                content[place] = {key: {"": one} if isinstance(one, kinds) else one for key, one in part.items()}
    for hit in look_through(content, needles, skip):
        yield Hit(hit.where.rstrip("."), hit.found)


_NAMELESS: dict[str, tuple[type, ...]] = {
    "state_dict": (Tensor,),
    "hyper_parameters": (int, float),
    "datamodule_hyper_parameters": (int, float),
}


def unchanged_rows(older: Checkpoint, newer: Checkpoint, needles: Needles) -> list[str]:
    """Return which weights of the newer checkpoint have rows of the request's erased as they were in the older one.

    Args:
        older: that remembers.
        newer: of the same model, that has forgotten.
        needles: the request.

    Raises:
        UnlearningError: one of them cannot be read.
    """
    sizes = {"user": len(older.users), "item": len(older.items), "node": len(older.users) + len(older.items)}
    places = {
        "user": _erased(needles.ids("user"), older.users, newer.users),
        "item": _erased(needles.ids("item"), older.items, newer.items),
    }
    places["node"] = torch.cat([places["user"], places["item"] + sizes["user"]])
    if not len(places["node"]):
        return []
    before, after = (weights(read(checkpoint.path)) for checkpoint in (older, newer))
    found = []
    for name in sorted(before.keys() & after.keys()):
        kinds = [kind for kind, size in sizes.items() if before[name].dim() and len(before[name]) == size]
        kinds = [kind for kind in kinds if kind in name.casefold()] if len(kinds) > 1 else kinds
        if len(kinds) != 1:  # nobody's rows, or nobody can tell whose
            continue
        rows = places[kinds[0]]
        then, now = (tensor[name][rows].reshape(len(rows), -1) for tensor in (before, after))
        if bool(((then == now).all(1) & (now != 0).any(1)).any()):
            found.append(name)
    return found


def _erased(ids: list[str], older: IdIndex, newer: IdIndex) -> Tensor:
    """The positions that have one of these ids in the older and none in the newer index."""
    places = np.unique(older.lookup(ids))
    return torch.from_numpy(places[(places >= 0) & newer.erased[places]])


def weights(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint's ``state_dict``, by name; none where it has no such part."""
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        return {}
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _data_states(content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The states of interaction data in a checkpoint, whatever the class of the data was called."""
    for name, state in content.items() if isinstance(content, Mapping) else ():
        if isinstance(state, Mapping) and state.keys() >= STATE_KEYS - {"forgotten_record"}:
            yield str(name), state


def _entries_of(content: Any) -> list[Entry]:
    """The entries of a ledger that are of the model's training, none where no unlearning has written them so."""
    states = content.get("callbacks") if isinstance(content, Mapping) else None
    for state in states.values() if isinstance(states, Mapping) else ():
        if isinstance(state, Mapping) and "ledger" in state:
            try:
                return Beginning.of(state).own(entries_of(state))
            except DataError:
                return []
    return []


def _known(state: Mapping[str, Any], key: bytes) -> Known | None:
    """What a state has forgotten, as far as it says so and the key can ask."""
    try:
        known = ForgottenRecord.of_state(state.get("forgotten_record", {})).under(key)
    except UnlearningError:
        return None
    unsaid = int(state["num_forgotten"]) and not known.part
    return None if known.others or unsaid else known


def _entries(
    needles: Needles, users: IdIndex, items: IdIndex, known: Known | None
) -> tuple[dict[str, Found], set[int], int]:
    """Which entries the data still have, by what says so, which they have forgotten, and how many nobody can tell."""
    whose = {"user": users, "item": items}
    present = {f"ids of {kind}s": Found() for kind in whose} | {"pairs that it has not forgotten": Found()}
    gone: set[int] = set()
    doubts = 0
    for number, ((kind, _), spelled) in enumerate(zip(needles.keys, needles.spelled, strict=True)):
        if kind != "interaction":
            if max(whose[kind].lookup(text for (text,) in spelled)) >= 0:
                present[f"ids of {kind}s"][number] = 1
            elif known is not None and any(
                map(known.user if kind == "user" else known.item, *zip(*spelled, strict=True))
            ):
                gone.add(number)
            continue
        if known is not None and any(known.pair(user, item) for user, item in spelled):
            gone.add(number)
        elif any(users.lookup([user])[0] >= 0 and items.lookup([item])[0] >= 0 for user, item in spelled):
            present["pairs that it has not forgotten"][number] = int(known is not None)
            doubts += known is None
    return {what: +found for what, found in present.items()}, gone, doubts
