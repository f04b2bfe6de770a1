"""The training rows of a few nodes and what they lead to, read from an index of rows and never from all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ifru.interactions import InteractionTable
from lightning_ifru.splits import SPLITS

_TRAIN = SPLITS.index("train")


class Neighbours:
    """The training interactions of a table as a graph of nodes, users first; nothing of the table's size is made.

    Args:
        table: the interactions; what is forgotten in it is gone here, too.

    Example:
        >>> import pandas as pd
        >>> from lightning_ifru.splits import RandomSplit
        >>> frame = pd.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"]})
        >>> near = Neighbours(InteractionTable(frame, split=RandomSplit(0.0, 0.0)))
        >>> nodes = torch.tensor([0, 2])  # user 0 and item 0
        >>> rows, which = near.rows(nodes)
        >>> rows, which, near.ends(rows)
        (tensor([0, 1, 0, 2]), tensor([0, 0, 1, 1]), (tensor([0, 0, 0, 1]), tensor([2, 3, 2, 2])))
    """

    def __init__(self, table: InteractionTable) -> None:
        self.table = table
        self.num_users, self.num_items = len(table.users), len(table.items)

    @property
    def num_nodes(self) -> int:
        """Users and items together."""
        return self.num_users + self.num_items

    def lengths(self, nodes: Tensor) -> Tensor:
        """Return how many rows, of whatever split, are listed for each of ``nodes [m]``."""
        user, item = self.table.by_user.counts, self.table.by_item.counts
        return torch.where(nodes < self.num_users, *self._of_both(nodes, user, item))

    def degrees(self, nodes: Tensor) -> Tensor:
        """Return the numbers of training rows of ``nodes [m]``."""
        return torch.where(nodes < self.num_users, *self._of_both(nodes, *self.table.train_counts))

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return all training rows of ``nodes [m]``, and for each whose it is: an index into ``nodes``."""
        which, place = every_place(self.lengths(nodes))
        rows = self.at(nodes[which], place)
        trained = self.trained(rows)
        return rows[trained], which[trained]

    def at(self, nodes: Tensor, place: Tensor) -> Tensor:
        """Return the row at ``place [k]`` of what is listed for each of ``nodes [k]``, of whatever split."""
        rows, items = torch.empty_like(place), nodes >= self.num_users
        rows[items] = self.table.by_item.at(nodes[items] - self.num_users, place[items])
        rows[~items] = self.table.by_user.at(nodes[~items], place[~items])
        return rows

    def trained(self, rows: Tensor) -> Tensor:
        """Return which of ``rows [k]`` are of training, a bool mask."""
        return self.table.split[rows] == _TRAIN

    def ends(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nodes of the users and of the items of ``rows [k]``."""
        return self.table.user[rows], self.table.item[rows] + self.num_users

    def edges(self, rows: Tensor) -> Tensor:
        """Return which of the training ``rows [k]`` are edges of the graph, a bool mask."""
        return (self.table.label[rows] > 0) | self.table.all_edges

    def _of_both(self, nodes: Tensor, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        last = max(0, len(user) - 1)
        return user[nodes.clamp(max=last)], item[(nodes - self.num_users).clamp(min=0)]


def every_place(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return every place of lists of these lengths ``[m]``: whose list it is in, and where.

    Example:
        >>> every_place(torch.tensor([2, 0, 1]))
        (tensor([0, 0, 2]), tensor([0, 1, 0]))
    """
    which = torch.arange(len(lengths)).repeat_interleave(lengths)
    return which, torch.arange(len(which)) - (lengths.cumsum(0) - lengths)[which]


def some_places(lengths: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""Return the same, of a list longer than ``most`` as many of its places, each with the same chance.

    The sample is systematic: :math:`\lfloor (t + U)\, \ell / m \rfloor` for :math:`t = 0, \dots, m - 1` and one uniform
    :math:`U` for each list of length :math:`\ell`, which takes no loop over lists and spreads over all of them.

    Example:
        >>> which, place = some_places(torch.tensor([2, 1000]), 3, torch.Generator().manual_seed(0))
        >>> which, (place[2:] // 333).tolist()
        (tensor([0, 0, 1, 1, 1]), [0, 1, 2])
    """
    taken = lengths.clamp(max=most)
    which, place = every_place(taken)
    start = torch.rand(len(lengths), generator=generator, dtype=torch.float64)
    stretched = ((place + start[which]) * (lengths / taken.clamp(min=1))[which]).long()
    return which, torch.where(lengths[which] > most, torch.minimum(stretched, lengths[which] - 1), place)
