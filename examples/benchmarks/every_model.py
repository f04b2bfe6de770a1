"""How completely every model forgets with every loss, by ``python examples/benchmarks/every_model.py``.

On a dense part of the embedded MovieLens ratings each model is trained, forgets 2% of its positive training
interactions, and is compared with paired retraining. All have the same training but for the weight decay, of which the
table shows several: nothing is chosen. Distances are mean differences of predicted probabilities.

*Elsewhere* is how far retraining moves the test pairs, in parts of how far it moves the forgotten ones. *Target* is how
far the retrained model is from solving the equation that unlearning solves, ‖r‖ at its weights in parts of ‖r‖ before
anything is forgotten: 0 where training has ended at a minimum and retraining at the one nearby, about 1 or more where
retraining took another course or training was not over. No method that follows the equation can then be near it.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch
from recipes import fit, quiet_trainer
from rows import cpu
from torch import Tensor

from lightning_ifru import IFRU, IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningReport, UnlearningRequest
from lightning_ifru.metrics import completeness_ratio, pair_scores, score_distance
from lightning_ifru.models import NGCF, LightGCN, MatrixFactorization, NeuMF
from lightning_ifru.parameters import ravel
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.unlearning import Unlearning

sys.path.append(str(Path(__file__).parents[1]))
from stock_layers import GAT, MOVIELENS, Bipartite, GraphSAGE

DIM, EPOCHS, LEARNING_RATE, BATCH_SIZE = 8, 60, 0.02, 1024
LOSSES = ("bce", "mse", "bpr", "sampled_bce", "margin", "sampled_softmax")
WEIGHT_DECAYS = (3e-4, 1e-3, 3e-3, 1e-2)

Data = InteractionDataModule
MODELS: dict[str, Callable[[Data], IFRUMixin]] = {
    "MF": lambda data: MatrixFactorization(data.num_users, data.num_items, DIM),
    **{f"LightGCN-{n}": lambda data, n=n: LightGCN(data.num_users, data.num_items, DIM, n) for n in (1, 2, 3, 4)},
    "NGCF-2": lambda data: NGCF(data.num_users, data.num_items, DIM, 2),
    "NGCF-2, SiLU": lambda data: NGCF(data.num_users, data.num_items, DIM, 2, activation="silu"),
    "NeuMF": lambda data: NeuMF(data.num_users, data.num_items, DIM),
    "NeuMF, SiLU": lambda data: NeuMF(data.num_users, data.num_items, DIM, activation="silu"),
    "GraphSAGE": lambda data: GraphSAGE(data.num_users, data.num_items, DIM),
    "GAT": lambda data: GAT(data.num_users, data.num_items, DIM),
    "bipartite": lambda data: Bipartite(torch.ones(data.num_users, 1), genres(data), DIM),
}


@cache
def ratings(users: int = 100, films: int = 150) -> pd.DataFrame:
    """Return the ratings of the most rated films by their most active users."""
    frame = pd.read_csv(MOVIELENS / "ratings.csv.gz")
    frame = frame[frame.movieId.isin(frame.movieId.value_counts().index[:films])]
    return frame[frame.userId.isin(frame.userId.value_counts().index[:users])]


def genres(data: Data) -> Tensor:
    """Return the genres of the films, ``[num_items, genres]``."""
    films = pd.read_csv(MOVIELENS / "movies.csv.gz", index_col="movieId")
    return torch.tensor(films.genres.str.get_dummies("|").loc[list(data.item_ids)].to_numpy()).float()


@dataclass(frozen=True)
class Case:
    """A model, its loss and its training."""

    model: str
    loss: str
    weight_decay: float
    seed: int = 0

    def data(self) -> Data:
        """Read the data anew: labels of all ratings, the ratings themselves, or those of at least 4 as implicit."""
        frame, columns = ratings(), {}
        if self.loss in ("bce", "mse"):
            columns = {"rating": "rating"} | ({"threshold": 4.0} if self.loss == "bce" else {})
        else:
            frame = frame[frame.rating >= 4]
        negatives = 4 if self.loss == "sampled_softmax" else 1
        settings = {"batch_size": BATCH_SIZE, "num_negatives": negatives, "seed": self.seed}
        return Data(dict(frame.items()), user="userId", item="movieId", **columns, **settings)

    def module(self, data: Data) -> IFRUMixin:
        """Return the model, untrained."""
        module = MODELS[self.model](data)
        module.loss = self.loss
        module.configure_optimizers = lambda: _adam(module, self.weight_decay)
        return module

    def train(self, without: UnlearningRequest | None = None) -> tuple[IFRUMixin, Data]:
        """Train from the seed; with a request on what it leaves, which is paired retraining."""
        lightning.seed_everything(self.seed, verbose=False)
        data = self.data()
        module = self.module(data)
        if without is not None:
            data.forget(without)
            data.commit(data.removal())
        fit(module, data, EPOCHS)
        return module.eval(), data

    def request(self, data: Data) -> UnlearningRequest:
        """Return 2% of the positive training interactions."""
        train = data.train
        positive = (train.label >= (4 if self.loss == "mse" else 1)).nonzero().flatten()
        order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(self.seed))
        rows = positive[order[: len(positive) // 50]].tolist()
        return UnlearningRequest(
            interactions=[(data.user_ids[train.user[k]], data.item_ids[train.item[k]]) for k in rows]
        )


def _adam(module: IFRUMixin, weight_decay: float) -> Any:
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, weight_decay=weight_decay)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


@dataclass(frozen=True)
class Pairs:
    """Pairs of users and items, by position: those forgotten, and those of the test set."""

    forgotten: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def unlearn(case: Case, method: IFRU | None = None) -> tuple[dict[str, Tensor], UnlearningReport]:
    """Train, retrain and unlearn; return the forgotten pairs' logits by model and the report."""
    original, data = case.train()
    request = case.request(data)
    pairs = _pairs(data, request).forgotten
    logits = {"original": scores(case, original, data, pairs), "retrained": scores(case, *case.train(request), pairs)}
    with quiet_trainer(callbacks=[IFRUCallback(method)]) as trainer:
        report = trainer.unlearn(data, model=original, request=request)
    return logits | {"unlearned": scores(case, original, data, pairs)}, report


