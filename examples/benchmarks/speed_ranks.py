"""Several processes against one: the same request, model and data, and the same number of threads in all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from speed_data import ask
from speed_process import here
from speed_training import Runs
from speed_unlearn import Subject, timed, trainer_for
from torch import distributed


def processes(subject: Subject, size: str, repeats: int, numbers: tuple[int, ...] = (1, 2)) -> Runs:
    """Forget a request with each number of processes under DDP, which share this process's threads.

    In float32 for the seconds, and once in float64 for what differs: ``difference`` is the largest of any weight to
    that with the first number of processes.
    """
    runs: Runs = []
    threads, first = torch.get_num_threads(), None
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            found = _launched(Path(folder), number, max(1, threads // number), subject, size, repeats)
            first = found["weights"] if first is None else first
            difference = max(float((found["weights"][name] - first[name]).abs().max()) for name in first)
            runs += [{**run, "processes": number, "difference": difference} for run in found["runs"]]
    return runs


def _launched(folder: Path, number: int, threads: int, *arguments: Any) -> dict[str, Any]:
    (folder / "task.pickle").write_bytes(pickle.dumps((number, threads, *arguments)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    done = subprocess.run(
        [*launch, str(Path(__file__)), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise RuntimeError(f"{number} processes have not come to an end: {done.stderr[-2000:]}")
    return torch.load(folder / "found.pt", weights_only=True)


def _rank(folder: Path) -> None:
    """What one process does."""
    # Written by the process that has launched this one.
    number, threads, *arguments = pickle.loads((folder / "task.pickle").read_bytes())
    distributed.init_process_group("gloo")
    found = here(threads, _forget, number, *arguments)
    runs = [{**run, "rank_memory_mb": found.peak_memory_mb} for run in found.runs[:-1]]
    if distributed.get_rank() == 0:
        torch.save({"runs": runs, "weights": found.runs[-1]}, folder / "found.pt")
    distributed.destroy_process_group()


def _forget(number: int, subject: Subject, size: str, repeats: int) -> Runs:
    """The seconds of every repetition, and at last the weights of one in float64."""
    runs: Runs = []
    for precision in [*["32-true"] * repeats, "64-true"]:
        module, data = subject.fresh()
        strategy = {"devices": number, "strategy": "ddp" if number > 1 else "auto", "precision": precision}
        with (
            tempfile.TemporaryDirectory() as folder,
            trainer_for(subject.method, evaluate=False, **strategy) as trainer,
        ):
            path = Path(folder) / "request.csv"
            ask(data, size, 0, path)
            distributed.barrier()
            since = perf_counter()
            seconds, report = timed(trainer, module, data, path)
            distributed.barrier()
            runs.append({**seconds, "total": perf_counter() - since, "steps": report.steps})
    runs[-1] = module.state_dict()
    return runs


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
