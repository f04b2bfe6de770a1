r"""Decoding by dot products, :math:`s_{ui} = h_u^\top h_i`, as sparse and dense matrix products.

The scores of all pairs at once are one product of representations sampled at the pairs, and their adjoint is a sparse
matrix times representations: on a processor several times as fast as gathering and scattering the rows of every pair,
most of whose time goes into moving memory. The pattern of the pairs is built once and serves every derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn.functional import pad

from lightning_ifru.decoding import Bend, Decoding, Gathered
from lightning_ifru.derivatives import Derivative
from lightning_ifru.examples import Examples, ranges
from lightning_ifru.graph import csr_tensor, row_pointers
from lightning_ifru.losses import Loss
from lightning_ifru.parameters import Parameters

#: Pairs of a sparse block: large enough that a sparse product's overhead vanishes, small enough for its temporaries.
SPARSE = 1 << 22
#: Scores of a dense block, which are to stay in a processor's cache ...
_DENSE = 1 << 20
#: ... or to keep an accelerator busy.
_DENSE_ACCELERATOR = 1 << 24


class DotProducts(Decoding):
    """Examples with labels, or with negatives that were drawn.

    Args:
        loss: the loss per example.
        examples: the examples.
        num_users: the offset of items among nodes.
        num_items: the number of items.
    """

    def __init__(self, loss: Loss, examples: Examples, num_users: int, num_items: int) -> None:
        self._loss = loss
        if bool((examples.user.diff() < 0).any()):
            examples = examples[examples.user.argsort(stable=True)]
        self._blocks = [
            _Block(examples[start:stop], num_users, num_items)
            for start, stop in ranges(len(examples), SPARSE // examples.columns)
        ]

    def value_and_gradient(self, h: Tensor, decoder: Parameters) -> tuple[Tensor, Tensor, Parameters]:
        """Return the sum and its gradients; see :meth:`Decoding.value_and_gradient`."""
        value = torch.zeros((), dtype=torch.float64, device=h.device)
        gradient = torch.zeros_like(h)
        for block in self._blocks:
            slope, risk = grad_and_value(lambda s, b=block: b.risk(self._loss, s))(block.scores(h, h))
            block.add_adjoint(gradient, slope, h)
            value += risk
        return value, gradient, {}

    def bend(self, h: Tensor, decoder: Parameters, *, exact: bool) -> Bend:
        """Return products with the curvature; see :meth:`Decoding.bend`.

        The second derivatives of the loss at the scores are worked out once, and kept with the products.
        """
        parts = []
        for block in self._blocks:
            scores = block.scores(h, h)
            slope = grad(lambda s, b=block: b.risk(self._loss, s))(scores) if exact else None
            parts.append((block, slope, _second_derivative(block, self._loss, scores)))

        def product(h_tangent: Tensor, decoder_tangent: Parameters) -> tuple[Tensor, Parameters]:
            out = torch.zeros_like(h)
            for block, slope, second in parts:
                tangent = block.scores(h_tangent, h).add_(block.scores(h, h_tangent))
                block.add_adjoint(out, second(tangent), h)
                if slope is not None:  # what the decoder's own curvature adds
                    block.add_adjoint(out, slope, h_tangent)
            return out, {}

        return product


class AllCandidates(Decoding):
    """Examples that have all candidates as negatives, whose scores are a matrix product.

    Args:
        loss: the loss per example.
        examples: the examples.
        num_users: the offset of items among nodes.
        chunk_size: pairs of a chunk for curvature, whose rows are gathered: no solve asks for it.
    """

    def __init__(self, loss: Loss, examples: Examples, num_users: int, chunk_size: int) -> None:
        assert examples.candidates is not None
        self._loss, self._examples, self._num_users = loss, examples, num_users
        self._candidates = examples.candidates + num_users
        # A listwise loss takes the candidates in groups: every example is as many as there are of them.
        self._groups = examples.candidates.numel() // examples.group if examples.group > 1 else 1
        self._gathered = Gathered(lambda _, s, t: (s * t).sum(1), loss, examples, num_users, chunk_size)

    def value_and_gradient(self, h: Tensor, decoder: Parameters) -> tuple[Tensor, Tensor, Parameters]:
        """Return the sum and its gradients; see :meth:`Decoding.value_and_gradient`."""
        value = torch.zeros((), dtype=torch.float64, device=h.device)
        gradient = torch.zeros_like(h)
        items = h.index_select(0, self._candidates)
        of_items = torch.zeros_like(items)
        size = _DENSE if h.device.type == "cpu" else _DENSE_ACCELERATOR
        for start, stop in ranges(len(self._examples), size // len(items)):
            some = self._examples[start:stop]
            ends = some.user, some.item + self._num_users
            user, item = (h.index_select(0, end) for end in ends)
            (own, negative), risk = grad_and_value(lambda *s, e=some: self._risk(e, *s), argnums=(0, 1))(
                (user * item).sum(1), user @ items.T
            )
            gradient.index_add_(0, ends[0], torch.addmm(own.unsqueeze(1) * item, negative, items))
            gradient.index_add_(0, ends[1], own.unsqueeze(1) * user)
            of_items.addmm_(negative.T, user)
            value += risk
        return value, gradient.index_add_(0, self._candidates, of_items), {}

    def bend(self, h: Tensor, decoder: Parameters, *, exact: bool) -> Bend:
        """Return products with the curvature; see :meth:`Decoding.bend`."""
        return self._gathered.bend(h, decoder, exact=exact)

    def _risk(self, examples: Examples, own: Tensor, negative: Tensor) -> Tensor:
        own, weight = own.repeat_interleave(self._groups), examples.weight / self._groups
        if isinstance(weight, Tensor):
            weight = weight.repeat_interleave(self._groups)
        return (weight * self._loss.against(own, negative.reshape(len(own), -1))).sum()


class _Block:
    """Examples sorted by user, whose pairs are the entries of a sparse matrix of users and items.

    Pairs are in the order of the examples, so that the matrix's values are the scores ``[B, C]`` as they lie in memory.
    The transposed pattern has an order of its own, in which values are gathered.
    """

    def __init__(self, examples: Examples, num_users: int, num_items: int) -> None:
        self.weight, self.target = examples.weight, examples.target
        user, columns = examples.user, examples.columns
        self._shape = (len(user), columns)
        self._first, last = (int(user[k]) for k in (0, -1))
        self._items = slice(num_users, num_users + num_items)
        self._users = slice(self._first, last + 1)
        nodes = examples.item.unsqueeze(1)
        if examples.negative is not None:
            nodes = torch.cat([nodes, examples.negative], dim=1)
        # Half the bytes, and a sort in half the time: no block has 2^31 pairs.
        nodes = nodes.reshape(-1).int()
        row = (user - self._first).int()
        self._pattern = row_pointers(row, last + 1 - self._first).int() * columns, nodes
        self._order = nodes.argsort().int()
        self._transposed = row_pointers(nodes, num_items).int(), row.repeat_interleave(columns)[self._order]
        self._size = (last + 1 - self._first, num_items)
        # torch samples no more pairs than a matrix has entries, and the same pair may occur many times.
        self._padding = max(0, -(-len(nodes) // self._size[0]) - num_items)

    def scores(self, left: Tensor, right: Tensor) -> Tensor:
        r"""Return :math:`l_u^\top r_i` of all pairs ``[B, C]`` for rows ``left`` and ``right`` ``[N, d]``."""
        items = right[self._items]
        if self._padding:
            items = pad(items, (0, 0, 0, self._padding))
        pattern = csr_tensor(*self._pattern, left.new_zeros(self._shape).view(-1), (self._size[0], len(items)))
        sampled = torch.sparse.sampled_addmm(pattern, left[self._users], items.T, beta=0.0)
        return sampled.values().view(self._shape)

    def add_adjoint(self, out: Tensor, slope: Tensor, h: Tensor) -> None:
        r"""Add to ``out [N, d]`` the slopes ``[B, C]`` of all pairs times the derivatives of their scores.

        .. math:: \sum_{ui} w_{ui}\, (e_u h_i^\top + e_i h_u^\top)
        """
        values = slope.reshape(-1)
        # In place: a product of its own would be written, and then read again to be added.
        out[self._users].addmm_(csr_tensor(*self._pattern, values, self._size), h[self._items])
        transposed = csr_tensor(*self._transposed, values.index_select(0, self._order), self._size[::-1])
        out[self._items].addmm_(transposed, h[self._users])

    def risk(self, loss: Loss, scores: Tensor) -> Tensor:
        """Return the block's share of the risk, a scalar, from its scores."""
        return (self.weight * loss(scores, self.target)).sum()


