"""What forgetting is compared with, epochs of PyG's example and of our own training; the model that is to forget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from recipes import Recipe, fit, quiet_trainer
from rows import key_of
from speed_data import Dataset, batches, shape_of
from store import Saved, kept
from torch.utils.data import DataLoader
from torch_geometric.nn import LightGCN

from lightning_ifru import IFRUMixin, InteractionDataModule

#: Steps that are not timed, so that what is built once is there.
WARM_UP = 2

Runs = list[dict[str, Any]]


def pyg_epoch(dataset: Dataset, recipe: Recipe, steps: int, repeats: int) -> Runs:
    """Return the seconds of an epoch of ``examples/lightgcn.py`` of PyG, scaled up from some of its steps.

    Every step propagates over the whole graph, as the example does, whatever the batch; so steps cost the same.
    """
    data = dataset.read(recipe.batch_size)
    total = batches(data, recipe)
    steps = min(steps, total)
    loop = _pyg_steps(data, recipe)
    for _ in range(WARM_UP):
        next(loop)
    return [_scaled(steps, total, [_timed(loop) for _ in range(steps)]) for _ in range(repeats)]


def _timed(steps: Iterator[None]) -> float:
    since = perf_counter()
    next(steps)
    return perf_counter() - since


def _scaled(steps: int, total: int, seconds: list[float]) -> dict[str, Any]:
    return {"total": mean(seconds) * total, "steps_timed": steps, "steps": total}


def _pyg_steps(data: InteractionDataModule, recipe: Recipe) -> Iterator[None]:
    """Train as the example does: the whole graph's embeddings for each batch, BPR, one uniform negative for each pair.

    The library's layer, its loss with the example's default penalty, and Adam; without the example's progress bar.
    """
    graph = data.graph()
    edges = graph[:, graph[0] < graph[1]]
    nodes = data.num_users + data.num_items
    model = LightGCN(nodes, recipe.embedding_dim, recipe.num_layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    loader = DataLoader(range(edges.shape[1]), batch_size=recipe.batch_size, shuffle=True)  # type: ignore[arg-type]
    loss_sum = 0.0
    while True:
        for index in loader:
            positive = edges[:, index]
            drawn = torch.randint(data.num_users, nodes, (len(index),))
            pairs = torch.cat([positive, torch.stack([positive[0], drawn])], dim=1)
            optimizer.zero_grad()
            own, other = model(graph, pairs).chunk(2)
            loss = model.recommendation_loss(own, other, node_id=pairs.unique())
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(index)
            yield


class _Clock(Callback):
    """Remembers when batches and epochs ended."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.epochs: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches.append(perf_counter())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs.append(perf_counter())


def own_epoch(dataset: Dataset, recipe: Recipe, steps: int | None, repeats: int) -> Runs:
    """Return the seconds of an epoch of this package's training, whole or scaled up from some of its steps.

    Epochs follow each other in one fit, the first of which is not timed.
    """
    data = dataset.read(recipe.batch_size)
    total, clock = batches(data, recipe), _Clock()
    if steps is None or steps >= total:
        fit(recipe.module(data, dataset.seed), data, 1 + repeats, [clock])
        ends = zip(clock.epochs, clock.epochs[1:], strict=False)
        return [{"total": end - start, "steps_timed": total, "steps": total} for start, end in ends]
    wanted = WARM_UP + repeats * steps
    _fit_steps(recipe.module(data, dataset.seed), data, wanted, [clock])
    seconds = [end - start for start, end in zip(clock.batches, clock.batches[1:], strict=False)][WARM_UP - 1 :]
    return [_scaled(steps, total, seconds[k * steps : (k + 1) * steps]) for k in range(repeats)]


def _fit_steps(module: IFRUMixin, data: InteractionDataModule, steps: int, callbacks: list[Callback]) -> None:
    with quiet_trainer(max_steps=steps, callbacks=callbacks) as trainer:
        trainer.fit(module, datamodule=data)


def described(dataset: Dataset, recipe: Recipe, steps: int | None) -> dict[str, Any]:
    """Return what a trained model depends on."""
    return {"recipe": asdict(recipe), "data": dataset.described(), "steps": steps}


def train(folder: Path, dataset: Dataset, recipe: Recipe, steps: int | None) -> Runs:
    """Train the model that is to forget, unless it has been: the recipe's epochs, or a number of steps instead.

    Returns the seconds of its training and the data's shape.
    """
    path = model_path(folder, dataset, recipe, steps)

    def make() -> Saved:
        data, since = dataset.read(recipe.batch_size), perf_counter()
        module = recipe.module(data, dataset.seed)
        if steps is None:
            fit(module, data, recipe.epochs)
        else:
            _fit_steps(module, data, steps, [])
        return {"parameters": module.state_dict(), "seconds": perf_counter() - since, "shape": shape_of(data)}

    saved = kept(path, make)
    return [{"total": saved["seconds"], **saved["shape"]}]


def model_path(folder: Path, dataset: Dataset, recipe: Recipe, steps: int | None) -> Path:
    """Return where a trained model is kept."""
    return folder / "models" / f"{key_of(**described(dataset, recipe, steps))}.pt"
