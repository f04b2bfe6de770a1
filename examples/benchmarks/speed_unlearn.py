"""What forgetting costs, phase by phase, and what its two building blocks cost: a gradient and a curvature product."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
import torch
from recipes import Recipe
from speed_data import Dataset, ask, ask_typical
from speed_training import Runs, model_path

from lightning_ifru import IFRU, IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningReport, UnlearningRequest
from lightning_ifru.curvature import GaussNewton
from lightning_ifru.parameters import ravel
from lightning_ifru.unlearning import Unlearning


@dataclass(frozen=True)
class Subject:
    """A trained model and its data, as a process can be told of them.

    Attributes:
        dataset, recipe, steps: what was trained, and for how many steps if not for the recipe's epochs.
        folder: of the rows, with the trained model.
        method: how to forget.
    """

    dataset: Dataset
    recipe: Recipe
    steps: int | None
    folder: Path
    method: IFRU

    def fresh(self) -> tuple[IFRUMixin, InteractionDataModule]:
        """Return the trained model and its data, with nothing forgotten and nothing built yet but the table."""
        data = self.dataset.read(self.recipe.batch_size)
        module = self.recipe.module(data, self.dataset.seed)
        path = model_path(self.folder, self.dataset, self.recipe, self.steps)
        module.load_state_dict(torch.load(path, weights_only=True)["parameters"])
        return module, data


@contextmanager
def trainer_for(method: IFRU, evaluate: bool, **settings: Any) -> Iterator[lightning.Trainer]:
    """Give a trainer, by default for one CPU, that writes the unlearned checkpoint into a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        yield lightning.Trainer(
            accelerator="cpu",
            callbacks=[IFRUCallback(method, evaluate=evaluate)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"devices": 1, **settings},
        )


def timed(
    trainer: lightning.Trainer, module: IFRUMixin, data: InteractionDataModule, path: Path
) -> tuple[dict[str, float], UnlearningReport]:
    """Forget what a request file names, and return the seconds of each phase and the report.

    Beside the report's phases ``parse`` is reading the file, and ``around`` what remains: Lightning's own set-up,
    looking the request up, and what is needed to undo everything if something fails.
    """
    clock = perf_counter()
    request = UnlearningRequest.from_file(path)
    parsed = perf_counter()
    report = trainer.unlearn(data, model=module, request=request)  # type: ignore[attr-defined]
    total = perf_counter() - clock
    phases = {**report.seconds, "parse": parsed - clock}
    del phases["total"]
    return {**phases, "around": total - sum(phases.values()), "total": total}, report


def large_requests(subject: Subject, size: str, repeats: int) -> Runs:
    """Forget a request of some size several times, each time from the trained model and data that are read anew."""
    runs = []
    for repeat in range(repeats):
        module, data = subject.fresh()
        with tempfile.TemporaryDirectory() as folder, trainer_for(subject.method, evaluate=False) as trainer:
            path = Path(folder) / "request.csv"
            named = ask(data, size, repeat, path)
            runs.append(_run(*timed(trainer, module, data, path), named))
        del module, data
    return runs


def users_in_turn(subject: Subject, number: int, seed: int) -> Runs:
    """Forget typical users one after another; the first request of the process pays what the others find built."""
    module, data = subject.fresh()
    runs = []
    with tempfile.TemporaryDirectory() as folder, trainer_for(subject.method, evaluate=False) as trainer:
        for k, (path, named) in enumerate(ask_typical(data, number, seed, Path(folder))):
            runs.append({**_run(*timed(trainer, module, data, path), named), "before": k})
    return runs


def _run(seconds: dict[str, float], report: UnlearningReport, named: int) -> dict[str, Any]:
    return {
        **seconds,
        "named": named,
        "path": report.path,
        "importance_left_out": report.importance_left_out,
        "examples": report.examples,
        "rows_changed": report.rows_changed,
        "unknowns": report.unknowns,
        "products": report.cg_iterations,
        "steps": report.steps,
        "residual_fell": report.residual_fell,
    }


def quality(subject: Subject, size: str) -> Runs:
    """Forget once with the package's own evaluation, which takes time of its own."""
    module, data = subject.fresh()
    with tempfile.TemporaryDirectory() as folder, trainer_for(subject.method, evaluate=True) as trainer:
        path = Path(folder) / "request.csv"
        named = ask(data, size, 0, path)
        seconds, report = timed(trainer, module, data, path)
    metrics = {"before": report.metrics_before, "after": report.metrics_after}
    measured = {f"{name}.{when}": value for when, found in metrics.items() for name, value in found.items()}
    return [{**_run(seconds, report, named), **measured}]


def operators(subject: Subject, size: str, repeats: int) -> Runs:
    """Return the seconds of a full-batch gradient of the retained risk, and of a product with its Gauss-Newton matrix.

    ``build`` is what the operator computes once for all products at the same parameters; ``noise`` by what share of its
    norm another draw of the negatives moves the influence.
    """
    module, data = subject.fresh()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request.csv"
        ask(data, size, 0, path)
        data.forget(UnlearningRequest.from_file(path))
    work = Unlearning.of(module, data, subject.method)
    objective = replace(work.objective, chunk_size=subject.method.chunk_size)
    parameters, graph = work.parameters, work.problem.after
    draws = (replace(subject.method, seed=seed).influence(objective, parameters, work.problem).total for seed in (0, 1))
    one, other = draws
    noise = float((one - other).norm() / (one.norm() ** 2 + other.norm() ** 2) ** 0.5)
    examples = [subject.method.sides(objective, work.problem).retained_after]
    vector = torch.randn(len(ravel(parameters)), generator=torch.Generator().manual_seed(0))
    runs = []
    # One that is not counted, so that what is built once is there.
    for _ in range(1 + repeats):
        clock = perf_counter()
        objective.gradient(parameters, graph, examples)
        gradient = perf_counter()
        matrix = GaussNewton(objective, parameters, graph, examples)
        built = perf_counter()
        matrix(vector)
        runs.append({"gradient": gradient - clock, "build": built - gradient, "product": perf_counter() - built})
        runs[-1]["noise"] = noise
    return runs[1:]
