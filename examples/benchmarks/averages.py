"""Changes averaged over paired seeds, from the scores of every single one: what no row alone can say."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import numpy as np
import torch
from measure import View, seed_cosines
from rows import Row
from selection import averaged_key, groups
from torch import Tensor


def keep_scores(folder: Path, key: str, **views: View) -> None:
    """Write the scores of models beside the rows.

    Args:
        folder: of the rows.
        key: of a row, or of the models that several rows are compared with.
        views: some of ``unlearned``, ``original``, ``swapped`` and ``paired``.
    """
    (folder / "scores").mkdir(exist_ok=True)
    arrays = {f"{who}.{pairs}": scores.numpy() for who, view in views.items() for pairs, scores in view.scores.items()}
    np.savez(folder / "scores" / f"{key}.npz", **arrays)


def average_rows(folder: Path, rows: Iterable[Row], wanted: Container[str]) -> list[Row]:
    """Return a row for every method that was run with several seeds, unless it is there already.

    Its ``seed`` is ``None`` and its ``seeds`` are those averaged over; it has cosines and nothing else.

    Args:
        folder: of the rows.
        rows: all of them.
        wanted: keys of the rows that may be averaged.
    """
    rows = list(rows)
    there = {row["key"] for row in rows}
    made = []
    for group in groups(row for row in rows if row["key"] in wanted):
        if (key := averaged_key(group)) in there:
            continue
        about = {name: value for name, value in group[-1].items() if name not in _OF_ONE}
        cosines = seed_cosines([_scores(folder, row) for row in group])
        # What is no number of any single seed is none of all.
        metrics = {
            name: value if any(row["metrics"][name] is not None for row in group) else None
            for name, value in cosines.items()
        }
        made.append({**about, "key": key, "seed": None, "seeds": [row["seed"] for row in group], "metrics": metrics})
    return made


#: What a row says about one run only.
_OF_ONE = ("seconds", "peak_memory_mb", "details", "references")


def _scores(folder: Path, row: Row) -> dict[str, Tensor]:
    """The scores of a row's models; its own original, if it has one, in place of everybody's."""
    found = {}
    for key in (row["references"], row["key"]):
        with np.load(folder / "scores" / f"{key}.npz") as arrays:
            found |= {name: torch.from_numpy(arrays[name]) for name in arrays}
    return found
