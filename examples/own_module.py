"""Your own LightningModule, before and after: nine lines of code make it forget.

``Before`` is a module as people have it: layers of PyTorch Geometric, an MLP that scores, a training step of its own.
``After`` is the same one: nine lines are new or changed and end in ``# +``, and one is gone, the copy of the graph, for
messages would go on passing along what was forgotten.

    python examples/own_module.py --forget 15
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor, nn
from torch_geometric.nn import MLP, SAGEConv

from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningError, UnlearningRequest
from lightning_ifru.report import UnlearningReport

RATINGS = Path(__file__).parent / "data" / "ml-latest-small" / "ratings.csv.gz"


class Before(L.LightningModule):
    """GraphSAGE over the graph of likes, and an MLP that scores a user's and an item's representations."""

    def __init__(self, num_users: int, num_items: int, edge_index: Tensor) -> None:
        super().__init__()
        self.num_users = num_users
        self.register_buffer("edges", edge_index)
        self.embedding = nn.Embedding(num_users + num_items, 32)
        self.conv1, self.conv2 = SAGEConv(32, 32), SAGEConv(32, 32)
        self.scorer = MLP([64, 32, 1], norm=None)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the scores of pairs."""
        x = self.conv2(self.conv1(self.embedding.weight, self.edges).relu(), self.edges)
        pair = torch.cat([x[user], x[item + self.num_users]], dim=-1)
        return self.scorer(pair).squeeze(-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch["user"], batch["item"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with a little weight decay."""
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


class After(IFRUMixin, L.LightningModule):  # +
    """GraphSAGE over the graph of likes, and an MLP that scores a user's and an item's representations."""

    loss = "bce"  # +

    def __init__(self, num_users: int, num_items: int) -> None:  # +
        super().__init__()
        self.num_users = num_users
        self.embedding = nn.Embedding(num_users + num_items, 32)
        self.conv1, self.conv2 = SAGEConv(32, 32), SAGEConv(32, 32)
        self.scorer = MLP([64, 32, 1], norm=None)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the scores of pairs."""
        x = self.encode(self.edge_index)  # +
        return self.decode(x[user], x[item + self.num_users])  # +

    def encode(self, edge_index: Tensor) -> Tensor:  # +
        """Return the representations of users and then items."""
        return self.conv2(self.conv1(self.embedding.weight, edge_index).relu(), edge_index)  # +

    def decode(self, src: Tensor, dst: Tensor) -> Tensor:  # +
        """Return the scores of pairs of representations."""
        return self.scorer(torch.cat([src, dst], dim=-1)).squeeze(-1)  # +

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch["user"], batch["item"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with a little weight decay."""
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3)


def main(forget: str = "15", epochs: int = 10, limit: int | None = None) -> UnlearningReport:
    """Train the module and let it forget a user.

    Args:
        forget: id of the user.
        epochs: epochs of training.
        limit: read only so many ratings.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    L.seed_everything(0, verbose=False)
    ratings = pd.read_csv(RATINGS, nrows=limit)
    data = InteractionDataModule(ratings, user="userId", item="movieId", rating="rating", threshold=4.0)
    model = After(data.num_users, data.num_items)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": sys.stderr.isatty()}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[IFRUCallback()], enable_checkpointing=False, **quiet)
    trainer.fit(model, datamodule=data)
    report = trainer.unlearn(data, request=UnlearningRequest(users=[forget]))
    Console().print(report)
    return report


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UnlearningError as error:
        sys.exit(str(error))
