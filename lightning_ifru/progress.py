"""A bar for each phase of an unlearning, where the trainer shows bars and somebody is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import lightning
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Phases:
    """One bar that says in which phase an unlearning is; nothing is drawn without a ``display``.

    Example:
        >>> phases = Phases()
        >>> phases.begin("solving", steps=12)
        >>> phases.step("product 1")
    """

    def __init__(self, display: Progress | None = None) -> None:
        self._display = display
        self._task: TaskID | None = None

    def begin(self, name: str, steps: int | None = None) -> None:
        """End the phase before and show a new one, of ``steps`` steps at most or of who knows how many."""
        if self._display is None:
            return
        if self._task is not None:
            self._display.remove_task(self._task)
        self._task = self._display.add_task(name, total=steps, text="")

    def step(self, text: str) -> None:
        """Say with a short text that the phase is a step further."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=1, text=text)


@contextmanager
def shown_phases(trainer: lightning.Trainer) -> Iterator[Phases]:
    """Show phases on the standard error, and let no trace of them stay.

    Nothing is drawn without a progress bar on the trainer, in any process but the first, into a file or a pipe, and in
    a notebook without ``ipywidgets``, as with Lightning's own bars.
    """
    bar, console = trainer.progress_bar_callback, Console(stderr=True)
    if bar is None or getattr(bar, "is_disabled", False) or not trainer.is_global_zero or not _is_watched(console):
        yield Phases()
        return
    # Lightning's rich bar is still alive when fitting ends; two displays would write over one another.
    running = getattr(bar, "progress", None)
    if isinstance(running, Progress):
        running.stop()
    display = Progress(
        TextColumn("Unlearning"),
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
        # What is printed for a file or a pipe belongs there.
        redirect_stdout=sys.stdout.isatty(),
    )
    with display:
        yield Phases(display)


def _is_watched(console: Console) -> bool:
    """Whether a bar can move there; FORCE_COLOR makes rich take a log file for a terminal."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.file.isatty()
