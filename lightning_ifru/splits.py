"""Dividing interactions into train, validation and test, so that forgetting some moves no other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_ifru.errors import DataError

SPLITS = ("train", "val", "test")

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RandomSplit:
    """The rule of a random split: fractions of all interactions for validation and test, and a seed.

    An interaction's place is decided by a hash of the seed and its two ids against two cut-off values. So it
    does not depend on which other interactions there are.

    Raises:
        DataError: If a fraction is outside [0, 1) or together they leave nothing for training.

    Example:
        >>> hashes = pair_hashes(np.arange(10, dtype=np.uint64), np.arange(10, dtype=np.uint64), seed=0)
        >>> cuts = RandomSplit(val_fraction=0.2, test_fraction=0.3).cuts(hashes)
        >>> torch.bincount(assign(hashes, cuts)).tolist()
        [5, 2, 3]
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        val, test = self.val_fraction, self.test_fraction
        if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
            raise DataError(
                f"val_fraction={val} and test_fraction={test} leave nothing to train on or are no fractions; "
                "choose two numbers from 0 on with a sum below 1."
            )

    def cuts(self, hashes: Hashes) -> tuple[int, int]:
        """Return the cut-offs: test below the first, validation from there to below the second."""
        test = round(self.test_fraction * len(hashes))
        val = round(self.val_fraction * len(hashes))
        ordered = np.sort(hashes)
        return _cut(ordered, test), _cut(ordered, test + val)


def pair_hashes(user: Hashes, item: Hashes, seed: int) -> Hashes:
    """Return a 64-bit hash of every pair of hashes ``[n]``, another for every seed."""
    return mix(mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + user) + item)


def assign(hashes: Hashes, cuts: tuple[int, int]) -> Tensor:
    """Return the split of every hash as its number in :data:`SPLITS` (int8)."""
    test, val = hashes < np.uint64(cuts[0]), hashes < np.uint64(cuts[1])
    return torch.from_numpy(np.where(test, 2, np.where(val, 1, 0)).astype(np.int8))


def mix(x: Hashes) -> Hashes:
    """Scramble 64-bit numbers one to one (the step of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _cut(ordered: Hashes, count: int) -> int:
    """A value that ``count`` of the ascending hashes are below: halfway, so that it is the hash of no row."""
    if count == 0:
        return 0
    below = int(ordered[count - 1])
    above = int(ordered[count]) if count < len(ordered) else 2**64 - 1
    return below + (above - below + 1) // 2
