"""RecEraser: shards of interactions that are alike, and attention over what their models know.

Source: Chen et al., *Recommendation Unlearning*, WWW 2022, arXiv 2201.06820.
"""

from __future__ import annotations

import math

import torch
from recipes import Scorer, Trained, fit
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import parametrize

from lightning_ifru import InteractionDataModule
from methods.partial import PartialRetraining

#: Interactions a shard may hold, as a multiple of its share, and rounds at most: as in the authors' code.
_SLACK, _ROUNDS = 1.2, 50


def receraser() -> PartialRetraining:
    """Return RecEraser, its partition being the interaction-based one."""
    return PartialRetraining("receraser", balanced_partition, attention)


def balanced_partition(original: Trained, shards: int) -> Tensor:
    r"""Divide the training interactions by a k-means of bounded clusters in the original's representations.

    An interaction's distance to an anchor :math:`(\bar p, \bar q)` is
    :math:`\|p_u - \bar p\|^2 \cdot \|q_i - \bar q\|^2`, as in the paper. The original has seen what will be forgotten,
    and so has the partition.
    """
    data, h = original.data, original.scorer.h
    assert h is not None
    rows = data.table.rows("train").nonzero().flatten()
    user, item = data.train.user, data.train.item + data.num_users
    first = torch.randperm(len(rows), generator=torch.Generator().manual_seed(original.seed))[:shards]
    anchors = [h[user[first]], h[item[first]]]
    shard = torch.full((len(rows),), -1)
    for _ in range(_ROUNDS):
        to_user, to_item = (torch.cdist(h, anchor).square() for anchor in anchors)
        before, shard = shard, nearest_with_room(to_user[user] * to_item[item], math.ceil(_SLACK * len(rows) / shards))
        if torch.equal(before, shard):
            break
        size = torch.bincount(shard, minlength=shards).unsqueeze(1)
        means = [torch.zeros_like(anchors[0]).index_add_(0, shard, h[node]) / size for node in (user, item)]
        anchors = [torch.where(size > 0, mean, anchor) for mean, anchor in zip(means, anchors, strict=True)]
    found = torch.full((len(data.table),), -1)
    found[rows] = shard
    return found


def nearest_with_room(distance: Tensor, room: int) -> Tensor:
    """Assign points to anchors, the closest pairs first, an anchor taking ``room`` points at most.

    Args:
        distance: of points and anchors, ``[n, k]``.
        room: at least ``n / k``.

    Returns:
        The anchor of every point, ``[n]``.

    Example:
        >>> nearest_with_room(torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 9.0]]), room=2)
        tensor([0, 0, 1])
    """
    count, anchors = distance.shape
    found, free = torch.full((count,), -1), torch.full((anchors,), room)
    while len(left := (found < 0).nonzero().flatten()):
        # As long as no anchor is full, everybody goes to the nearest.
        near, choice = distance[left].masked_fill(free == 0, math.inf).min(dim=1)
        order = near.argsort(stable=True)
        taken = one_hot(choice[order], anchors).cumsum(0)
        full = ((taken == free) & (free > 0)).any(dim=1).nonzero().flatten()
        order = order[: int(full[0]) + 1] if len(full) else order
        found[left[order]] = choice[order]
        free -= torch.bincount(choice[order], minlength=anchors)
    return found


class Attention(nn.Module):
    r"""The embedding table as a mixture of the shards' tables, which stay as they are.

    .. math::  e_v = \sum_k \alpha_v^k\, (W^k e_v^k + b^k), \qquad
               \alpha_v = \operatorname{softmax}_k\; c^\top \operatorname{relu}(A\, (W^k e_v^k + b^k) + a)

    with :math:`A, a, c` of their own for users and for items.

    Args:
        tables: ``[shards, num_nodes, d]``.
        num_users: the offset of items.
    """

    def __init__(self, tables: Tensor, num_users: int) -> None:
        super().__init__()
        shards, _, size = tables.shape
        self.register_buffer("tables", tables)
        self._num_users = num_users
        self.transfer = nn.Parameter(torch.stack([nn.init.xavier_uniform_(torch.empty(size, size))] * shards))
        self.offset = nn.Parameter(torch.zeros(shards, 1, size))
        hidden = max(1, size // 2)
        self.weights = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False)) for _ in range(2)
        )

    def forward(self, replaced: Tensor) -> Tensor:
        """Return the table ``[num_nodes, d]`` that takes the place of the ``replaced`` one."""
        moved = self.tables @ self.transfer + self.offset
        parts = moved[:, : self._num_users], moved[:, self._num_users :]
        mixed = [(w(part).softmax(dim=0) * part).sum(0) for w, part in zip(self.weights, parts, strict=True)]
        return torch.cat(mixed)


def attention(original: Trained, data: InteractionDataModule, scorers: list[Scorer]) -> Scorer:
    """Train the attention by the original's recipe on all the data, and return the scores on their graph."""
    tables = torch.stack([table for scorer in scorers for table in (scorer.parameters or {}).values()])
    module = original.recipe.module(data, original.seed)
    owner = next(part for part in module.modules() if isinstance(part, nn.Embedding))
    owner.weight.requires_grad_(False)
    parametrize.register_parametrization(owner, "weight", Attention(tables, data.num_users))
    fit(module, data, original.recipe.epochs)
    # Its rows are of another space than a retrained model's, so that their distance says nothing.
    return Scorer(Scorer.of(module, data).h, data.num_users, None)
