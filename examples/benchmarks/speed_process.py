"""A measurement in a process of its own: a stated number of threads, and a peak of memory that no other has made."""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from rows import peak_memory, reset_peak_memory, resident_memory


@dataclass(frozen=True)
class Measured:
    """What came out.

    Attributes:
        runs: numbers by name, for each repetition.
        peak_memory_mb: the process's peak over what it held once the libraries were imported.
        imported_mb: what it held then.
    """

    runs: list[dict[str, Any]]
    peak_memory_mb: float
    imported_mb: float


def apart(threads: int, function: Callable[..., list[dict[str, Any]]], *arguments: Any) -> Measured:
    """Call a function of a module in a new process.

    Raises:
        RuntimeError: If the process was killed, as the system does where memory does not suffice.
    """
    # A process that is forked would have this one's memory, and threads that it has not.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(here, threads, function, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the process of {function.__name__} was killed; where memory did not suffice, give smaller data."
            ) from error


def here(threads: int, function: Callable[..., list[dict[str, Any]]], *arguments: Any) -> Measured:
    """Call a function in this process; whatever it imports by itself counts as its own memory."""
    torch.set_num_threads(threads)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    reset_peak_memory()
    imported = resident_memory() or peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = function(*arguments)
    return Measured(runs, peak_memory() - imported, imported)
