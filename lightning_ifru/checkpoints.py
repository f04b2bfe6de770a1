"""The checkpoint that an unlearning writes: where it goes, what stands for it, and which files still remember."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lightning_ifru.ledger import Entry, entries_in

_Identity = tuple[int, int, int]
#: By file as it was, the last entry of its ledger: to read a checkpoint takes as long as to forget somebody.
_LAST: dict[_Identity, str] = {}


def checkpoint_folder(trainer: lightning.Trainer) -> Path | None:
    """Return the folder that the trainer writes checkpoints into, or ``None`` where it writes none."""
    return None if not _callbacks(trainer) or getattr(trainer, "fast_dev_run", False) else _directory(trainer)


def new_checkpoint(trainer: lightning.Trainer, folder: Path, number: int) -> Path:
    """Return a path in a folder, not in use yet, for the unlearned checkpoint."""
    stem = _stem(_callbacks(trainer))
    while (path := folder / f"{stem}-{number}.ckpt").exists():
        number += 1
    return path


def loaded_checkpoint(trainer: lightning.Trainer) -> Path | None:
    """Return the file of what is unlearned; ``None`` where there is none, or a fit has moved the weights since."""
    fitting, path = trainer.state.fn == TrainerFn.FITTING, trainer.ckpt_path
    return Path(path) if path and not fitting and Path(path).is_file() else None


def older_checkpoints(trainer: lightning.Trainer, written: Path, entries: Sequence[Entry]) -> list[str]:
    """Return the checkpoint files that still remember, each once: the one loaded, and those in the trainer's folders.

    A trainer that writes none has no folders: in their place is that of the loaded one. Left out is whatever went on
    from the unlearned one, for its ledger has all that this one's has.

    Args:
        trainer: that has unlearned.
        written: the path of the unlearned checkpoint, there already or not, which is left out.
        entries: what that says was forgotten.
    """
    callbacks, loaded = _callbacks(trainer), str(trainer.ckpt_path or "")
    models = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    paths = [loaded]
    for callback in models:
        paths += [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
    folders = [_directory(trainer)] if callbacks else [Path(loaded).parent] if loaded else []
    for folder in [*folders, *(Path(callback.dirpath) for callback in models if callback.dirpath)]:
        paths += map(str, sorted(folder.glob("*.ckpt")))
    found = {os.path.abspath(path): path for path in reversed(paths) if path and Path(path).exists()}
    place = written.parent.resolve() / written.name  # the writing replaces a link, and not what it leads to
    return sorted(
        path
        for path in found.values()
        if place not in (Path(path).resolve(), Path(path).parent.resolve() / Path(path).name)
        and not _has_forgotten(Path(path), entries)
    )


def warn_of(older: list[str]) -> None:
    """Say which checkpoints still remember, if there are any."""
    if older:
        rank_zero_info(f"These hold what was forgotten if they are of this model; delete them: {', '.join(older)}")


def stand_for(trainer: lightning.Trainer, path: Path) -> None:
    """Make a checkpoint the one that 'best' and 'last' stand for."""
    for callback in _callbacks(trainer):
        if isinstance(callback, ModelCheckpoint):
            # No score: none was measured on the validation data as it now is.
            callback.best_k_models, callback.kth_best_model_path = {}, ""
            callback.best_model_score, callback.current_score, callback.kth_value = None, None, _worst(callback)
            callback.best_model_path = str(path)
            callback.last_model_path = str(path) if callback.save_last else ""


def remember(path: Path, entries: Sequence[Entry]) -> None:
    """Keep in mind with which entry the ledger in a file ends, as long as the file is as it is now."""
    last = entries[-1].get("id") if entries else ""
    if last is not None and (file := _identity(path)) is not None:
        _LAST[file] = last


def _has_forgotten(path: Path, entries: Sequence[Entry]) -> bool:
    """Whether a file's ledger has all entries; not so where it cannot be read, or there is nothing to go by."""
    if not entries:
        return False
    # A ledger only grows: one that ends before the last of these entries lacks that.
    file = _identity(path)
    last = _LAST.get(file) if file is not None else None
    if last == "" or last in [entry.get("id", "") for entry in entries[:-1]]:
        return False
    theirs = entries_in(path) or []
    if all(entry in theirs for entry in entries):
        return True
    remember(path, theirs)
    return False


def _identity(path: Path) -> _Identity | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _callbacks(trainer: lightning.Trainer) -> list[Checkpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoint)]


def _directory(trainer: lightning.Trainer) -> Path:
    first = trainer.checkpoint_callback
    if isinstance(first, ModelCheckpoint) and first.dirpath:
        return Path(first.dirpath)
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def _stem(callbacks: list[Checkpoint]) -> str:
    """The name's beginning; Lightning takes the newest file whose name begins with 'last' for ``"last"``."""
    last = [c.CHECKPOINT_NAME_LAST for c in callbacks if isinstance(c, ModelCheckpoint) and c.save_last]
    return f"{last[0]}-unlearned" if last else "unlearned"


def _worst(callback: ModelCheckpoint) -> torch.Tensor:
    return torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)
