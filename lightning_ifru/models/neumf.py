"""Neural matrix factorisation."""

from __future__ import annotations

from itertools import pairwise

import lightning
import torch
from torch import Tensor, nn
from torch_geometric.nn.resolver import activation_resolver

from lightning_ifru.losses import LossSpec
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.models.sizes import check_sizes


class NeuMF(IFRUMixin, lightning.LightningModule):
    r"""NeuMF: a product of embeddings and a perceptron on other embeddings, weighed together; no graph is used.

    .. math::

        s_{ui} = w^\top \big[\, p_u \odot q_i \;\|\; \phi_L(\dots \phi_1([\tilde p_u \| \tilde q_i])) \,\big], \qquad
        \phi_k(x) = \mathrm{ReLU}(W_k x + b_k)

    with embeddings :math:`p, q` of one tower and :math:`\tilde p, \tilde q` of the other. Each layer :math:`\phi_k`
    has half as many outputs as inputs. The score is a logit: the paper's sigmoid belongs to the loss ``"bce"``.

    Args:
        num_users: the number of users.
        num_items: the number of items.
        embedding_dim: the size ``d`` of an embedding in each of the two towers.
        num_layers: the number ``L`` of layers of the perceptron.
        loss: a name, a function of scores and targets, or a :class:`~lightning_ifru.losses.Loss`; see
            :func:`~lightning_ifru.losses.resolve_loss`. Only a name is kept in the hyper-parameters.
        lr: the learning rate of Adam.
        weight_decay: its L2 penalty, Ω of the objective.
        dropout: the share of a layer's outputs that training sets to zero.
        activation: the paper's ``"relu"``, or another that PyG knows. Where forgetting matters choose a smooth one such
            as ``"silu"``: the gradient of a ReLU jumps, and a Newton step cannot see where.

    Raises:
        UnlearningError: a size is no integer or too small.

    Source: He et al., *Neural Collaborative Filtering*, arXiv 1708.05031.

    Example:
        >>> model = NeuMF(num_users=2, num_items=3, embedding_dim=4)
        >>> h = model.encode(torch.empty(2, 0, dtype=torch.long))
        >>> h.shape, model.decode(h[:2], h[2:4]).shape
        (torch.Size([5, 8]), torch.Size([2]))
    """

    message_passing_hops = 0

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
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_sizes(self, num_users=num_users, num_items=num_items, embedding_dim=embedding_dim, num_layers=num_layers)
        self.save_hyperparameters(ignore=[] if isinstance(loss, str) else ["loss"])
        self.loss = loss
        self.lr, self.weight_decay = lr, weight_decay
        self.node_parameters = {"factors.weight": "node", "inputs.weight": "node"}
        self.factors = nn.Embedding(num_users + num_items, embedding_dim)
        self.inputs = nn.Embedding(num_users + num_items, embedding_dim)
        sizes = [max(1, 2 * embedding_dim >> k) for k in range(num_layers + 1)]
        layers = [(nn.Linear(a, b), activation_resolver(activation), nn.Dropout(dropout)) for a, b in pairwise(sizes)]
        self.perceptron = nn.Sequential(*(part for layer in layers for part in layer))
        self.output = nn.Linear(embedding_dim + sizes[-1], 1, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew, uniformly with the scale that keeps variances over layers (Glorot); biases to zero."""
        for part in self.modules():
            if isinstance(part, (nn.Embedding, nn.Linear)):
                nn.init.xavier_uniform_(part.weight)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def encode(self, edge_index: Tensor) -> Tensor:
        """Return both towers' embeddings side by side, ``[num_users + num_items, 2 d]``."""
        return torch.cat([self.factors.weight, self.inputs.weight], dim=1)

    def decode(self, src: Tensor, dst: Tensor) -> Tensor:
        """Return the scores ``[B]`` of pairs of rows ``[B, 2 d]``, users first."""
        (p, p_in), (q, q_in) = src.chunk(2, dim=-1), dst.chunk(2, dim=-1)
        hidden = self.perceptron(torch.cat([p_in, q_in], dim=-1))
        scores: Tensor = self.output(torch.cat([p * q, hidden], dim=-1))
        return scores.squeeze(-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with L2 weight decay."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
