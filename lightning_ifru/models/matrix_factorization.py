"""Matrix factorisation."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn

from lightning_ifru.losses import LossSpec
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.models.sizes import check_sizes


class MatrixFactorization(IFRUMixin, lightning.LightningModule):
    r"""Matrix factorisation: :math:`s_{ui} = e_u^\top e_i`; the graph is not used.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the size ``d`` of an embedding.
        loss: a name, a function of scores and targets, or a :class:`~lightning_ifru.losses.Loss`; see
            :func:`~lightning_ifru.losses.resolve_loss`. Only a name is kept in the hyper-parameters.
        lr: the learning rate of Adam.
        weight_decay: its L2 penalty, Ω of the objective.

    Raises:
        UnlearningError: a size is no integer or too small.

    Source: Koren, Bell and Volinsky, *Matrix factorization techniques for recommender systems*, 2009.

    Example:
        >>> model = MatrixFactorization(num_users=2, num_items=3, embedding_dim=4)
        >>> model.encode(torch.empty(2, 0, dtype=torch.long)).shape
        torch.Size([5, 4])
    """

    message_passing_hops = 0
    layer_weights = (1.0,)

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        loss: LossSpec = "bpr",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(self, num_users=num_users, num_items=num_items, embedding_dim=embedding_dim)
        self.save_hyperparameters(ignore=[] if isinstance(loss, str) else ["loss"])
        self.loss = loss
        self.lr, self.weight_decay = lr, weight_decay
        self.node_parameters = {"embedding.weight": "node"}
        self.embedding = nn.Embedding(num_users + num_items, embedding_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all embeddings anew, uniformly with the scale that keeps scores near zero (Glorot)."""
        nn.init.xavier_uniform_(self.embedding.weight)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the embeddings ``[num_users + num_items, d]``."""
        return self.embedding.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with L2 weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
