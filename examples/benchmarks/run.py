"""Runs the experiment: ``python examples/benchmarks/run.py --config paper.yaml --data ratings.csv.gz``.

Every combination of suite, recipe, deletion, seed and method is one JSON row in the folder of ``--rows``, written
the moment it is done. Broken off and started again, a run goes on where it was: rows that are there are not run
again, and trained models lie beside them.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from averages import average_rows
from plan import Config, Job, jobs_of, tasks_of
from progress import Display
from protocol import Ratings
from rows import RowFile, missing, read_rows
from work import Event, Setting, work

import lightning_ifru
from lightning_ifru import UnlearningError


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a method failed or something was wrong with the input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("paper.yaml"), help="as given, or beside run.py")
    parser.add_argument("--data", type=Path, required=True, help="CSV of ratings, possibly compressed")
    parser.add_argument("--suite", action="append", metavar="NAME", help="only this suite; may be repeated")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks-rows"), metavar="FOLDER", help="%(default)s")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes, of one thread each")
    options = parser.parse_args(arguments)
    if Path(lightning_ifru.__file__).resolve().parents[1] != Path(__file__).resolve().parents[2]:
        parser.error(
            "run.py and the package lightning_ifru are of different checkouts, and a row could name one of them only; "
            "run 'pip install -e .' in that of run.py."
        )
    if options.workers < 1:
        parser.error(f"--workers {options.workers} is too few; give 1 or more.")
    try:
        config = Config.read(options.config)
        suites = options.suite or list(config.suites)
        if unknown := [suite for suite in suites if suite not in config.suites]:
            parser.error(f"there is no suite {unknown[0]!r}; choose from {', '.join(config.suites)}.")
        ratings = Ratings.read(options.data, config.data)
        file = RowFile(options.rows)
    except (ValueError, UnlearningError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--rows {str(options.rows)!r} cannot be written ({error.strerror}); give another folder.")
    return run(config, Setting(ratings, options.rows, options.workers), file, suites)


def run(config: Config, setting: Setting, file: RowFile, suites: Iterable[str]) -> int:
    """Run the missing rows of some suites; 1 if a method failed."""
    tasks = tasks_of(config, setting.ratings.described(), suites)
    left = missing(tasks, read_rows(setting.folder))
    jobs, made, failed = jobs_of(left), 0, False
    with Display(len(left), setting.workers) as display:
        for worker, event in _events(jobs, setting):
            if event.row is not None:
                file.append(event.row)
                made += 1
                display.done(event.row)
            elif event.failed:
                failed = True
                display.failed(event.failed)
            else:
                display.doing(worker, event.doing)
    wanted = {task["key"] for task in tasks}
    for row in average_rows(setting.folder, read_rows(setting.folder), wanted):
        file.append(row)
    print(f"{made} rows made, {len(tasks) - len(left)} were there, {len(left) - made} failed.")  # noqa: T201
    return int(failed or made < len(left))


def _events(jobs: list[Job], setting: Setting) -> Iterator[tuple[int, Event]]:
    """What the workers say, with the number of who says it; a single worker is this process."""
    if setting.workers == 1:
        _quiet()
        for job in jobs:
            for event in work(job, setting):
                yield 0, event
        return
    # Processes that are forked after torch has started threads may hang.
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    said: Any = context.Queue()
    for job in [*jobs, *[None] * setting.workers]:
        todo.put(job)
    workers = [
        context.Process(target=_worker, args=(number, todo, said, setting), daemon=True)
        for number in range(setting.workers)
    ]
    for process in workers:
        process.start()
    try:
        alive = True
        while alive:
            # Asked before the queue is: what the last one said before it ended is still read.
            alive = any(process.is_alive() for process in workers)
            with suppress(Empty):
                while True:
                    yield said.get(timeout=0.2)
    finally:
        for process in workers:
            process.terminate()
    for number, process in enumerate(workers):
        if process.exitcode:
            yield number, Event(failed=f"a worker ended with exit code {process.exitcode}; run again for what it left.")


def _worker(number: int, todo: Any, said: Any, setting: Setting) -> None:
    _quiet()
    parent = multiprocessing.parent_process()
    while (job := todo.get()) is not None:
        for event in work(job, setting):
            said.put((number, event))
            if parent is None or not parent.is_alive():
                return
    said.put((number, Event("done")))


def _quiet() -> None:
    """One thread, and nothing of Lightning's advice between the rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
