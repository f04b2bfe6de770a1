"""The interaction graph: edge index, normalised adjacency, what a removal can affect, importance of nodes.

Nodes are numbered users first; item ``i`` is node ``num_users + i``. An ``edge_index`` is a plain ``[2, 2E]`` tensor
with both directions of every edge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import degree


def bipartite_edge_index(user: Tensor, item: Tensor, num_users: int) -> Tensor:
    """Build the ``[2, 2E]`` edge index of ``E`` user-item pairs, both directions, items offset by ``num_users``.

    Example:
        >>> bipartite_edge_index(torch.tensor([0, 1]), torch.tensor([0, 0]), num_users=2)
        tensor([[0, 1, 2, 2],
                [2, 2, 0, 1]])
    """
    # A graph first built inside a validation loop must still be differentiable through in a later fit.
    with torch.inference_mode(False):
        user, item = user.clone(), item + num_users
        return torch.stack([torch.cat([user, item]), torch.cat([item, user])])


_adjacencies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def normalized_adjacency(edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Return :math:`D^{-1/2} A D^{-1/2}` as a sparse CSR tensor ``[num_nodes, num_nodes]``.

    Isolated nodes have empty rows, as in PyG's ``gcn_norm`` without self-loops. The result is kept as long as this
    very ``edge_index`` tensor lives and vanishes with it, so that no copy of a forgotten edge outlives the graph.

    Example:
        >>> normalized_adjacency(torch.tensor([[0, 1], [1, 0]]), 2).to_dense()
        tensor([[0., 1.],
                [1., 0.]])
    """
    cached: dict[tuple[int, torch.dtype], Tensor] = _adjacencies.setdefault(edge_index, {})
    if (num_nodes, dtype) not in cached:
        with torch.inference_mode(False), torch.no_grad():
            scale = degree(edge_index[0].clone(), num_nodes, dtype).pow_(-0.5)
            scale[scale.isinf()] = 0.0
            cached[num_nodes, dtype] = csr_matrix(edge_index, scale)
    return cached[num_nodes, dtype]


def csr_matrix(entries: Tensor, scale: Tensor) -> Tensor:
    r"""Return :math:`S A S` as a CSR tensor ``[m, m]``, with ``scale [m]`` on the diagonal of :math:`S`.

    Args:
        entries: the places ``[2, n]`` of the ones of :math:`A`; those at the same place add up.
        scale: a factor for every row and for every column.

    Example:
        >>> csr_matrix(torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, 3.0])).to_dense()
        tensor([[0., 6.],
                [0., 0.]])
    """
    size = len(scale)
    key, number = _ascending(entries[0] * size + entries[1]), None
    if bool((key[1:] == key[:-1]).any()):
        key, number = key.unique_consecutive(return_counts=True)
    row = torch.div(key, size, rounding_mode="floor")
    column = key - row * size
    values = scale.index_select(0, row) * scale.index_select(0, column)
    if number is not None:
        values *= number
    return csr_tensor(row_pointers(row, size), column, values, (size, size))


def row_pointers(row: Tensor, size: int) -> Tensor:
    """Return where the entries of each of ``size`` rows begin among entries sorted by ``row``, ``[size + 1]``."""
    return torch.nn.functional.pad(torch.bincount(row, minlength=size).cumsum(0), (1, 0))


def csr_tensor(pointers: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a sparse CSR tensor, whose indices take half the memory where there are fewer than 2^31 entries."""
    if len(columns) < 1 << 31:
        pointers, columns = pointers.int(), columns.int()
    if not torch.sparse.check_sparse_tensor_invariants.is_enabled():
        torch.sparse.check_sparse_tensor_invariants.disable()  # as it is, but torch then does not warn that it is
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointers, columns, values, size, check_invariants=False)


def _ascending(key: Tensor) -> Tensor:
    # The values follow from the places, so that no permutation is needed. On a CPU numpy sorts keys alone, with vector
    # instructions; coalescing a COO tensor, which sorts a permutation with them, took most of a graph's set-up.
    return torch.from_numpy(np.sort(key.numpy())) if key.device.type == "cpu" else key.sort().values


class LinearMap:
    """A constant linear map with its adjoint, differentiable to any order and mode, whatever it is made of.

    Its derivatives are itself, and backwards its adjoint. torch.sparse has no forward-mode derivative, and under the
    wrappers of torch.func sparse matrices cannot be built: the two functions never see these.

    Args:
        forward: the map, a function of one tensor.
        adjoint: the map that its transposed matrix is.
        offset: what is added to the image; the map is then an affine one.

    Example:
        >>> double = LinearMap(lambda x: 2 * x, lambda x: 2 * x)
        >>> torch.func.jvp(double, (torch.ones(1),), (torch.ones(1),))
        (tensor([2.]), tensor([2.]))
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], offset: Tensor | None = None
    ) -> None:
        self.forward, self.adjoint, self.offset = forward, adjoint, offset

    def __call__(self, x: Tensor) -> Tensor:
        """Return the image of ``x``."""
        return _Linear.apply(self, x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(linear: LinearMap, x: Tensor) -> Tensor:
        image = linear.forward(x)
        return image if linear.offset is None else image + linear.offset

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[LinearMap, Tensor], output: Tensor) -> None:
        ctx.linear = inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, _Linear.apply(LinearMap(ctx.linear.adjoint, ctx.linear.forward), gradient)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return _Linear.apply(LinearMap(ctx.linear.forward, ctx.linear.adjoint), tangent)


