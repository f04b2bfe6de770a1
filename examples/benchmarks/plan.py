"""What there is to run: a configuration becomes tasks, each a row to be, and jobs of tasks that share an original."""

from __future__ import annotations

import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from methods import METHODS
from methods.interface import Method
from protocol import DataSettings, Deletion
from recipes import Recipe
from rows import Row, key_of
from sequential import Sequential

#: Every method that a configuration may name.
ALL_METHODS: dict[str, Callable[[], Method]] = {**METHODS, "ifru-sequential": partial(Sequential, "ifru-sequential")}


@dataclass(frozen=True)
class Block:
    """Every recipe with every deletion, seed and method.

    Attributes:
        recipes: names in the table of recipes.
        deletions: what is forgotten.
        methods: names of methods.
        seeds: originals trained, each with a paired retrained model.
        retraining_seeds: models retrained from seeds of their own, to compare all originals with.
    """

    recipes: list[str]
    deletions: list[Deletion]
    methods: list[str]
    seeds: int = 3
    retraining_seeds: int = 0


@dataclass(frozen=True)
class Config:
    """An experiment.

    Attributes:
        recipes: models and their training, by name.
        suites: blocks, by the suite's name.
        data: how ratings become interactions.
    """

    recipes: dict[str, Recipe]
    suites: dict[str, list[Block]]
    data: DataSettings = field(default_factory=DataSettings)

    def __post_init__(self) -> None:
        for block in (block for blocks in self.suites.values() for block in blocks):
            for kind, names, known in (
                ("recipe", block.recipes, self.recipes),
                ("method", block.methods, ALL_METHODS),
            ):
                if unknown := sorted(set(names) - set(known)):
                    raise ValueError(f"there is no {kind} {unknown[0]!r}; choose from {', '.join(known)}.")

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read a YAML file, looked up as given and then beside this module.

        Raises:
            ValueError: If there is no such file, or it is no experiment.
        """
        places = [path, Path(__file__).parent / path]
        found = [place for place in places if place.is_file()]
        if not found:
            raise ValueError(f"there is no configuration {str(path)!r}, nor beside run.py; give the path of one.")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        with warnings.catch_warnings():
            # Newer jsonargparse has another name for it, which older ones do not know.
            warnings.simplefilter("ignore")
            try:
                read = parser.instantiate_classes(parser.parse_path(str(found[0])))
            except ArgumentError as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"the configuration {found[0].name!r} is refused ({reason}); correct it.") from error
        return cls(**vars(read))


@dataclass(frozen=True)
class Job:
    """Tasks that share an original, in an order in which those of one deletion follow each other.

    Attributes:
        name: for people.
        recipe: of the original.
        seed: of the original.
        tasks: rows to be: everything but what comes out.
    """

    name: str
    recipe: Recipe
    seed: int
    tasks: tuple[Row, ...]


def tasks_of(config: Config, data: Mapping[str, Any], suites: Iterable[str]) -> list[Row]:
    """Return the rows to be, each once; ``data`` as ``Ratings.described`` has it."""
    tasks: dict[str, Row] = {}
    for suite in suites:
        for block in config.suites[suite]:
            for recipe, deletion, seed, method in product(
                block.recipes, block.deletions, range(block.seeds), block.methods
            ):
                settings = {
                    "recipe": asdict(config.recipes[recipe]),
                    "deletion": asdict(deletion),
                    "method": _described(ALL_METHODS[method]()),
                    "data": dict(data),
                    "retraining_seeds": block.retraining_seeds,
                }
                task = {"suite": suite, "recipe": recipe, "deletion": deletion.name, "seed": seed, "method": method}
                key = key_of(**task, settings=settings)
                tasks[key] = {"key": key, **task, "settings": settings}
    return list(tasks.values())


def jobs_of(tasks: Iterable[Row]) -> list[Job]:
    """Return the jobs of tasks: the longest trainings first, so that no worker ends with one of them alone."""

    def original(task: Row) -> tuple[Any, ...]:
        planted = task["deletion"] if task["settings"]["deletion"]["kind"] == "flipped" else ""
        return task["suite"], task["recipe"], planted, task["seed"]

    gathered: dict[tuple[Any, ...], list[Row]] = {}
    for task in tasks:
        gathered.setdefault(original(task), []).append(task)
    jobs = []
    for (suite, recipe, _, seed), mine in gathered.items():
        ordered = [task for _, same in _by_deletion(mine) for task in same]
        jobs.append(
            Job(f"{suite}, {recipe}, seed {seed}", Recipe(**mine[0]["settings"]["recipe"]), seed, tuple(ordered))
        )
    return sorted(jobs, key=lambda job: -job.recipe.epochs)


def by_deletion(job: Job) -> list[tuple[Deletion, list[Row]]]:
    """Return a job's tasks by what they forget."""
    return [(Deletion(**same[0]["settings"]["deletion"]), same) for _, same in _by_deletion(job.tasks)]


def _by_deletion(tasks: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    def name(task: Row) -> tuple[str, int]:
        return task["deletion"], task["settings"]["retraining_seeds"]

    return [(str(key), list(same)) for key, same in groupby(sorted(tasks, key=name), key=name)]


def _described(method: Method) -> dict[str, Any]:
    """The settings of a method: those of a dataclass, or the plain values it holds."""
    if is_dataclass(method) and not isinstance(method, type):
        return asdict(method)
    return {name.lstrip("_"): value for name, value in vars(method).items() if isinstance(value, (str, int, float))}
