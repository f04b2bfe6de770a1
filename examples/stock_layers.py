"""Three recommenders from stock PyG layers: each learns MovieLens ratings and then forgets a person.

    python examples/stock_layers.py [--epochs 30] [--dim 16] [--films 500] [--user 42]

The mixin and ``encode`` make a module able to forget; weight matrices are corrected together with embedding rows.
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
import pandas as pd
import torch
import torch_geometric
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor, nn

from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningError, UnlearningRequest

MOVIELENS = Path(__file__).parent / "data" / "ml-latest-small"


class GraphSAGE(IFRUMixin, L.LightningModule):
    """Embeddings of users and items, and two layers that average over the neighbours."""

    def __init__(self, num_users: int, num_items: int, dim: int = 16, loss: str = "bce") -> None:
        super().__init__()
        self.loss = loss
        self.embedding = nn.Embedding(num_users + num_items, dim)
        self.net = torch_geometric.nn.GraphSAGE(dim, dim, num_layers=2, act="elu")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings anew: a forgotten person's row is taken from here."""
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the rows ``[num_users + num_items, dim]``."""
        return self.net(self.embedding.weight, edge_index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam; its L2 penalty is part of what is unlearned."""
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=1e-4)


class GAT(GraphSAGE):
    """The same with two layers of attention."""

    def __init__(self, num_users: int, num_items: int, dim: int = 16, loss: str = "bce") -> None:
        super().__init__(num_users, num_items, dim, loss)
        self.net = torch_geometric.nn.GAT(dim, dim, num_layers=2, heads=2, act="elu")


class Bipartite(IFRUMixin, L.LightningModule):
    """Users and items with features: an encoder each, then messages to the items and back to the users."""

    def __init__(self, user_features: Tensor, item_features: Tensor, dim: int = 16, loss: str = "bce") -> None:
        super().__init__()
        self.loss = loss
        # Never compute features from interactions: a person's activity or mean rating would stay in the module after
        # the person is forgotten. For the same reason they are in no state dict.
        self.register_buffer("user_features", user_features, persistent=False)
        self.register_buffer("item_features", item_features, persistent=False)
        self.users, self.items = nn.Embedding(len(user_features), dim), nn.Embedding(len(item_features), dim)
        self.user_encoder, self.item_encoder = (nn.Linear(x.shape[1], dim) for x in (user_features, item_features))
        self.to_items, self.to_users = (torch_geometric.nn.SAGEConv((dim, dim), dim) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings anew: a forgotten person's row is taken from here."""
        nn.init.normal_(self.users.weight, std=0.1)
        nn.init.normal_(self.items.weight, std=0.1)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the rows ``[num_users + num_items, dim]``."""
        user, item = edge_index[:, edge_index[0] < self.users.num_embeddings]
        item = item - self.users.num_embeddings
        x_user = self.users.weight + self.user_encoder(self.user_features)
        x_item = self.items.weight + self.item_encoder(self.item_features)
        h_item = nn.functional.elu(self.to_items((x_user, x_item), torch.stack([user, item])))
        return torch.cat([self.to_users((h_item, x_user), torch.stack([item, user])), h_item])

    configure_optimizers = GraphSAGE.configure_optimizers


def main(epochs: int = 30, dim: int = 16, films: int = 500, user: str = "42") -> None:
    """Train each, let it forget a person and print what was done.

    Args:
        epochs: epochs of training.
        dim: size of an embedding.
        films: only so many films, the most rated ones.
        user: id of the person to forget.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    log = pd.read_csv(MOVIELENS / "ratings.csv.gz")
    log = log[log.movieId.isin(log.movieId.value_counts().index[:films])]
    genres = pd.read_csv(MOVIELENS / "movies.csv.gz", index_col="movieId").genres.str.get_dummies("|")
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": sys.stderr.isatty()}
    for cls in (GraphSAGE, GAT, Bipartite):
        L.seed_everything(0, verbose=False)
        data = InteractionDataModule(log, user="userId", item="movieId", rating="rating", threshold=4, batch_size=4096)
        # MovieLens says nothing about its users: a one for everybody stands where an age or a language would.
        features = torch.ones(data.num_users, 1), torch.tensor(genres.loc[list(data.item_ids)].to_numpy()).float()
        model = cls(*(features if cls is Bipartite else (data.num_users, data.num_items)), dim=dim)
        trainer = L.Trainer(max_epochs=epochs, callbacks=[IFRUCallback()], enable_checkpointing=False, **quiet)
        trainer.fit(model, datamodule=data)
        Console().print(f"\n{cls.__name__}", trainer.unlearn(data, request=UnlearningRequest(users=[user])))


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UnlearningError as error:
        sys.exit(str(error))
