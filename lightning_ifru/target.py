"""The checkpoint that an unlearning writes, last of all and at once, and its line in the ledger beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_ifru.bounded import printable
from lightning_ifru.checkpoints import checkpoint_folder, loaded_checkpoint, new_checkpoint
from lightning_ifru.errors import RankError
from lightning_ifru.ledger import Entry, Ledger
from lightning_ifru.leftovers import check_written
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
        before: its hash.
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
    ) -> Target:
        """Choose the place, and keep others out of it.

        Args:
            trainer: in which it runs.
            ranks: its processes.
            transaction: that it is part of, which holds the folder of ``output`` already.
            output: the path that was asked for; by default the trainer's checkpoint callbacks say where.
            entries: what was forgotten before.
            request: what is staged.

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
        before = None if loaded is None else sha256_of(loaded)
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

    def publish(self, entries: Sequence[Entry]) -> None:
        """Give the checkpoint its name, after which nothing is undone, and the ledger its lines.

        Args:
            entries: what the checkpoint says was forgotten, the last of them by this unlearning.
        """
        if self.path is None:
            return
        self.ranks.meet()  # nobody has failed
        if self.ranks.rank == 0:
            self.transaction.publish()
            self.note(entries, self.path)
        try:
            self.ranks.meet()
        except RankError as error:
            if self.transaction.final:
                raise RankError(f"{self.path} is written, whole and final, but then {error}") from error
            raise
        self.transaction.settle()

    def note(self, entries: Sequence[Entry], written: Path) -> None:
        """Add to the ledger beside a checkpoint what it lacks: also what a process could not that was killed too early.

        Args:
            entries: what the checkpoint says was forgotten.
            written: the checkpoint, which was written with the last of them.
        """
        path = written.with_name(LEDGER)
        try:
            files: dict[str, tuple[str, str]] = {}
            if self.loaded is not None and self.before is not None and _beside(self.loaded, path):
                files |= {entry.get("id", ""): (self.loaded.name, self.before) for entry in entries[-2:-1]}
            files |= {entry.get("id", ""): (written.name, sha256_of(written)) for entry in entries[-1:]}
            Ledger(path).append(entries, files)
        except (OSError, ValueError) as error:
            rank_zero_warn(
                f"{written} is written, but not its line in {path} ({error}); the next unlearning into that folder "
                f"adds it, and so does: lightning-ifru audit --ledger {path}"
            )

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
