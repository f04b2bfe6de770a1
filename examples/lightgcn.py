"""PyG's own LightGCN example as a LightningModule, and then forgetting.

Model, loss, optimiser, batch size, negatives and metrics are those of ``examples/lightgcn.py`` in PyTorch Geometric.
The loss counts the embeddings of a batch's nodes once each, ``LightGCN.recommendation_loss(node_id=...)``: as
``node_regularization`` that term is part of what is trained and of what is unlearned.

    python examples/lightgcn.py --data amazon-book
    python examples/lightgcn.py --data checkins.csv.gz --user user --item item --forget 42
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor
from torch_geometric.datasets import AmazonBook
from torch_geometric.metrics import LinkPredPrecision, LinkPredRecall
from torch_geometric.nn import LightGCN

from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningError, UnlearningRequest
from lightning_ifru.metrics import top_items
from lightning_ifru.report import UnlearningReport
from lightning_ifru.sources import read_text_table

RATINGS = Path(__file__).parent / "data" / "ml-latest-small" / "ratings.csv.gz"


class LightGCNExample(IFRUMixin, L.LightningModule):
    """The example's model, loss and optimiser."""

    loss = "bpr"

    def __init__(self, num_nodes: int) -> None:
        super().__init__()
        self.net = LightGCN(num_nodes, embedding_dim=64, num_layers=2)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the representations of users and then items."""
        return self.net.get_embedding(edge_index)

    def node_regularization(self) -> Tensor:
        """Return the penalty of each node, of which a batch counts those of its nodes."""
        return 1e-4 * self.net.embedding.weight.square().sum(dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.001)

    def on_train_epoch_end(self) -> None:
        """Print the metrics on the test edges, ten times in all."""
        if (self.current_epoch + 1) % max(1, self.trainer.max_epochs // 10) == 0:
            figures = ", ".join(f"{name}@20 {value:.4f}" for name, value in self.evaluate().items())
            self.print(f"epoch {self.current_epoch + 1:3d}: {figures}")

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return precision@20 and recall@20 on the test edges, training edges excluded."""
        data, h = self.trainer.datamodule, self.encode(self.edge_index).cpu()
        users, items = data.test.user.unique(), h[data.num_users + data.candidates]
        top = top_items(lambda block: h[block] @ items.T, users, data.train, data.candidates, k=20)
        truth = torch.stack([torch.searchsorted(users, data.test.user), data.test.item])
        return {"precision": float(LinkPredPrecision(20)(top, truth)), "recall": float(LinkPredRecall(20)(top, truth))}


def main(
    data: str = str(RATINGS),
    user: str = "userId",
    item: str = "movieId",
    epochs: int = 100,
    forget: str | None = None,
    limit: int | None = None,
) -> UnlearningReport:
    """Train on interactions, forget some, and show what changed.

    Args:
        data: CSV of interactions, or amazon-book, which PyG downloads to data/Amazon.
        user: column of user ids.
        item: column of item ids.
        epochs: epochs of training.
        forget: id of a user; by default 1% of the training interactions, chosen by chance.
        limit: take only so many rows of the CSV, the first ones.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    L.seed_everything(0, verbose=False)
    if data == "amazon-book":
        try:
            graph = AmazonBook("data/Amazon")[0]
        except OSError as error:
            raise UnlearningError(f"AmazonBook could not be downloaded ({error}); give a CSV with --data.") from error
        ratings = InteractionDataModule(graph, user="user", item="book", split="given", batch_size=8192)
    else:
        rows = data if limit is None else read_text_table(data).head(limit)
        ratings = InteractionDataModule(rows, user=user, item=item, val_fraction=0, test_fraction=0.2, batch_size=8192)
    model = LightGCNExample(ratings.num_users + ratings.num_items)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": sys.stderr.isatty()}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[IFRUCallback()], enable_checkpointing=False, **quiet)
    trainer.fit(model, datamodule=ratings)
    if forget is None:
        some = ratings.train[torch.randperm(len(ratings.train))[: len(ratings.train) // 100]]
        pairs = zip(ratings.user_ids[some.user], ratings.item_ids[some.item], strict=True)
        request = UnlearningRequest(interactions=pairs)
    else:
        request = UnlearningRequest(users=[forget])
    report = trainer.unlearn(ratings, request=request)
    Console().print(report)
    return report


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UnlearningError as error:
        sys.exit(str(error))
