"""Where a pair belongs, train, validation or test, told by its hash alone: so that forgetting some moves no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_ifru.errors import DataError

Hashes = npt.NDArray[np.uint64]


class Placement(Protocol):
    """A function of a pair's hash to 0 (train), 1 (validation) or 2 (test), which a checkpoint can hold."""

    @property
    def seed(self) -> int:
        """The seed of the hashes it is asked about; see :func:`pair_hashes`."""
        ...

    def assign(self, hashes: Hashes) -> Tensor:
        """Return the number of the split of every hash ``[n]``, int8 ``[n]``."""
        ...

    def keeping(self, hashes: Hashes) -> Placement:
        """Return the same for these hashes, with no trace of any other."""
        ...

    def without(self, hashes: Hashes) -> Placement:
        """Return the same for all but these hashes, with no trace of them."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what :func:`placement_of` takes."""
        ...


@dataclass(frozen=True)
class ByHash:
    """Hashes below the first of two cut-offs are test, from there to below the second validation, all others train.

    Example:
        >>> ByHash(0, (2, 4)).assign(np.arange(6, dtype=np.uint64)).tolist()
        [2, 2, 1, 1, 0, 0]
    """

    seed: int
    cuts: tuple[int, int]

    def assign(self, hashes: Hashes) -> Tensor:
        """Return the number of the split of every hash ``[n]``, int8 ``[n]``."""
        test, val = (hashes < np.uint64(cut) for cut in self.cuts)
        return torch.from_numpy(np.where(test, 2, np.where(val, 1, 0)).astype(np.int8))

    def keeping(self, hashes: Hashes) -> ByHash:
        """Return the same: two numbers tell of nobody."""
        return self

    def without(self, hashes: Hashes) -> ByHash:
        """Return the same: two numbers tell of nobody."""
        return self

    def state(self) -> dict[str, Any]:
        """Return the seed and the cut-offs."""
        return {"seed": self.seed, "cuts": list(self.cuts)}


@dataclass(frozen=True, eq=False)
class ByList:
    """The hashes of validation and test pairs, listed; every other hash is train.

    For the rules under which a pair's place depends on the other pairs, which may be forgotten since.

    Example:
        >>> place = ByList(val=np.array([3], dtype=np.uint64), test=np.array([1, 5], dtype=np.uint64))
        >>> place.assign(np.arange(6, dtype=np.uint64)).tolist()
        [0, 2, 0, 1, 0, 2]
        >>> place.keeping(np.arange(4, dtype=np.uint64)).test, place.without(np.array([1], dtype=np.uint64)).test
        (array([1], dtype=uint64), array([5], dtype=uint64))
    """

    val: Hashes
    test: Hashes
    seed: ClassVar[int] = 0

    def __post_init__(self) -> None:
        # Sorted, so that they say nothing of any order, and a few hashes are found in them by search.
        for name in ("val", "test"):
            some = getattr(self, name)
            if (some[1:] < some[:-1]).any():
                object.__setattr__(self, name, np.sort(some))

    def assign(self, hashes: Hashes) -> Tensor:
        """Return the number of the split of every hash ``[n]``, int8 ``[n]``."""
        val, test = np.isin(hashes, self.val), np.isin(hashes, self.test)
        return torch.from_numpy(np.where(test, 2, np.where(val, 1, 0)).astype(np.int8))

    def keeping(self, hashes: Hashes) -> ByList:
        """Return the list of those among these hashes."""
        return ByList(self.val[np.isin(self.val, hashes)], self.test[np.isin(self.test, hashes)])

    def without(self, hashes: Hashes) -> ByList:
        """Return the lists without these hashes."""
        return ByList(_without(self.val, hashes), _without(self.test, hashes))

    def state(self) -> dict[str, Any]:
        """Return both lists, sorted."""
        # Not every reader of checkpoints knows unsigned numbers.
        lists = {"val_pairs": self.val, "test_pairs": self.test}
        return {
            "seed": self.seed,
            "cuts": None,
            **{name: torch.from_numpy(some.view(np.int64)) for name, some in lists.items()},
        }


def _without(some: Hashes, hashes: Hashes) -> Hashes:
    """Different sorted hashes without others."""
    places = np.searchsorted(some, hashes)
    there = places < len(some)
    there[there] = some[places[there]] == hashes[there]
    return np.delete(some, places[there])


def placement_of(state: Mapping[str, Any]) -> ByHash | ByList:
    """Return the placement of a state.

    Raises:
        DataError: If the state lists no pairs and has no cut-offs.
    """
    if state["cuts"] is not None:
        return ByHash(int(state["seed"]), (int(state["cuts"][0]), int(state["cuts"][1])))
    absent = sorted({"val_pairs", "test_pairs", "forgotten_trained"} - set(state))
    if absent:
        raise DataError(f"the state of the data lacks {absent[0]!r}; pass one that state() has returned.")
    val, test = (state[name].cpu().numpy().view(np.uint64) for name in ("val_pairs", "test_pairs"))
    return ByList(val, test)


def pair_hashes(user: Hashes, item: Hashes, seed: int) -> Hashes:
    """Return a 64-bit hash of every pair of hashes ``[n]``, another for every seed."""
    return mix(mix(mix(np.array([seed % 2**64], dtype=np.uint64)) + user) + item)


def mix(x: Hashes) -> Hashes:
    """Scramble 64-bit numbers one to one (the step of splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
