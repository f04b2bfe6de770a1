"""What an audit rests on: checkpoints that fit each other, and the pairs that one remembers and the other does not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_ifru.callback import IFRUCallback
from lightning_ifru.data_state import STATE_KEYS, check_state
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, UnlearningError
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.ids import IdIndex
from lightning_ifru.interactions import InteractionTable
from lightning_ifru.ledger import entries_of
from lightning_ifru.loading import loading_refusal, safe_loading
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.outputs import sha256_of


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One checkpoint: its weights, what its data were, and which file it is.

    Attributes:
        role: what it is called in the report.
        file: the name of the file, without its folder.
        sha256: of the file.
        weights: its ``state_dict``.
        ledger: what it says it has forgotten; ``[]`` if it says nothing.
        data: the state of the data, as of :meth:`InteractionTable.state`.
    """

    role: str
    file: str
    sha256: str
    weights: dict[str, Any]
    ledger: list[dict[str, Any]]
    data: dict[str, Any]

    @classmethod
    def load(
        cls,
        role: str,
        path: str | Path,
        trainer: lightning.Trainer,
        data: InteractionDataModule,
        module: IFRUMixin,
        weights_only: bool | None,
    ) -> Exhibit:
        """Read a checkpoint as the trainer does, and try its weights on the module's copy.

        Raises:
            UnlearningError: it cannot be read, does not fit the module, or does not say what its data were.
        """
        try:
            with safe_loading(trainer, weights_only):
                checkpoint = trainer.strategy.load_checkpoint(path)
            if not isinstance(checkpoint["state_dict"], Mapping):
                raise ValueError(f"its state_dict is a {type(checkpoint['state_dict']).__name__}")
            module.on_load_checkpoint(checkpoint)
            loaded = cls(
                role=role,
                file=Path(path).name,
                sha256=sha256_of(path),
                weights=dict(checkpoint["state_dict"]),
                ledger=entries_of(checkpoint.get("callbacks", {}).get(IFRUCallback().state_key, {})),
                data=checkpoint.get(type(data).__qualname__) or {},
            )
            loaded.fill(module)
        except (UnlearningError, MisconfigurationException):
            raise
        except Exception as error:  # from a checkpoint of others the module may meet anything
            raise loading_refusal(error, path, module) from error
        if absent := sorted(STATE_KEYS - set(loaded.data) if isinstance(loaded.data, Mapping) else STATE_KEYS):
            lacking = f" (it lacks {absent[0]!r})" if loaded.data else ""
            raise DataError(
                f"the {role} checkpoint {loaded.file} does not say which interactions it was trained on{lacking}; give "
                f"one that was written by a trainer with {type(data).__name__} as its datamodule."
            )
        check_state(loaded.data)
        return loaded

    def fill(self, module: IFRUMixin) -> None:
        """Put the weights into a module."""
        module.load_state_dict(self.weights, strict=module.strict_loading)

    def table(self, table: InteractionTable) -> InteractionTable | None:
        """Return a copy of the table as the checkpoint knew it, or ``None`` if it was trained on something else."""
        known = copy.deepcopy(table)
        try:
            known.restore(self.data)
        except DataError:
            return None
        return known if known.state()["fingerprint"] == self.data["fingerprint"] else None


