"""What is running, how much is done and how long the rest will take: a live display, or lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rows import Row


class Display:
    """Shows a run; a context manager.

    Args:
        total: rows to be made.
        workers: how many are at work.
        console: where to; by default the standard output.
    """

    def __init__(self, total: int, workers: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._total, self._done, self._began = total, 0, time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("rows", total=total, left="")
        # A row has no bar of its own: it takes seconds.
        self._workers = [self._progress.add_task("idle", total=None, left="") for _ in range(workers)]

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._progress.stop()

    def doing(self, worker: int, what: str) -> None:
        """Say what a worker does now."""
        self._progress.update(self._workers[worker], description=what)

    def done(self, row: Row) -> None:
        """Count a row."""
        self._done += 1
        rest = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        left = f"{rest / 60:.0f} min left" if rest >= 60 else f"{rest:.0f} s left"
        self._progress.update(self._bar, completed=self._done, left=left)
        if not self._console.is_terminal:
            what = ", ".join((row["suite"], row["recipe"], row["deletion"], f"seed {row['seed']}", row["method"]))
            print(f"[{self._done}/{self._total}, {left}] {what}: {row['seconds']['total']:.2f} s", flush=True)  # noqa: T201

    def failed(self, what: str) -> None:
        """Say what went wrong."""
        self._console.print(what, style="red", markup=False, highlight=False)
