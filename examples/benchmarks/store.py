"""Trained models on the disk, so that one is trained once, whoever needs it and however often a run is broken off."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from protocol import Deletion, Ratings
from recipes import Recipe, Trained, train
from rows import key_of

#: What is kept of a model: its ``parameters`` and the ``seconds`` of its training.
Saved = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """Originals and retrained models of some ratings, in a folder.

    Args:
        folder: where they are kept; made if need be.
        ratings: what they are trained on.
    """

    folder: Path
    ratings: Ratings

    def trained(self, recipe: Recipe, deletion: Deletion, seed: int, *, retrained: bool) -> Trained:
        """Return a model trained on everything, or without what a deletion forgets; its seconds are of its training.

        A process that asks for what another is just training waits for it.
        """
        source = self.ratings.source(recipe, deletion)
        # Originals differ by what is planted in their data, and by nothing that is only forgotten later.
        about = deletion.name if retrained or deletion.kind == "flipped" else None
        key = key_of(
            recipe=asdict(recipe), data=self.ratings.described(), deletion=about, seed=seed, retrained=retrained
        )
        data = source()
        without = self.ratings.request(deletion, data) if retrained else None
        path = self.folder / f"{key}.pt"

        def make() -> Saved:
            made = train(recipe, source, seed, without)
            return {"parameters": made.module.state_dict(), "seconds": made.seconds}

        saved = kept(path, make)
        if without is not None:
            data.forget(without)
            data.commit(data.removal())
        module = recipe.module(data, seed)
        module.load_state_dict(saved["parameters"])
        return Trained(recipe, seed, source, module, data, saved["seconds"])


def kept(path: Path, make: Callable[[], Saved]) -> Saved:
    """Return what is saved under a path; one process makes and saves it first if it is not there."""
    with _alone(path.with_suffix(".lock")):
        if not path.exists():
            unfinished = path.with_suffix(".tmp")
            torch.save(make(), unfinished)
            os.replace(unfinished, path)
    saved: Saved = torch.load(path, weights_only=True)
    return saved


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
