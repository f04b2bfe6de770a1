"""What is known of all rows of a table, built once and then kept true at the cost of the rows that go."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_ifru.incidence import Incidence
from lightning_ifru.placement import Hashes


class RowIndex:
    """Whose rows are which, how many of them are of training, and a number for all of them together.

    Attributes:
        by_user, by_item: the rows of every position.
        train_counts: the numbers of training rows of every user and of every item, int64.
        fingerprint: the sum of the rows' hashes modulo 2^64: that of the set, whatever its order.

    Args:
        user, item: positions, int64 ``[n]``; -1 where a row is cleared.
        train: which rows are of training, a bool mask ``[n]``.
        hashes: of the rows that are not cleared, with their labels.
        sizes: the numbers of users and of items.

    Example:
        >>> user, item, hashes = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), np.array([3, 5, 8], dtype=np.uint64)
        >>> index = RowIndex(user, item, torch.tensor([True, True, False]), hashes, (2, 2))
        >>> index.drop(torch.tensor([1]), user[1:2], item[1:2], torch.tensor([True]), hashes[1:2])
        >>> index.by_user.counts, index.train_counts[1], index.fingerprint
        (tensor([1, 1]), tensor([1, 0]), 11)
    """

    @torch.inference_mode(False)  # built in a validation loop, it must still serve a later request
    def __init__(self, user: Tensor, item: Tensor, train: Tensor, hashes: Hashes, sizes: tuple[int, int]) -> None:
        self.by_user, self.by_item = Incidence(user, sizes[0]), Incidence(item, sizes[1])
        self.train_counts = (
            torch.bincount(user[train], minlength=sizes[0]),
            torch.bincount(item[train], minlength=sizes[1]),
        )
        self.fingerprint = _sum(hashes)

    def drop(self, rows: Tensor, user: Tensor, item: Tensor, train: Tensor, hashes: Hashes) -> None:
        """Take out ``rows [k]``, with what was known of each of them."""
        self.by_user.drop(rows, user)
        self.by_item.drop(rows, item)
        for counts, column in zip(self.train_counts, (user, item), strict=True):
            counts -= torch.bincount(column[train], minlength=len(counts))
        self.fingerprint = (self.fingerprint - _sum(hashes)) % 2**64


def _sum(hashes: Hashes) -> int:
    return int(hashes.sum(dtype=np.uint64))
