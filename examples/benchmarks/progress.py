"""What is running, how much is done and how long the rest will take: a live display, or lines where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
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
        self._bar = Progress(
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._rows = self._bar.add_task("rows", total=total, left="")
        self._running = Progress(SpinnerColumn(), TextColumn("{task.description}"))
        self._workers = [self._running.add_task("starting", total=None) for _ in range(workers)]
        self._live = Live(Group(self._bar, self._running), console=self._console)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def doing(self, worker: int, what: str) -> None:
        """Say what a worker does now."""
        self._running.update(self._workers[worker], description=what)

    def done(self, row: Row) -> None:
        """Count a row."""
        self._done += 1
        rest = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        left = f"{rest / 60:.0f} min left" if rest >= 60 else f"{rest:.0f} s left"
        self._bar.update(self._rows, completed=self._done, left=left)
        if not self._console.is_terminal:
            what = ", ".join((row["suite"], row["recipe"], row["deletion"], f"seed {row['seed']}", row["method"]))
            print(f"[{self._done}/{self._total}, {left}] {what}: {row['seconds']['total']:.2f} s", flush=True)  # noqa: T201

    def failed(self, what: str) -> None:
        """Say what went wrong."""
        self._console.print(what, style="red", markup=False, highlight=False)
