r"""What one pass over all data leaves for the requests that follow: the layers of a linear encoder and of its gradient.

For an encoder :math:`h = \sum_k \alpha_k \hat A^k e` with one table :math:`e` of node rows, kept are :math:`X_k = \hat
A^k e` and :math:`W_k = \hat A^k g` with :math:`g = \sum_{z \in D} \nabla_h\, \ell(z)`, a sum and not a mean, so that
nothing changes in it where an example leaves elsewhere. The gradient of the risk is :math:`\sum_k \alpha_k W_k / n +
\lambda e`. After a request both are brought up to date on the nodes it was solved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ifru.draws import FrozenDraws
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Examples
from lightning_ifru.graph import propagate
from lightning_ifru.neighbours import Neighbours
from lightning_ifru.objective import Objective

#: The layers are made anew once what was left out of them may have grown to this share of them. The same share of a
#: forgotten example's gradient is then wrong at most on average, a fraction of what solving for the most important rows
#: leaves out.
DRIFT = 0.05


@dataclass(frozen=True)
class LinearModel:
    """A model whose encoder is linear in one table of node rows.

    Attributes:
        objective: its risk, with dot products for scores.
        name: the parameter that is the table.
        weights: the weight of every layer, from the table itself on.
    """

    objective: Objective
    name: str
    weights: tuple[float, ...]

    def mean(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the layers' weighted sum."""
        return sum((w * x for w, x in zip(self.weights[1:], layers[1:], strict=True)), self.weights[0] * layers[0])


class WarmState:
    """The layers of a model's table and of its gradient, on the model's device.

    Args:
        model: the model.
        table: its rows ``[N, d]``.
        edge_index: the graph of all training interactions.
        near: the training interactions.
        draws: the negatives of every row; ``None`` where rows have labels.

    Attributes:
        embeddings, gradients: :math:`X_k` and :math:`W_k`.
        degree: every node's number of edges, int64 ``[N]``, on the processor.
        num_examples: the number of training interactions.
        drift: a bound of the error that updates have left in the representations and in the gradient in them, as a
            share of their norms.
        origin: what its owner knows it again by.

    Raises:
        ObjectiveError: the encoder is not the sum of layers that the model says it is.
    """

    def __init__(
        self, model: LinearModel, table: Tensor, edge_index: Tensor, near: Neighbours, draws: FrozenDraws | None
    ) -> None:
        self.model, self.near, self.draws, self.drift = model, near, draws, 0.0
        self.origin: object = None
        self.degree = torch.bincount(edge_index[0], minlength=near.num_nodes).cpu()
        self.embeddings = self._layers(edge_index, table.clone())
        h = model.mean(self.embeddings)
        self._check(h, edge_index)
        self.norm = float(torch.linalg.vector_norm(h))
        examples = self._everything()
        model.objective.check({model.name: table}, edge_index, examples)
        _, gradient, _ = model.objective.decoded(h, {}, [examples])
        (gradient,) = model.objective.ranks.sum(gradient)
        self.gradients = self._layers(edge_index, gradient)
        self.slope = float(torch.linalg.vector_norm(gradient)) or 1.0
        self._parts = self._moments(self.embeddings[0], self.gradients)

    @property
    def stale(self) -> bool:
        """Whether updates have left out so much that the layers are to be made anew."""
        return self.drift > DRIFT

    def holds(self, table: Tensor, candidates: Tensor) -> bool:
        """Return whether table and candidates are still those that this was made of and has been told of since."""
        alive = int(self.near.table.train_counts[0].sum())
        drawn = self.draws is None or torch.equal(candidates, self.draws.candidates)
        return drawn and alive == self.num_examples and torch.equal(table, self.embeddings[0])

    def gradient_norm(self) -> float:
        r"""Return :math:`\|\nabla J\|`."""
        data, mixed, rows = self._parts
        decay, n = self.model.objective.weight_decay.get(self.model.name, 0.0), self.num_examples
        return max(0.0, data / n**2 + 2 * decay * mixed / n + decay**2 * rows) ** 0.5

    def update(
        self,
        nodes: Tensor,
        embeddings: Sequence[Tensor],
        gradients: Sequence[Tensor],
        degree: Tensor,
        draws: FrozenDraws | None,
        num_forgotten: int,
        left_out: tuple[float, float],
    ) -> None:
        """Change the rows of ``nodes [m]``.

        Args:
            nodes: the nodes.
            embeddings: their new rows in every layer of the table.
            gradients: the same of the gradient.
            degree: their new numbers of edges.
            draws: the negatives from now on.
            num_forgotten: how many examples have gone.
            left_out: bounds of the norms of what this leaves out of the representations and of the gradient in them.
        """
        here = nodes.to(self.embeddings[0].device)
        before = self._moments(*self._rows(here))
        for layers, rows in ((self.embeddings, embeddings), (self.gradients, gradients)):
            for layer, new in zip(layers, rows, strict=True):
                layer[here] = new
        after = self._moments(*self._rows(here))
        self._parts = tuple(p + a - b for p, a, b in zip(self._parts, after, before, strict=True))
        self.degree[nodes], self.draws = degree, draws
        self.num_examples -= num_forgotten
        self.drift += max(left_out[0] / self.norm, left_out[1] / self.slope)

    def _rows(self, nodes: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.embeddings[0][nodes], [layer[nodes] for layer in self.gradients]

    def _moments(self, rows: Tensor, gradients: Sequence[Tensor]) -> tuple[float, ...]:
        data = self.model.mean(gradients)
        return tuple(float((a * b).sum(dtype=torch.float64)) for a, b in ((data, data), (data, rows), (rows, rows)))

    def _layers(self, edge_index: Tensor, x: Tensor) -> list[Tensor]:
        layers = [x]
        for _ in self.model.weights[1:]:
            layers.append(propagate(edge_index, layers[-1]))
        return layers

    def _everything(self) -> Examples:
        table = self.near.table
        rows = table.rows("train").nonzero().flatten()
        self.num_examples = len(rows)
        device = self.embeddings[0].device
        columns = [table.user[rows], table.item[rows], table.label[rows]]
        user, item, label = (column.to(device) for column in columns)
        if self.draws is None:
            return Examples(user, item, 1.0, target=label)
        # In parts that stay in a cache, for a draw goes through a dozen tensors.
        negative = torch.cat([self.draws.items(part) for part in rows.split(1 << 15)])
        return Examples(user, item, 1.0, negative=negative.to(device))

    def _check(self, h: Tensor, edge_index: Tensor) -> None:
        objective, name = self.model.objective, self.model.name
        with torch.no_grad():
            encoded = objective.encode({name: self.embeddings[0]}, edge_index)
        if encoded.shape != h.shape or not torch.allclose(encoded, h, rtol=1e-3, atol=1e-5 * float(h.abs().max())):
            raise ObjectiveError(
                f"{objective.name} declares layer_weights={self.model.weights} and its encode returns something else "
                f"than the sum of these multiples of '{name}', propagated once, twice and so on; correct them, or "
                "declare none."
            )
