r"""The graph among a few nodes of a larger one, before and after some of its edges go, and what that does to layers.

A linear encoder's layers are :math:`X_k = \hat A X_{k-1}` with :math:`\hat A = D^{-1/2} A D^{-1/2}` and the degrees of
the whole graph. When edges go and :math:`X_0` changes, with :math:`Y_k = D^{-1/2} X_k` and :math:`S_k = D^{1/2} X_k =
A Y_{k-1}`,

.. math::

    X'_k = D'^{-1/2} \left( S_k + A'\, \delta Y_{k-1} - \Delta A\, Y_{k-1} \right), \qquad
    \delta Y_{k-1} = D'^{-1/2} X'_{k-1} - D^{-1/2} X_{k-1}

where :math:`\Delta A` has the edges that go and the degrees differ at their ends alone. The old layers stand for all
that is not touched. On some nodes alone this leaves out what changes come back to them by way of others; it is exact
where the nodes are all nodes, and for one layer where they hold every end of an edge that goes and every changed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_ifru.graph import csr_matrix
from lightning_ifru.neighbours import Neighbours


class LocalGraph:
    """The graph among ``nodes`` before and after some of its edges go.

    Args:
        near: the training interactions.
        nodes: the nodes ``[m]``, ascending; every end of a row that goes is among them.
        degree: their numbers of edges in the whole graph, ``[m]``.
        gone: the training rows that go, ascending.
        like: a tensor of the type and on the device wanted.
    """

    def __init__(self, near: Neighbours, nodes: Tensor, degree: Tensor, gone: Tensor, like: Tensor) -> None:
        users = nodes[nodes < near.num_users]
        rows, which = near.rows(users)
        item, inside = locate(near.ends(rows)[1], nodes)
        inside &= near.edges(rows)
        rows, which, item = rows[inside], which[inside], item[inside]
        removed = locate(rows, gone)[1]
        self.ends_of_removed = torch.cat([which[removed], item[removed]])
        self.degree_after = degree - torch.bincount(self.ends_of_removed, minlength=len(nodes))
        self._size, self._like = len(nodes), like
        self._root = [d.to(like).sqrt().unsqueeze(1) for d in (degree, self.degree_after)]
        self._scale = [_inverse(root) for root in self._root]
        entries = torch.cat([torch.stack([which, item]), torch.stack([item, which])], dim=1)
        kept = ~removed.repeat(2)
        self._kept, self._removed, self._all = (
            self._matrix(entries[:, some]) for some in (kept, ~kept, torch.ones_like(kept))
        )

    def _matrix(self, entries: Tensor) -> Tensor:
        return csr_matrix(entries.to(self._like.device), self._like.new_ones(self._size))

    def propagate(self, x: Tensor, *, after: bool) -> Tensor:
        """Return the normalised adjacency among the nodes times ``x [m, d]``."""
        scale = self._scale[after]
        return scale * ((self._kept if after else self._all) @ (scale * x))

    def encode(self, x: Tensor, weights: Sequence[float], *, after: bool) -> Tensor:
        r"""Return :math:`\sum_k \alpha_k \hat A^k x` among the nodes."""
        out = weights[0] * x
        for weight in weights[1:]:
            x = self.propagate(x, after=after)
            out = out + weight * x
        return out

    def changes(self, layers: Sequence[Tensor], first: Tensor) -> list[Tensor]:
        """Return how the nodes' rows of all layers change.

        Args:
            layers: the rows ``[m, d]`` of the nodes in every layer, as they are before.
            first: how those of the first layer change.
        """
        found = [first]
        (root, _), (before, after) = self._root, self._scale
        for below, layer in pairwise(layers):
            old = before * below
            new = after * (below + found[-1])
            moved = root * layer + self._kept @ (new - old) - self._removed @ old
            found.append(after * moved - layer)
        return found

    def carried(self, layer: Tensor, change: Tensor) -> Tensor:
        """Return what a change of a layer's rows ``[m, d]`` passes on, whose norm no propagation makes larger."""
        scale = self._scale
        return self._root[1] * (scale[1] * (layer + change) - scale[0] * layer)


def locate(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Find ``values [n]`` in the ascending ``among [m]``: the place of each, and whether it is there at all.

    Example:
        >>> locate(torch.tensor([7, 4]), torch.tensor([3, 7]))
        (tensor([1, 1]), tensor([ True, False]))
    """
    if not len(among):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    place = torch.searchsorted(among, values).clamp(max=len(among) - 1)
    return place, among[place] == values


def _inverse(root: Tensor) -> Tensor:
    inverse = root.reciprocal()
    inverse[inverse.isinf()] = 0.0
    return inverse
