"""Neural graph collaborative filtering."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch_geometric.nn.resolver import activation_resolver

from lightning_ifru.graph import propagate
from lightning_ifru.losses import LossSpec
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.models.sizes import check_sizes


class NGCF(IFRUMixin, lightning.LightningModule):
    r"""NGCF: message passing with weight matrices, an element-wise interaction and a non-linearity in every layer.

    .. math::

        e^{(k+1)} = \mathrm{LeakyReLU}\big((\hat A + I)\, e^{(k)} W_1^{(k)} + (\hat A e^{(k)} \odot e^{(k)})\,
        W_2^{(k)}\big), \qquad h = [e^{(0)} \| \dots \| e^{(L)}], \qquad s_{ui} = h_u^\top h_i

    with :math:`\hat A = D^{-1/2} A D^{-1/2}`. Rows of :math:`e^{(k)}` are not scaled to length one and nothing is added
    but what stands here: so it is in the paper, while the authors' code has such a scaling and biases. The slope of
    the LeakyReLU, of which the paper says nothing, is the code's 0.2.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the size ``d`` of an embedding, and of every layer; ``h`` has ``d (L + 1)`` columns.
        num_layers: the number ``L`` of layers.
        loss: a name, a function of scores and targets, or a :class:`~lightning_ifru.losses.Loss`; see
            :func:`~lightning_ifru.losses.resolve_loss`. Only a name is kept in the hyper-parameters.
        lr: the learning rate of Adam.
        weight_decay: its L2 penalty, Ω of the objective.
        dropout: the share of a layer's outputs that training sets to zero (the paper's message dropout).
        activation: the paper's ``"leaky_relu"``, or another that PyG knows. Where forgetting matters choose a smooth
            one such as ``"elu"``: the gradient of a LeakyReLU jumps, and a Newton step cannot see where.

    Raises:
        UnlearningError: a size is no integer or too small.

    Source: Wang et al., *Neural Graph Collaborative Filtering*, arXiv 1905.08108.

    Example:
        >>> model = NGCF(num_users=2, num_items=3, embedding_dim=4, num_layers=2)
        >>> model.encode(torch.tensor([[0, 2], [2, 0]])).shape
        torch.Size([5, 12])
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
        dropout: float = 0.0,
        activation: str = "leaky_relu",
    ) -> None:
        super().__init__()
        check_sizes(self, num_users=num_users, num_items=num_items, embedding_dim=embedding_dim, num_layers=num_layers)
        self.save_hyperparameters(ignore=[] if isinstance(loss, str) else ["loss"])
        self.loss = loss
        self.lr, self.weight_decay = lr, weight_decay
        self.message_passing_hops = num_layers
        self.node_parameters = {"embedding.weight": "node"}
        self.embedding = nn.Embedding(num_users + num_items, embedding_dim)
        square = [nn.Linear(embedding_dim, embedding_dim, bias=False) for _ in range(2 * num_layers)]
        self.sums, self.products = nn.ModuleList(square[:num_layers]), nn.ModuleList(square[num_layers:])
        slope = {"negative_slope": 0.2} if activation == "leaky_relu" else {}
        self.activation = activation_resolver(activation, **slope)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw embeddings and matrices anew, uniformly with the scale that keeps variances over layers (Glorot)."""
        for part in (self.embedding, *self.sums, *self.products):
            nn.init.xavier_uniform_(part.weight)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return the representations ``[num_users + num_items, d (L + 1)]``."""
        x = self.embedding.weight
        layers = [x]
        for of_sum, of_product in zip(self.sums, self.products, strict=True):
            received = propagate(edge_index, x)
            x = self.dropout(self.activation(of_sum(received + x) + of_product(received * x)))
            layers.append(x)
        return torch.cat(layers, dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with L2 weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