def propagate(edge_index: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`D^{-1/2} A D^{-1/2}\, x` for node rows ``x [N, d]``, differentiable to any order and mode.

    Equal to PyG's ``LGConv`` on the same ``edge_index [2, 2E]``, which must hold both directions of every edge. The
    sums are in float32 at least, autocast or not, and the result is of the type of ``x``.

    Example:
        >>> propagate(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0], [2.0]]))
        tensor([[2.],
                [1.]])
    """

    def product(x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # there is no sparse product in half precision
        with torch.autocast(x.device.type, enabled=False):
            return (normalized_adjacency(edge_index, x.shape[0], dtype) @ x.to(dtype)).to(x.dtype)

    return LinearMap(product, product)(x)


def layer_sum(edge_index: Tensor, x: Tensor, weights: Sequence[float]) -> Tensor:
    r"""Return :math:`\sum_k w_k\, (D^{-1/2} A D^{-1/2})^k\, x` for node rows ``x [N, d]``, a linear map of any order.

    It equals the weighted sum of repeated :func:`propagate` and holds two layers at a time whatever their number, since
    :math:`w_0 x + \hat A (w_1 x + \hat A (w_2 x + \dots))` adds each layer within its product.

    Example:
        >>> layer_sum(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0], [2.0]]), [1.0, 10.0])
        tensor([[21.],
                [12.]])
    """

    def product(x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(dtype)
            total = weights[-1] * rows
            for weight in reversed(weights[:-1]):
                adjacency = normalized_adjacency(edge_index, x.shape[0], dtype)
                total = torch.addmm(rows, adjacency, total, beta=weight)
            return total.to(x.dtype)

    return LinearMap(product, product)(x)


def affected_nodes(edge_index: Tensor, endpoints: Tensor, num_nodes: int, hops: int) -> Tensor:
    """Mark the nodes within ``hops`` message-passing hops of ``endpoints``: a bool mask ``[num_nodes]``.

    With the old graph and the endpoints of the forgotten edges, no node outside the mask can have changed its
    representation in a ``hops``-layer model. It is ``hops`` and not ``hops - 1``, because losing an edge changes an
    endpoint's degree and with it the normalised weights of all its other edges.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> affected_nodes(path, torch.tensor([0]), num_nodes=3, hops=1)
        tensor([ True,  True, False])
    """
    reached = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
    reached[endpoints] = True
    for _ in range(hops):
        reached[edge_index[1, reached[edge_index[0]]]] = True
    return reached


class Importance(MessagePassing):
    r"""Importance of every node for a forget set: :math:`K` rounds of mean aggregation with the node itself.

    .. math::

        s_0(v) = \#F(v) / \deg(v), \qquad
        s_{k+1}(v) = \frac{1}{\deg(v)} \sum_{u \in N(v) \cup \{v\}} s_k(u)

    Isolated nodes score zero. Source: arXiv 2307.02147, section 3.3.

    Args:
        hops: the number :math:`K` of message-passing rounds.

    Shapes:
        - input: ``edge_index [2, 2E]``, forgotten interactions per node ``counts [N]``
        - output: scores ``[N]``

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> Importance(hops=1)(path, torch.tensor([1.0, 1.0, 0.0]))
        tensor([1.5000, 0.7500, 0.5000])
    """

    def __init__(self, hops: int) -> None:
        super().__init__(aggr="sum")
        self.hops = hops

    def forward(self, edge_index: Tensor, counts: Tensor) -> Tensor:
        """Return the scores ``[N]`` after :attr:`hops` rounds."""
        inverse = degree(edge_index[0], counts.numel(), counts.dtype).reciprocal()
        inverse[inverse.isinf()] = 0.0
        score = counts * inverse
        for _ in range(self.hops):
            received: Tensor = self.propagate(edge_index, x=score.unsqueeze(-1))
            score = inverse * (score + received.squeeze(-1))
        return score

    def message(self, x_j: Tensor) -> Tensor:
        """Pass the neighbour's score on unchanged; the mean is taken by the receiver's degree."""
        return x_j
