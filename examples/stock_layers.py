"""Three recommenders from stock PyG layers: each learns MovieLens ratings and then forgets a person.

    python examples/stock_layers.py [--epochs 30] [--dim 16] [--films 500] [--user 42]

What makes such a module able to forget is the mixin and ``encode``. The layers' weight matrices are corrected together
with the embedding rows.
"""

import argparse
from pathlib import Path

import lightning
import pandas
import rich
import torch
import torch_geometric
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningRequest

MOVIELENS = Path(__file__).parent / "data" / "ml-latest-small"


class GraphSAGE(IFRUMixin, lightning.LightningModule):
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


class Bipartite(IFRUMixin, lightning.LightningModule):
    """Users and items with features: an encoder each, then messages to the items and back to the users.

    Features must not be computed from the interactions: a person's activity or mean rating would stay in the module
    after the person is forgotten. For the same reason they are in no state dict.
    """

    def __init__(self, user_features: Tensor, item_features: Tensor, dim: int = 16, loss: str = "bce") -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("user_features", user_features, persistent=False)
        self.register_buffer("item_features", item_features, persistent=False)
        self.users, self.items = nn.Embedding(len(user_features), dim), nn.Embedding(len(item_features), dim)
        self.user_encoder = nn.Linear(user_features.shape[1], dim)
        self.item_encoder = nn.Linear(item_features.shape[1], dim)
        self.to_items, self.to_users = SAGEConv((dim, dim), dim), SAGEConv((dim, dim), dim)
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


def main() -> None:
    """Train each, let it forget a person and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="epochs of training (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=16, help="size of an embedding (default: %(default)s)")
    parser.add_argument("--films", type=int, default=500, help="only the most rated ones (default: %(default)s)")
    parser.add_argument("--user", default="42", help="id of the person to forget (default: %(default)s)")
    options = parser.parse_args()
    ratings = pandas.read_csv(MOVIELENS / "ratings.csv.gz")
    ratings = ratings[ratings.movieId.isin(ratings.movieId.value_counts().index[: options.films])]
    films = pandas.read_csv(MOVIELENS / "movies.csv.gz", index_col="movieId")
    for cls in (GraphSAGE, GAT, Bipartite):
        lightning.seed_everything(0, verbose=False)
        columns = {"user": "userId", "item": "movieId", "rating": "rating"}
        data = InteractionDataModule(dict(ratings.items()), **columns, threshold=4.0, batch_size=4096)
        # MovieLens says nothing about its users: a one for everybody stands where an age or a language would.
        about_users = torch.ones(data.num_users, 1)
        about_items = torch.tensor(films.genres.str.get_dummies("|").loc[list(data.item_ids)].to_numpy()).float()
        about = (about_users, about_items) if cls is Bipartite else (data.num_users, data.num_items)
        model = cls(*about, dim=options.dim)
        trainer = lightning.Trainer(
            max_epochs=options.epochs, callbacks=[IFRUCallback()], logger=False, enable_checkpointing=False
        )
        trainer.fit(model, datamodule=data)
        rich.print(f"\n{cls.__name__}", trainer.unlearn(data, request=UnlearningRequest(users=[options.user])))


if __name__ == "__main__":
    main()
