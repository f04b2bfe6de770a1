"""Since when a model has been trained from the beginning: what requests before that have left is in it no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning

from lightning_ifru.errors import DataError
from lightning_ifru.ledger import Entry


@dataclass(frozen=True)
class Beginning:
    """The entry of a ledger after which the model was trained from epoch 0, and not further from a checkpoint.

    That the weights were drawn anew before is taken on trust.

    Attributes:
        after: the id of the entry, ``None`` where there was no such training.
        begun: what ``after`` becomes with the first step of the fit that runs.
        before: what it was before that fit.

    Example:
        >>> Beginning("a").since([{"id": "a"}]) is None
        True
        >>> Beginning("a").since([{"id": "a"}, {"id": "b"}])
        {'id': 'b'}
    """

    after: str | None = None
    begun: str | None = None
    before: str | None = None

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Beginning:
        """Return what a callback's state says, which may be from anybody.

        Raises:
            DataError: it is no id.
        """
        after = state.get("trained_after")
        if not (after is None or isinstance(after, str)):
            raise DataError(
                f"the checkpoint says that its model was trained after a {type(after).__name__}, where an unlearning "
                "writes the id of an entry of its ledger; give the file as it was written."
            )
        return cls(after)

    def state(self, entries: Sequence[Entry]) -> dict[str, str | None]:
        """Return what a checkpoint says of it."""
        return {} if self.since(entries) is not None or not entries else {"trained_after": self.after}

    def since(self, entries: Sequence[Entry]) -> Entry | None:
        """Return the last entry, which says what the model's past requests have left; ``None`` of a model without."""
        last = entries[-1] if entries else None
        return None if last is not None and last.get("id", "") == self.after else last

    def own(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries of the training that the model is of, and none of one that its ledger goes on from.

        Example:
            >>> entries = [{"id": "a", "line": "m"}, {"id": "b", "line": "n"}]
            >>> [Beginning(after).own(entries) for after in ("a", "b")]
            [[{'id': 'b', 'line': 'n'}], []]
        """
        last = self.since(entries)
        return [] if last is None else [one for one in entries if one.get("line") == last.get("line")]

    def fit_starts(self, trainer: lightning.Trainer, entries: Sequence[Entry]) -> Beginning:
        """Return the same with a note whether a fit begins anew: from epoch 0 without a file."""
        further = trainer.ckpt_path or trainer.current_epoch or trainer.global_step
        plays = getattr(trainer, "fast_dev_run", False)
        return Beginning(self.after, entries[-1].get("id", "") if entries and not (further or plays) else None)

    def trains(self, trainer: lightning.Trainer) -> Beginning:
        """Return what holds as a fit goes on, whose checkpoints may be all that stays of it."""
        if self.begun is None or self.after == self.begun or not trainer.global_step:
            return self
        return replace(self, after=self.begun, before=self.after)

    def fit_ends(self) -> Beginning:
        """Return what stays of a fit that has come to its end."""
        return Beginning(self.after)

    def breaks_off(self) -> Beginning:
        """Return what stays of a fit that has not: it may have trained next to nothing."""
        return Beginning(self.after if self.begun is None or self.after != self.begun else self.before)
