"""A run is a JSON row: what was run, on what, and what came out; appended the moment it is done."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lightning_ifru
from lightning_ifru.finite import finite

Row = dict[str, Any]

FILE = "rows.jsonl"
PACKAGES = ("lightning-ifru", "lightning", "torch", "torch-geometric", "torchmetrics", "numpy", "pandas")


def key_of(**settings: Any) -> str:
    """Return a short name of settings: the same for the same, whatever their order.

    Example:
        >>> key_of(seed=1, method="a") == key_of(method="a", seed=1) != key_of(method="a", seed=2)
        True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


def read_rows(folder: Path) -> list[Row]:
    """Return the rows of a folder, oldest first; of equal keys the last counts, and a torn line is none.

    Raises:
        ValueError: If a finished line is not JSON.
    """
    path = folder / FILE
    if not path.exists():
        return []
    rows = {}
    # What follows the last newline is nothing, or a line that was never finished.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path.name} is not JSON; delete it and run again.") from error
        rows[row["key"]] = row
    return list(rows.values())


class RowFile:
    """Appends rows; a line that a killed run left unfinished is cut off first.

    Args:
        folder: where ``rows.jsonl`` is; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        if self._path.exists():
            whole = self._path.read_bytes().rfind(b"\n") + 1
            os.truncate(self._path, whole)

    def append(self, row: Row) -> None:
        """Write a row to the disk; numbers that are not finite as ``null``."""
        line = json.dumps(finite(row), sort_keys=True, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def provenance(workers: int) -> Row:
    """Return what a row says about where it comes from; neither host nor paths."""
    return {
        **_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "hardware": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
            "workers": workers,
        },
    }


def reset_peak_memory() -> None:
    """Forget this process's peak so far, where the system lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_memory() -> float | None:
    """Return the process's memory in MB now, where the system tells (Linux)."""
    return _status("VmRSS")


def peak_memory() -> float:
    """Return the process's peak memory in MB, since the last reset where there is one."""
    peak = _status("VmHWM")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
    return peak


def _status(name: str) -> float | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return None


def missing(wanted: Iterable[Mapping[str, Any]], rows: Iterable[Row]) -> list[Mapping[str, Any]]:
    """Return those of the wanted whose key no row has."""
    done = {row["key"] for row in rows}
    return [one for one in wanted if one["key"] not in done]


@cache
def _commit() -> Row:
    """The commit of the package's checkout and whether files differ from it; ``None`` outside of one."""
    here = Path(lightning_ifru.__file__).parent
    try:
        git = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": git[0], "dirty": bool(git[1])}


@cache
def cpu() -> str:
    """Return the name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
