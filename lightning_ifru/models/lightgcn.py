"""LightGCN, with PyG's own layer inside."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch_geometric.nn import LightGCN as LightGCNLayer

from lightning_ifru.graph import layer_sum
from lightning_ifru.losses import LossSpec
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.models.sizes import check_sizes


class LightGCN(IFRUMixin, lightning.LightningModule):
    r"""LightGCN: linear propagation of embeddings over the interaction graph, averaged over layers.

    .. math::  h = \sum_{k=0}^{L} \alpha_k\, (D^{-1/2} A D^{-1/2})^k\, e, \qquad s_{ui} = h_u^\top h_i

    The parameters are those of :class:`torch_geometric.nn.LightGCN` in ``net``; the propagation is the same sum, as a
    product with the normalised adjacency in CSR form, which is built once for each graph.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the size ``d`` of an embedding.
        num_layers: the number ``L`` of propagations.
        loss: a name, a function of scores and targets, or a :class:`~lightning_ifru.losses.Loss`; see
            :func:`~lightning_ifru.losses.resolve_loss`. Only a name is kept in the hyper-parameters.
        lr: the learning rate of Adam.
        weight_decay: its L2 penalty, Ω of the objective.

    Raises:
        UnlearningError: a size is no integer or too small.

    Source: He et al., *LightGCN*, arXiv 2002.02126.

    Example:
        >>> LightGCN(num_users=2, num_items=3, embedding_dim=4).encode(torch.tensor([[0, 2], [2, 0]])).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        embedding_dim: int = 64,
        num_layers: int = 2,
        loss: LossSpec = "bpr",
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(self, num_users=num_users, num_items=num_items, embedding_dim=embedding_dim, num_layers=num_layers)
        self.save_hyperparameters(ignore=[] if isinstance(loss, str) else ["loss"])
        self.loss = loss
        self.lr, self.weight_decay = lr, weight_decay
        self.message_passing_hops = num_layers
        self.node_parameters = {"net.embedding.weight": "node"}
        self.net = LightGCNLayer(num_users + num_items, embedding_dim, num_layers)

    @property
    def layer_weights(self) -> tuple[float, ...]:  # type: ignore[override]
        r"""The weights :math:`\alpha_k`, as they stand in PyG's layer."""
        return tuple(self.net.alpha.tolist())

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the representations ``[num_users + num_items, d]``, equal to ``net.get_embedding(edge_index)``."""
        return layer_sum(edge_index, self.net.embedding.weight, self.layer_weights)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with L2 weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