def _pairs(data: Data, request: UnlearningRequest) -> Pairs:
    rows = data.table.plan(request).rows
    return Pairs((data.table.user[rows], data.table.item[rows]), (data.test.user, data.test.item))


@torch.no_grad()
def scores(case: Case, module: IFRUMixin, data: Data, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the logits of pairs; of ratings what they are above 3.5, about the mean of those given."""
    user, item = pairs
    found = pair_scores(module.decode, module.eval().encode(data.graph()), user, item + data.num_users)
    return found - 3.5 if case.loss == "mse" else found


def row(case: Case) -> dict[str, Any]:
    """Return one row of the table."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logits, report = unlearn(case)
    original, data = case.train()
    request, pairs = case.request(data), _pairs(data, case.request(data))
    retrained = case.train(request)

    def moved(where: tuple[Tensor, Tensor]) -> float:
        return float(score_distance(scores(case, *retrained, where), scores(case, original, data, where)))

    far = moved(pairs.forgotten)
    # A penalty can be so strong that everybody is given nearly the same score; there is nothing to be forgotten then.
    collapsed = float(scores(case, original, data, pairs.test).std()) < 0.05
    with quiet_trainer() as trainer:
        trainer.limit_val_batches = 1.0
        loss = trainer.validate(original, datamodule=data, verbose=False)[0]["val_loss"]
    return {
        "model": case.model,
        "loss": case.loss,
        "weight_decay": case.weight_decay,
        "seed": case.seed,
        "validation_loss": loss,
        "moved": far,
        "elsewhere": None if collapsed else moved(pairs.test) / far,
        "target": None if collapsed else target(original, data, request, retrained[0]),
        "ratio": None if collapsed else float(completeness_ratio(**logits)),
        "residual_fell": report.residual_fell,
        "stationarity": report.stationarity,
        "seconds": report.seconds["total"],
    }


def target(original: IFRUMixin, data: Data, request: UnlearningRequest, retrained: IFRUMixin) -> float:
    """Return ‖r‖ at the retrained weights in parts of ‖r‖ at the original's."""
    data.forget(request)
    work, method = Unlearning.of(original, data, IFRU()), IFRU()
    influence = method.influence(work.objective, work.parameters, work.problem)
    theta = {name: p.detach() for name, p in retrained.named_parameters() if name in work.parameters}
    sides = method.sides(work.objective, work.problem)
    gradient = ravel(work.objective.gradient(theta, work.problem.after, [sides.retained_after]))
    free = expand_to_parameters(~work.problem.erased, work.objective, theta)
    return float(((gradient - influence.leftover) * free).norm() / (influence.total * free).norm())


def overview(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of what is left, and of the target, by weight decay."""
    lines = [f"| model | loss | {' | '.join(f'{decay:g}' for decay in WEIGHT_DECAYS)} |"]
    lines.append(f"|---|---|{'--:|' * len(WEIGHT_DECAYS)}")
    cells: dict[tuple[str, str], list[str]] = {}
    for one in rows:
        cell = "collapsed" if one["ratio"] is None else f"{_bold(one['ratio'])} ({one['target']:.2f})"
        cells.setdefault((one["model"], one["loss"]), []).append(cell)
    return "\n".join([*lines, *(f"| {m} | `{loss}` | {' | '.join(some)} |" for (m, loss), some in cells.items())])


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of all numbers."""
    lines = ["| model | loss | decay | validation loss | moved | elsewhere | target | left | residual, times less |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for one in rows:
        cells = [one["model"], f"`{one['loss']}`", f"{one['weight_decay']:g}", f"{one['validation_loss']:.3f}"]
        if one["ratio"] is None:
            cells += ["collapsed", "", "", "", ""]
        else:
            cells += [f"{one['moved']:.3f}", f"{one['elsewhere']:.2f}", f"{one['target']:.2f}", _bold(one["ratio"])]
            cells.append(f"{one['residual_fell'] or 1.0:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bold(ratio: float) -> str:
    return f"**{ratio:.2f}**" if ratio < 0.5 else f"{ratio:.2f}"


def _write(document: Path, rows: list[dict[str, Any]]) -> None:
    """Make the sections between markers anew; the prose around them is kept."""
    text = document.read_text(encoding="utf-8")
    ratios = [(one["ratio"], one["target"]) for one in rows if one["ratio"] is not None]
    near = [ratio for ratio, target in ratios if target < 0.5]
    pairs = {(one["model"], one["loss"]): False for one in rows}
    for one in rows:
        pairs[one["model"], one["loss"]] |= one["ratio"] is not None and one["ratio"] < 0.5
    never = "; ".join(f"{model} with `{loss}`" for (model, loss), done in pairs.items() if not done)
    about = (
        f"Made on {date.today()}, {cpu()}, one thread for each training. Of {len(ratios)} trainings that did not "
        f"collapse, less than half is left in {sum(ratio < 0.5 for ratio, _ in ratios)}; of those {len(near)} whose "
        f"target is below 0.5, in {sum(ratio < 0.5 for ratio in near)}. Of {len(pairs)} pairs of model and loss, "
        f"{len(pairs) - sum(pairs.values())} get there with none of the decays: {never}."
    )
    for name, content in (("about", about), ("overview", overview(rows)), ("models", table(rows))):
        section = re.compile(rf"(<!-- rows: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = section.sub(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
    document.write_text(text, encoding="utf-8")


def main() -> None:
    """Run all cases and print the table, or put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="default: all")
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread (default: %(default)s)")
    parser.add_argument("--rows", type=Path, default=Path("benchmarks-rows/models.jsonl"), help="where rows are kept")
    parser.add_argument("--docs", type=Path, help="document whose sections are written")
    options = parser.parse_args()
    cases = [Case(m, loss, wd) for m in options.models for loss in options.losses for wd in WEIGHT_DECAYS]
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers) as pool, options.rows.open("w") as kept:
        rows = []
        for one in pool.map(row, cases):
            rows.append(one)
            kept.write(json.dumps(one) + "\n")
            kept.flush()
            sys.stdout.write(table([one]).splitlines()[-1] + "\n")
            sys.stdout.flush()
    if options.docs:
        _write(options.docs, rows)


if __name__ == "__main__":
    main()
