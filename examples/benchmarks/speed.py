"""Times forgetting: ``python examples/benchmarks/speed.py --data train.csv.gz --test test.csv.gz``.

In one run, on one machine and with one number of threads: an epoch of PyG's LightGCN example, an epoch of this
package's training, a full-batch gradient, a curvature product, and unlearning end to end for requests of several sizes.
Every measurement has a process of its own and becomes a JSON row in the folder of ``--output``; ratios are printed at
the end. ``--scaling`` times requests on generated data of several sizes, ``--large`` on 20 million interactions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from recipes import Recipe
from rows import Row, RowFile, key_of, provenance
from speed_data import Dataset
from speed_local import local_errors
from speed_process import Measured, apart
from speed_ranks import processes
from speed_targets import ONE_STEP, OWN, PYG, ratios
from speed_training import Runs, own_epoch, pyg_epoch, train
from speed_unlearn import Subject, large_requests, operators, quality, users_in_turn

from lightning_ifru import IFRU, UnlearningError

#: The shape of MovieLens-20M, and that of the data that scaling is measured on: about Gowalla's.
LARGE, SCALED = (138_000, 27_000, 20_000_000), (30_000, 41_000, 810_000)
#: Of the latter so many times the users, items and interactions.
FACTORS = (0.25, 1.0, 4.0)
#: Steps of an epoch that are timed for each repetition where a whole epoch takes long.
_STEPS_TIMED = 5
#: Users who are forgotten one after another.
_USERS = 8


@dataclass(frozen=True)
class Task:
    """A measurement: what its row says of it, and the call that makes it."""

    about: dict[str, Any]
    function: Callable[..., Runs]
    arguments: tuple[Any, ...]


def main(arguments: list[str] | None = None, process: Callable[..., Measured] = apart) -> int:
    """Measure, write rows, and print ratios; ``process`` is what a measurement is run by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="CSV of interactions to train on, possibly compressed")
    source.add_argument("--generate", type=_shape, metavar="USERS,ITEMS,INTERACTIONS", help="instead of --data")
    parser.add_argument("--test", type=Path, help="CSV of held-out interactions: for what forgetting does to quality")
    parser.add_argument("--user", default="user", help="column of user ids (%(default)s)")
    parser.add_argument("--item", default="item", help="column of item ids (%(default)s)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--scaling", action="store_true", help=f"on {'; '.join(map(str, FACTORS))} times generated data")
    kind.add_argument(
        "--large", action="store_true", help="one user and 0.1%% of generated data, by default 20 million"
    )
    parser.add_argument("--epochs", type=int, help="of the model that forgets (20; 2 with --scaling)")
    parser.add_argument("--steps", type=int, help="training steps instead of epochs (20 with --large)")
    parser.add_argument("--dim", type=int, default=64, help="of embeddings (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="%(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument("--output", type=Path, default=Path("speed-rows"), metavar="FOLDER", help="%(default)s")
    options = parser.parse_args(arguments)
    generated = LARGE if options.large else SCALED if options.scaling else None
    if options.data is None and options.generate is None and generated is None:
        parser.error("there is nothing to measure on; give --data, --generate, --scaling or --large.")
    if options.data is not None and generated is not None:
        parser.error("--scaling and --large are measured on generated data; give --generate or nothing with them.")
    if options.test is not None and options.data is None:
        parser.error("--test has nothing to be the test of; give --data.")
    for path in (options.data, options.test):
        if path is not None and not path.is_file():
            parser.error(f"there is no file {str(path)!r}; give the path of one.")
    for name in ("threads", "repeats", "dim", "epochs", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is too few; give 1 or more.")
    shape = options.generate or (None if options.data else generated)
    dataset = Dataset(options.data, options.test, options.user, options.item, shape, options.seed)
    suite = "scaling" if options.scaling else "large" if options.large else "speed"
    steps = options.steps or (20 if options.large and options.epochs is None else None)
    recipe = Recipe(
        "lightgcn",
        loss="bpr",
        embedding_dim=options.dim,
        lr=1e-3,
        epochs=options.epochs or (2 if options.scaling else 20),
        batch_size=8192,
    )
    torch.set_num_threads(options.threads)
    subject = Subject(dataset, recipe, steps, options.output, IFRU())
    try:
        return _run(suite, subject, options.repeats, options.threads, process)
    except (ValueError, UnlearningError, RuntimeError) as error:
        print(f"speed.py: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _run(suite: str, subject: Subject, repeats: int, threads: int, process: Callable[..., Measured]) -> int:
    file, rows, started = RowFile(subject.folder), list[Row](), provenance(1)["date"]
    for task, about in _tasks(suite, subject, repeats, threads, process):
        measured = process(threads, task.function, *task.arguments)
        row = {
            **about,
            **task.about,
            **provenance(1),
            "suite": suite,
            "run": started,
            "repeats": repeats,
            "runs": measured.runs,
            "peak_memory_mb": measured.peak_memory_mb,
            "imported_mb": measured.imported_mb,
        }
        row["key"] = key_of(run=started, place=len(rows), **task.about)
        file.append(row)
        rows.append(row)
        print(f"{row['data']['name']}: {', '.join(x for x in task.about.values() if isinstance(x, str))}", flush=True)  # noqa: T201
    print("\n".join(ratios(rows)))  # noqa: T201
    return 0


def _tasks(
    suite: str, subject: Subject, repeats: int, threads: int, process: Callable[..., Measured]
) -> Iterator[tuple[Task, Row]]:
    """The measurements of a suite, each with what all of the same model say."""
    for factor, mine, tasks in _SUITES[suite](subject, repeats):
        made = process(threads, train, mine.folder, mine.dataset, mine.recipe, mine.steps).runs[0]
        shape = {name: made[name] for name in ("users", "items", "interactions", "test")}
        about = {
            "data": {**mine.dataset.described(), **shape},
            "factor": factor,
            "model": mine.recipe.name,
            "recipe": asdict(mine.recipe),
            "trained": {"steps": mine.steps, "epochs": None if mine.steps else mine.recipe.epochs},
            "trained_seconds": made["total"],
            "method": asdict(mine.method),
        }
        for task in tasks:
            yield task, about


#: A size of generated data, a model, and what is measured of it.
_Part = tuple[float, Subject, list[Task]]


def _speed(subject: Subject, repeats: int) -> Iterator[_Part]:
    tasks = [
        _own_epoch(subject, None, repeats),
        Task({"measure": "epoch", "of": PYG}, pyg_epoch, (subject.dataset, subject.recipe, _STEPS_TIMED, repeats)),
        Task({"measure": "operators"}, operators, (subject, "1%", repeats)),
        *(_users(subject, k) for k in range(repeats)),
        *(_request(subject, size, repeats) for size in ("10 users", "100 users", "1%", "5%")),
        _in_one_step(subject, "unlearn", large_requests, repeats),
        Task({"measure": "processes", "request": "1%"}, processes, (subject, "1%", repeats)),
        Task({"measure": "local", "request": "1 user"}, local_errors, (subject, _USERS, 0)),
    ]
    if subject.dataset.test is not None:
        tasks.append(Task({"measure": "quality", "request": "1%"}, quality, (subject, "1%")))
        tasks.append(_in_one_step(subject, "quality", quality))
    yield 1.0, subject, tasks
    factors = replace(subject, recipe=replace(subject.recipe, model="mf"))
    yield 1.0, factors, [Task({"measure": "local", "request": "1 user"}, local_errors, (factors, _USERS, 0))]


def _scaling(subject: Subject, repeats: int) -> Iterator[_Part]:
    for factor in FACTORS:
        mine = replace(subject, dataset=subject.dataset.scaled(factor))
        users = (_users(mine, k) for k in range(repeats))
        yield factor, mine, [_own_epoch(mine, _STEPS_TIMED, repeats), *users, _request(mine, "1%", repeats)]


def _large(subject: Subject, repeats: int) -> Iterator[_Part]:
    tasks = [_own_epoch(subject, _STEPS_TIMED, repeats), _users(subject, 0), _request(subject, "0.1%", repeats)]
    yield 1.0, subject, tasks


def _own_epoch(subject: Subject, steps: int | None, repeats: int) -> Task:
    return Task({"measure": "epoch", "of": OWN}, own_epoch, (subject.dataset, subject.recipe, steps, repeats))


def _users(subject: Subject, seed: int) -> Task:
    return Task({"measure": "unlearn", "request": "1 user"}, users_in_turn, (subject, _USERS, seed))


def _request(subject: Subject, size: str, repeats: int) -> Task:
    return Task({"measure": "unlearn", "request": size}, large_requests, (subject, size, repeats))


def _in_one_step(subject: Subject, measure: str, function: Callable[..., Runs], *arguments: Any) -> Task:
    quick = replace(subject, method=replace(subject.method, max_steps=1))
    about = {"measure": measure, "request": f"1%{ONE_STEP}", "method": asdict(quick.method)}
    return Task(about, function, (quick, "1%", *arguments))


_SUITES: dict[str, Callable[[Subject, int], Iterator[_Part]]] = {
    "speed": _speed,
    "scaling": _scaling,
    "large": _large,
}


def _shape(text: str) -> tuple[int, int, int]:
    try:
        users, items, interactions = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; write USERS,ITEMS,INTERACTIONS.") from error
    return users, items, interactions


if __name__ == "__main__":
    sys.exit(main())
