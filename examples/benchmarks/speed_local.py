"""How far a local solve's change is from the full one's, in the scores of everybody but who is erased."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recipes import Scorer
from speed_data import ask_typical
from speed_training import Runs
from speed_unlearn import Subject, timed, trainer_for
from torch import Tensor

from lightning_ifru import IFRU, InteractionDataModule, UnlearningRequest

Pairs = dict[str, tuple[Tensor, Tensor]]


def local_errors(subject: Subject, number: int, seed: int) -> Runs:
    """Forget each of some typical users from the same model, by the full solve and locally, and compare the scores.

    ``error`` is the norm of what the scores differ by over that of the full solve's change, ``cosine`` that of the
    two changes: over the ``test`` pairs of others, over those ``near``, the training pairs that others have with the
    items of who is erased, and over all of these.
    """
    module, data = subject.fresh()
    before, runs = Scorer.of(module, data), Runs()
    with tempfile.TemporaryDirectory() as folder:
        for path, named in ask_typical(data, number, seed, Path(folder)):
            pairs = _pairs(data, path)
            run: dict[str, Any] = {"named": named, "pairs": len(pairs["all"][0])}
            changes = {}
            for name in ("full", "local"):
                after, seconds = _forgotten(subject, replace(subject.method, locality=name), path)
                run[f"total.{name}"] = seconds
                changes[name] = {part: after.pairs(*some) - before.pairs(*some) for part, some in pairs.items()}
            for part, change in changes["full"].items():
                found = compare(changes["local"][part], change)
                run |= {f"{name}.{part}": value for name, value in found.items()}
            runs.append(run)
    return runs


def compare(change: Tensor, wanted: Tensor) -> dict[str, float | None]:
    """Return the relative error of a change and its cosine to the one that is wanted; ``None`` where there is none.

    Example:
        >>> compare(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0]))
        {'error': 0.8, 'cosine': 0.6}
    """
    change, wanted = change.double(), wanted.double()
    sizes = change.norm(), wanted.norm()
    if not all(sizes):
        return {"error": None, "cosine": None}
    error, cosine = (change - wanted).norm() / sizes[1], change @ wanted / (sizes[0] * sizes[1])
    return {"error": round(float(error), 6), "cosine": round(float(cosine), 6)}


def _pairs(data: InteractionDataModule, path: Path) -> Pairs:
    """The pairs of others, while nothing is forgotten yet."""
    data.forget(UnlearningRequest.from_file(path))
    removal = data.removal()
    data.discard()
    train, test = data.train, data.table.select("test", without=removal)
    gone = data.table.item[removal.rows & data.table.rows("train")].unique()
    near = torch.isin(train.item, gone) & ~torch.isin(train.user, removal.users)
    parts = {"test": (test.user, test.item), "near": (train.user[near], train.item[near])}
    return {"all": (torch.cat([p[0] for p in parts.values()]), torch.cat([p[1] for p in parts.values()])), **parts}


def _forgotten(subject: Subject, method: IFRU, path: Path) -> tuple[Scorer, float]:
    module, data = subject.fresh()
    with trainer_for(method, evaluate=False) as trainer:
        seconds, _ = timed(trainer, module, data, path)
    return Scorer.of(module, data), seconds["total"]
