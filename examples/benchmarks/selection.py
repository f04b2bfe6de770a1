"""Which rows belong to a configuration: a folder of rows may hold those of others, and of earlier states of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plan import Config, tasks_of
from rows import Row, key_of


@dataclass(frozen=True)
class Selection:
    """The rows of a configuration, in its order, and how many tasks have none."""

    rows: list[Row]
    missing: int


def select(config: Config, rows: Sequence[Row]) -> Selection:
    """Return the rows that a configuration asks for.

    Args:
        config: the configuration as it is now; rows made with other settings are not its rows.
        rows: all of a folder, oldest first; of one combination of suite, recipe, deletion, method and seed the last
            counts.

    Raises:
        ValueError: If there is none, or the rows are of different files of ratings.
    """
    wanted = asdict(config.data)
    single = [row for row in rows if row["seed"] is not None and wanted.items() <= row["settings"]["data"].items()]
    described = {row["settings"]["data"]["digest"]: row["settings"]["data"] for row in single}
    if len(described) > 1:
        raise ValueError(f"the rows are of {len(described)} files of ratings; give each a folder of its own.")
    tasks = [task for data in described.values() for task in tasks_of(config, data, config.suites)]
    place = {task["key"]: k for k, task in enumerate(tasks)}
    mine = [row for row in single if row["key"] in place]
    if not mine:
        raise ValueError("none of the rows is of this configuration; run run.py with it first.")
    cells = {(*cell(row), row["seed"]): row for row in mine}
    kept = sorted(cells.values(), key=lambda row: place[row["key"]])
    averages = {averaged_key(group) for group in groups(kept)}
    return Selection(
        kept + [row for row in rows if row["key"] in averages],
        len({(*cell(task), task["seed"]) for task in tasks}) - len(kept),
    )


def cell(row: Row) -> tuple[Any, ...]:
    """Return what rows share that differ in their seed."""
    return tuple(row[part] for part in ("suite", "recipe", "deletion", "method"))


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows that may be averaged over their seeds, by seed; the last row of a seed counts."""
    found: dict[tuple[Any, ...], dict[int, Row]] = {}
    for row in rows:
        found.setdefault(cell(row), {})[row["seed"]] = row
    return [[group[seed] for seed in sorted(group)] for group in found.values() if len(group) > 1]


def averaged_key(group: Iterable[Row]) -> str:
    """Return the key of the row that is averaged over a group."""
    return key_of(averaged=sorted(row["key"] for row in group))