@dataclass(frozen=True, eq=False)
class Evidence:
    """The checkpoints of an audit, and the data of the two sides.

    Attributes:
        original, unlearned, retrained: the checkpoints.
        before: the table as the original model knew it.
        after: the table as the unlearned model knows it, row for row the same.
        forgotten: which rows the original has and the unlearned has not, a bool mask.
    """

    original: Exhibit
    unlearned: Exhibit
    retrained: list[Exhibit]
    before: InteractionTable
    after: InteractionTable
    forgotten: Tensor

    @classmethod
    def gather(
        cls, original: Exhibit, unlearned: Exhibit, retrained: Sequence[Exhibit], table: InteractionTable
    ) -> Evidence:
        """Find out from the source's ``table``, which stays as it is, what was forgotten between two checkpoints.

        Raises:
            DataError: the checkpoints are not of the same users, items, split or data, the source is another one or
                no longer holds the forgotten, or a retrained model holds something else than the unlearned one.
            UnlearningError: nothing was forgotten between them, two hold the same weights, or a retrained model has
                been unlearned.
        """
        for other in (unlearned, *retrained):
            _check_layout(original, other)
        after, before = unlearned.table(table), original.table(table)
        if before is None and after is not None:
            raise DataError(
                "the source no longer holds the forgotten pairs, and the audit needs them to ask the models about "
                "them; run it before the source is cleared, or on the source as it was."
            )
        for exhibit, known in ((original, before), (unlearned, after)):
            if known is None:
                raise _other_data(exhibit)
        assert before is not None
        assert after is not None
        back = int((after.alive & ~before.alive).sum())
        forgotten = before.alive & ~after.alive
        if back or not forgotten.any():
            raise UnlearningError(
                f"the unlearned checkpoint {unlearned.file} has forgotten {int(forgotten.sum())} interactions of the "
                f"original {original.file} and holds {back} that this has forgotten; wanted some and none: give the "
                "checkpoint from before the unlearning as original and the one from after it as unlearned."
            )
        _check_split(original, before, unlearned, after)
        for exhibit in retrained:
            known = _check_retrained(exhibit, exhibit.table(table), after, forgotten)
            _check_split(original, before, exhibit, known)
            if more := [entry for entry in exhibit.ledger if entry not in original.ledger]:
                raise UnlearningError(
                    f"the {exhibit.role} checkpoint {exhibit.file} was unlearned and not retrained: its ledger has "
                    f"{len(more)} requests that the original's has not; {_SAME_DATA}, and fit a new model."
                )
        for one, other in combinations((original, unlearned, *retrained), 2):
            if one.sha256 == other.sha256 or _same_weights(one.weights, other.weights):
                raise UnlearningError(
                    f"the {one.role} checkpoint {one.file} and the {other.role} checkpoint {other.file} hold the same "
                    "weights, so that comparing them says nothing; give checkpoints of different models, each once."
                )
        return cls(original, unlearned, list(retrained), before, after, forgotten)

    @property
    def exhibits(self) -> list[Exhibit]:
        """All checkpoints, in order."""
        return [self.original, self.unlearned, *self.retrained]

    @cached_property
    def erased(self) -> dict[str, Tensor]:
        """The positions of ``users`` and ``items`` that lost their last training interaction, or their last of all."""
        found = {}
        for name, column, size in (
            ("users", self.before.user, len(self.before.users)),
            ("items", self.before.item, len(self.before.items)),
        ):
            counts = [
                torch.bincount(column[rows], minlength=size)
                for table in (self.before, self.after)
                for rows in (table.rows("train"), table.alive)
            ]
            gone = ((counts[0] > 0) & (counts[2] == 0)) | ((counts[1] > 0) & (counts[3] == 0))
            found[name] = gone.nonzero().flatten()
        return found

    @property
    def kept(self) -> dict[str, Tensor]:
        """Which rows of a parameter are of nobody erased, bool masks by the kind of its rows."""
        user, item = (
            torch.ones(size, dtype=torch.bool).index_fill_(0, self.erased[name], value=False)
            for name, size in (("users", len(self.before.users)), ("items", len(self.before.items)))
        )
        return {"user": user, "item": item, "node": torch.cat([user, item])}

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The entries of the unlearned model's ledger that the original's has not."""
        return [entry for entry in self.unlearned.ledger if entry not in self.original.ledger]


def edges(table: InteractionTable) -> Tensor:
    """Return the ``edge_index`` ``[2, 2E]`` of a table's positive training interactions."""
    some = table.select("train", positive=True)
    return bipartite_edge_index(some.user, some.item, len(table.users))


def _same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


def _check_layout(original: Exhibit, other: Exhibit) -> None:
    """Refuse another checkpoint whose rows stand for other users or items."""
    for kind in ("user", "item"):
        mine, theirs = (IdIndex(exhibit.data[f"{kind}_ids"]) for exhibit in (original, other))
        if not mine.fits(theirs):
            raise DataError(
                f"the rows of the {other.role} checkpoint {other.file} stand for other {kind}s or in another order "
                f"({len(theirs)}) than those of the original {original.file} ({len(mine)}); {_SAME_DATA}."
            )


def _check_split(original: Exhibit, before: InteractionTable, other: Exhibit, known: InteractionTable) -> None:
    """Refuse another checkpoint that trained on what the original holds out, or the other way round."""
    if moved := int((known.split != before.split)[known.alive].sum()):
        raise DataError(
            f"the {other.role} checkpoint {other.file} was trained on another split than the original "
            f"{original.file}, in which {moved} interactions are elsewhere; {_SAME_DATA}."
        )


def _check_retrained(
    exhibit: Exhibit, known: InteractionTable | None, after: InteractionTable, forgotten: Tensor
) -> InteractionTable:
    if known is None:
        raise _other_data(exhibit)
    if kept := int((known.alive & forgotten).sum()):
        raise DataError(
            f"the {exhibit.role} checkpoint {exhibit.file} still contains {kept} of the {int(forgotten.sum())} "
            f"forgotten pairs; {_SAME_DATA}."
        )
    if differing := int((known.alive ^ after.alive).sum()):
        raise DataError(
            f"the {exhibit.role} checkpoint {exhibit.file} and the unlearned one differ in {differing} more "
            f"interactions than those forgotten; {_SAME_DATA}."
        )
    return known


def _other_data(exhibit: Exhibit) -> DataError:
    return DataError(
        f"the data are not those that the {exhibit.role} checkpoint {exhibit.file} was trained on, which has "
        f"{exhibit.data['num_rows']} interactions with {len(exhibit.data['forgotten'])} forgotten; read the same "
        "source with the same columns and threshold."
    )


_SAME_DATA = (
    "train it on the original's data with the request committed: data.forget(request), data.commit(data.removal())"
)
