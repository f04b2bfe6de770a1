"""Trained models on the disk, so that one is trained once, whoever needs it and however often a run is broken off."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from protocol import Deletion, Ratings
from recipes import Recipe, Trained, train
from rows import key_of


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
        with _alone(path.with_suffix(".lock")):
            if not path.exists():
                made = train(recipe, source, seed, without)
                unfinished = path.with_suffix(".tmp")
                torch.save({"parameters": made.module.state_dict(), "seconds": made.seconds}, unfinished)
                os.replace(unfinished, path)
                return made
        saved = torch.load(path, weights_only=True)
        if without is not None:
            data.forget(without)
            data.commit(data.removal())
        module = recipe.module(data, seed)
        module.load_state_dict(saved["parameters"])
        return Trained(recipe, seed, source, module, data, saved["seconds"])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
