r"""The examples in which a few nodes take part, a sample of them where they are many.

A comparison is what a loss is a sum of: one interaction with its label, or one positive with one of its negatives. Of
those in which a node takes part at most a budget is taken, and each counts for as many as it stands for: what is found
from the list of node :math:`v` is kept with the chance :math:`\pi_v = \min(1, m / \ell_v)`, and kept only if no other
of its nodes has a larger one, so that a sum over the sample, weighted with :math:`1 / \pi_v`, has the sum over all
comparisons as its expectation, and equals it where no list is longer than the budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ifru.draws import FrozenDraws
from lightning_ifru.local_graph import locate
from lightning_ifru.neighbours import Neighbours, some_places


class Comparisons:
    """The comparisons of some nodes that stay, each with its weight.

    Args:
        near: the training interactions.
        draws: the negatives of every row; ``None``: rows have labels.
        nodes: the nodes ``[m]``, ascending.
        gone: the training rows that go, ascending.
        most: comparisons to take for each node.
        generator: of the sample.

    Attributes:
        row: the training row of each, ``[n]``.
        slot: its number among all comparisons, ``[n]``.
        weight: how many it stands for, float64 ``[n]``.
        capped: how many nodes take part in more than ``most``.
    """

    def __init__(
        self,
        near: Neighbours,
        draws: FrozenDraws | None,
        nodes: Tensor,
        gone: Tensor,
        most: int,
        generator: torch.Generator,
    ) -> None:
        self._near, self._draws, self._nodes = near, draws, nodes
        each = 1 if draws is None else draws.per_row
        of_rows = near.lengths(nodes) * each
        lengths = of_rows
        if draws is not None:
            items = (nodes - near.num_users).clamp(min=0)
            lengths = of_rows + draws.lengths(items) * (nodes >= near.num_users)
        self._share = (most / lengths.clamp(min=1).double()).clamp(max=1.0)
        self.capped = int((lengths > most).sum())
        which, place = some_places(lengths, most, generator)
        own = place < of_rows[which]
        listed = near.at(nodes[which[own]], place[own] // each)
        found = [(listed * each + place[own] % each, which[own], (nodes[which[own]] >= near.num_users).long())]
        if draws is not None:
            drawer, at = draws.slots(nodes[which[~own]] - near.num_users, (place - of_rows[which])[~own])
            found.append((drawer, which[~own][at], torch.full_like(at, 2)))
        slot, which, role = (torch.cat(part) for part in zip(*found, strict=True))
        row = slot // each
        stays = near.trained(row) & ~locate(row, gone)[1]
        slot, which, role, row = (part[stays] for part in (slot, which, role, row))
        shares = torch.stack([self._share_of(end) for end in self._ends(row, slot)])
        largest = shares.max(0)
        # Ties go to the first of the roles, whichever maximum the device has found.
        owner = (shares == largest.values).int().argmax(0)
        kept = owner == role
        self.slot, self.row, self.weight = slot[kept], row[kept], largest.values[kept].reciprocal()

    def _ends(self, row: Tensor, slot: Tensor) -> tuple[Tensor, ...]:
        ends = self._near.ends(row)
        return ends if self._draws is None else (*ends, self._draws.drawn(slot) + self._near.num_users)

    def _share_of(self, node: Tensor) -> Tensor:
        place, inside = locate(node, self._nodes)
        return self._share[place] * inside
