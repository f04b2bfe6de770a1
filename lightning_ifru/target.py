"""The checkpoint that an unlearning writes, last of all and at once, and its line in the ledger beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.utilities import rank_zero_info

from lightning_ifru.bounded import printable
from lightning_ifru.checkpoints import checkpoint_folder, loaded_checkpoint, new_checkpoint, remember
from lightning_ifru.errors import RankError
from lightning_ifru.ledger import Entry, Ledger
from lightning_ifru.ledger_check import chain, entries_beside, written_with
from lightning_ifru.leftovers import check_written
from lightning_ifru.notices import warn
from lightning_ifru.outputs import LEDGER, sha256_of, writing
from lightning_ifru.ranks import Ranks
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.transaction import Transaction


@dataclass(frozen=True)
class Target:
    """Where an unlearning ends up; all ranks have one, and the first writes, so that its folder counts.

    Args:
        trainer: in which it runs.
        ranks: its processes.
        transaction: that it is part of, and that is final as soon as the checkpoint has its name.
        path: of the checkpoint to write; ``None`` where none is.
        loaded: the checkpoint that is unlearned, on the first rank, if it is a file.
        before: its hash, or that of the file that this process has written of the same model before.
        request: of which nothing may be left in what is written.
    """

    trainer: lightning.Trainer
    ranks: Ranks
    transaction: Transaction
    path: Path | None
    loaded: Path | None
    before: str | None
    request: UnlearningRequest | None

    @classmethod
    def of(
        cls,
        trainer: lightning.Trainer,
        ranks: Ranks,
        transaction: Transaction,
        output: Path | None,
        entries: Sequence[Entry],
        request: UnlearningRequest | None,
        written: str | None = None,
    ) -> Target:
        """Choose the place, and keep others out of it.

        Args:
            trainer: in which it runs.
            ranks: its processes.
            transaction: that it is part of, which holds the folder of ``output`` already.
            output: the path that was asked for; by default the trainer's checkpoint callbacks say where.
            entries: what was forgotten before.
            request: what is staged.
            written: the hash of the file that this process has written of the model last, if it is that model still;
                weights that were changed by hand since cannot be told.

        Raises:
            DataError: another process writes there, or nothing can be written there.
        """
        path = output
        folder = None if output is not None else checkpoint_folder(trainer)  # all look: Lightning asks all of them
        first = ranks.rank == 0
        if folder is not None:
            if first:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                transaction.hold(folder)
            path = ranks.first(new_checkpoint(trainer, folder, len(entries) + 1))
        loaded = loaded_checkpoint(trainer) if first else None
        before = written if loaded is None else sha256_of(loaded)
        return cls(trainer, ranks, transaction, path, loaded, before, request)

    def write(self) -> None:
        """Write the checkpoint beside its place, and see that nothing of the request is left in it.

        Raises:
            DataError: it could not be written.
            ObjectiveError: the request is in it.
        """
        if self.path is None:
            return
        if self.ranks.rank == 0:
            self.transaction.write(self.path, self._save_checked)
        else:
            self._save(self.path)  # all take part

    def publish(self, entries: Sequence[Entry]) -> str | None:
        """Give the checkpoint its name, after which nothing is undone, and the ledger its lines.

        Args:
            entries: what the checkpoint says was forgotten, the last of them by this unlearning.

        Returns:
            the hash of the file, on the first rank, if it could be read again.
        """
        if self.path is None:
            return None
        digest = None
        self.ranks.meet()  # nobody has failed
        if self.ranks.rank == 0:
            self.transaction.publish()
            digest = self.note(entries, self.path)
            remember(self.path, entries)
        try:
            self.ranks.meet()
        except RankError as error:
            if self.transaction.final:
                raise RankError(f"{self.path} is written, whole and final, but then {error}") from error
            raise
        self.transaction.settle()
        return digest

    def note(self, entries: Sequence[Entry], written: Path) -> str | None:
        """Add to the ledger beside a checkpoint what it lacks: also what a process could not that was killed too early.

        Args:
            entries: what the checkpoint says was forgotten.
            written: the checkpoint, which was written with the last of them.

        Returns:
            its hash, if it could be read.
        """
        path, digest = written.with_name(LEDGER), None
        try:
            digest = sha256_of(written)
            ledger = Ledger(path)
            broken, missed, lacked = chain(ledger), ledger.misses(entries), ledger.lacks(entries[:-1])
            missed = [one for one in missed if one in lacked]  # the last is the one that is written
            files = written_with(entries_beside(path.parent), {one["id"] for one in lacked}) if lacked else {}
            files |= {entry.get("id", ""): (written.name, digest) for entry in entries[-1:]}
            ledger.append(entries, files)
        except (OSError, ValueError) as error:
            warn(
                f"{written} is written, but not its line in {path} ({error}); the next unlearning into that folder "
                f"adds it, and so does: lightning-ifru audit --ledger {path}"
            )
            return digest
        if broken:
            warn(
                f"{path} did not hold when a line was to be added to it: {printable(broken[0])} See: lightning-ifru "
                f"audit --ledger {path}"
            )
        if missed:
            lines = "1 line" if len(missed) == 1 else f"{len(missed)} lines"
            warn(
                f"{path} had lost {lines} of earlier unlearnings, added again from {written.name}: a crash takes away "
                "one; if there was none, find out who has changed the file."
            )
        return digest

    def leave(self, entries: Sequence[Entry]) -> None:
        """Write nothing, as nothing was left to forget, but see to the ledger if that was found in this very folder.

        Args:
            entries: what the loaded checkpoint says was forgotten.
        """
        if self.loaded is not None and self.path is not None and _beside(self.loaded, self.path):
            self.note(entries, self.loaded)

    def warn_of_later(self, entries: Sequence[Entry]) -> None:
        """Say so if the model has forgotten more since than the checkpoint that is loaded.

        Args:
            entries: what that says was forgotten.
        """
        if self.path is None or self.ranks.rank != 0:
            return
        path = self.path.with_name(LEDGER)
        try:
            later = Ledger(path).unknown_to(entries, self.before)
        except OSError:
            return  # which is said when a line is to be added
        if later:
            requests = "1 request" if len(later) == 1 else f"{len(later)} requests"
            named = [line for line in later if line["checkpoint"] is not None]
            most = printable(max(named, key=_number)["checkpoint"]) if named else "its newest checkpoint"
            # Not as a warning, which would come with a line of this file.
            rank_zero_info(
                f"{path} says that this model has forgotten {requests} more, of which the checkpoint that is unlearned "
                f"knows nothing, and neither will the new one; start from {most}, which has forgotten most."
            )

    def _save_checked(self, place: Path) -> None:
        self._save(place)
        if self.request is not None:
            check_written(place, self.request)

    def _save(self, place: Path) -> None:
        self.trainer.save_checkpoint(place, weights_only=False)
        self.trainer.strategy.checkpoint_io.teardown()  # one that writes in the background has then written


def _number(line: Entry) -> int:
    return number if isinstance(number := line.get("number"), int) else 0


def _beside(path: Path, other: Path) -> bool:
    return path.parent.resolve() == other.parent.resolve()