def _second_derivative(block: _Block, loss: Loss, scores: Tensor) -> Callable[[Tensor], Tensor]:
    """Return products ``[B, C] -> [B, C]`` with the second derivative of the block's risk at its scores."""
    if loss.kind == "pointwise":
        # One score for each example: the second derivative is a diagonal.
        slope = grad(lambda s: block.risk(loss, s))
        _, second = Derivative()(slope, (scores,), (torch.ones_like(scores),))
        return lambda tangent: tangent * second
    if loss.kind == "pairwise":
        return _pairwise(block, loss, scores)
    derivative = Derivative()
    slope = grad(lambda s: block.risk(loss, s))

    def product(tangent: Tensor) -> Tensor:
        _, bent = derivative(slope, (scores,), (tangent,))
        return bent

    return product


def _pairwise(block: _Block, loss: Loss, scores: Tensor) -> Callable[[Tensor], Tensor]:
    """The same where a loss takes one negative at a time: two by two derivatives for each."""
    negatives = scores.shape[1] - 1
    pairs = torch.stack([scores[:, :1].expand(-1, negatives), scores[:, 1:]], dim=2).view(-1, 2)
    weight = block.weight / negatives
    if isinstance(weight, Tensor):
        weight = weight.repeat_interleave(negatives)
    slope = grad(lambda s: (weight * loss(s, None)).sum())
    derivative = Derivative()

    def column(which: int) -> tuple[Tensor, Tensor]:
        tangent = torch.zeros_like(pairs)
        tangent[:, which] = 1.0
        _, bent = derivative(slope, (pairs,), (tangent,))
        own, other = bent.view(-1, negatives, 2).unbind(2)
        return own.contiguous(), other.contiguous()

    (own, mixed), (_, other) = column(0), column(1)

    def product(tangent: Tensor) -> Tensor:
        positive, negative = tangent[:, :1], tangent[:, 1:]
        first = (own * positive).addcmul_(mixed, negative).sum(1, keepdim=True)
        return torch.cat([first, (mixed * positive).addcmul_(other, negative)], dim=1)

    return product
