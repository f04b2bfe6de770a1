"""The paper's experiment: wrong labels spoil a recommender's training, and are then forgotten.

Ratings of 4 stars and more are likes, all others dislikes. A share of the training labels is turned around, a model is
trained on them, and the turned ones are forgotten as if somebody had only now found out. Test labels stay true.

Source: Zhang et al., *Recommendation Unlearning via Influence Function*, arXiv 2307.02147, section 5.

    python examples/movielens_erasure.py --model mf --share 0.02
"""

import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
import pandas as pd
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningError, UnlearningRequest
from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics import auroc, completeness_ratio, dot_product, pair_scores
from lightning_ifru.models import LightGCN, MatrixFactorization
from lightning_ifru.report import UnlearningReport

RATINGS = Path(__file__).parent / "data" / "ml-latest-small" / "ratings.csv.gz"


def main(
    model: Literal["mf", "lightgcn"] = "lightgcn",
    share: float = 0.02,
    epochs: int = 100,
    retrain: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[UnlearningReport, float | None]:
    """Train on partly wrong labels, forget the wrong ones, and compare with a model that never saw them.

    Args:
        model: matrix factorisation or LightGCN.
        share: share of the training labels that are turned around.
        epochs: epochs of training.
        retrain: whether to train that other model; without it completeness cannot be measured.
        limit: read only so many ratings.
        seed: of the wrong labels, the initial weights and the batches.

    Returns:
        The report, and which share of the distance to the retrained model is left on the forgotten pairs.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    console = Console()
    ratings = pd.read_csv(RATINGS, nrows=limit)
    ratings["liked"] = (ratings["rating"] >= 4.0).astype(float)
    load = partial(InteractionDataModule, ratings, user="userId", item="movieId", rating="liked", threshold=0.5)
    # Which rows are trained on hangs on their ids alone, so that they are the same whatever their labels.
    true = load()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(true.train), generator=generator)[: round(share * len(true.train))]
    users, items = true.user_ids[true.train.user[chosen]], true.item_ids[true.train.item[chosen]]
    request = UnlearningRequest(interactions=list(zip(users, items, strict=True)))
    wrong = pd.MultiIndex.from_frame(ratings[["userId", "movieId"]]).isin(request.interactions)
    ratings.loc[wrong, "liked"] = 1 - ratings.loc[wrong, "liked"]

    data = load()
    forgotten = data.train[chosen]
    console.print(f"Training on {len(data.train):,} labels, of which {len(chosen):,} are wrong ...")
    recommender, trainer = fit(data, model, epochs, seed)
    original = scores(recommender, data, forgotten)
    report = trainer.unlearn(data, request=request)
    unlearned = scores(recommender, data, forgotten)
    console.print(report)
    rows = [("before", report.metrics_before["auroc"], original), ("after", report.metrics_after["auroc"], unlearned)]
    table, left = Table("", "test AUC", "belief in the wrong labels"), None
    if retrain:
        data = load()
        data.forget(request)
        data.commit(data.removal())  # gone before training; everything else is as it was for the original
        other, _ = fit(data, model, epochs, seed)
        retrained = scores(other, data, forgotten)
        rows.append(("retrained", auroc(scores(other, data, data.test), data.test.label > 0), retrained))
        left = float(completeness_ratio(unlearned, original, retrained))
        table.caption = f"On the forgotten pairs {left:.0%} of the distance to the retrained model is left."
    for name, auc, logits in rows:
        belief = torch.where(forgotten.label > 0, logits.sigmoid(), 1 - logits.sigmoid()).mean()
        table.add_row(name, f"{auc:.4f}", f"{belief:.1%}")
    console.print(table)
    return report, left


def fit(data: InteractionDataModule, model: str, epochs: int, seed: int) -> tuple[IFRUMixin, L.Trainer]:
    """Train from a seed, which two trainings share that are to differ in their data only."""
    L.seed_everything(seed, verbose=False)
    kind, settings = MatrixFactorization, {"weight_decay": 1e-4}
    if model == "lightgcn":
        kind, settings = LightGCN, {"num_layers": 1, "weight_decay": 5e-5}
    recommender = kind(data.num_users, data.num_items, embedding_dim=32, loss="bce", lr=3e-3, **settings)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": sys.stderr.isatty()}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[IFRUCallback()], enable_checkpointing=False, **quiet)
    trainer.fit(recommender, datamodule=data)
    return recommender, trainer


@torch.no_grad()
def scores(model: IFRUMixin, data: InteractionDataModule, pairs: Interactions) -> torch.Tensor:
    """Return the logits of pairs on the graph as it stands."""
    return pair_scores(dot_product, model.eval().encode(data.graph()), pairs.user, pairs.item + data.num_users)


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UnlearningError as error:
        sys.exit(str(error))
