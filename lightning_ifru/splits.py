"""The rules by which interactions are divided into train, validation and test.

A pair of a user and an item is in one split with all its occurrences, in the place of the latest; fractions are of
pairs. Whatever the rule, forgetting some pairs moves no other: see :mod:`lightning_ifru.placement`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from lightning_ifru.errors import DataError
from lightning_ifru.placement import ByHash, ByList, Hashes, Placement, pair_hashes

SPLITS = ("train", "val", "test")
SplitName = Literal["random", "leave_one_out", "temporal", "given"]

#: Held out for validation, and for testing, unless said otherwise.
FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class Pairs:
    """The ``n`` distinct pairs of a source, in the order of their latest occurrences in it.

    Attributes:
        user: positions of the users, int64 ``[n]``.
        user_hash: hashes of the users' ids, ``[n]``.
        item_hash: hashes of the items' ids, ``[n]``.
        time: times of the latest occurrences ``[n]``, the larger the later, where there are any.
        given: numbers in :data:`SPLITS` ``[n]``, where the source has them.
    """

    user: npt.NDArray[np.int64]
    user_hash: Hashes
    item_hash: Hashes
    time: npt.NDArray[Any] | None = None
    given: npt.NDArray[np.int8] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def hashes(self, seed: int) -> Hashes:
        """Return the pairs' hashes ``[n]``."""
        return pair_hashes(self.user_hash, self.item_hash, seed)


class Split(Protocol):
    """A rule: it sees all pairs once and says where each belongs, by a function of the pair's hash alone."""

    def place(self, pairs: Pairs) -> Placement:
        """Return the places of these pairs.

        Raises:
            DataError: If the pairs lack what the rule goes by.
        """
        ...


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
        >>> np.bincount(ByHash(0, cuts).assign(hashes)).tolist()
        [5, 2, 3]
    """

    val_fraction: float = FRACTION
    test_fraction: float = FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fractions(self.val_fraction, self.test_fraction)

    def cuts(self, hashes: Hashes) -> tuple[int, int]:
        """Return the cut-offs: test below the first, validation from there to below the second."""
        test = round(self.test_fraction * len(hashes))
        val = round(self.val_fraction * len(hashes))
        ordered = np.sort(hashes)
        return _cut(ordered, test), _cut(ordered, test + val)

    def place(self, pairs: Pairs) -> ByHash:
        """Return the seed and the cut-offs that give these pairs the fractions."""
        return ByHash(self.seed, self.cuts(pairs.hashes(self.seed)))


@dataclass(frozen=True)
class LeaveOneOutSplit:
    """Of every user the last pair is test and the one before it validation; all earlier ones are train.

    By time, and by the order of the source where there are no times or equal ones. Users with fewer than three pairs
    keep them all in train. Without ``test`` the last pair is validation.

    Args:
        val: Whether there is validation.
        test: Whether there is test.

    Example:
        >>> user = np.array([0, 0, 1, 0, 1])
        >>> pairs = Pairs(user, user.astype(np.uint64), np.arange(5, dtype=np.uint64), time=np.array([9, 8, 1, 7, 2]))
        >>> LeaveOneOutSplit().place(pairs).assign(pairs.hashes(0)).tolist()
        [2, 1, 0, 0, 0]
    """

    val: bool = True
    test: bool = True

    def place(self, pairs: Pairs) -> ByList:
        """Return the lists of the last pairs."""
        time = np.zeros(len(pairs)) if pairs.time is None else pairs.time
        order = np.lexsort((time, pairs.user))
        count = np.bincount(pairs.user)
        user = pairs.user[order]
        from_the_end = np.cumsum(count)[user] - 1 - np.arange(len(pairs))
        hashes, enough = pairs.hashes(ByList.seed)[order], count[user] >= 3
        test = enough & (from_the_end == 0) & self.test
        val = enough & (from_the_end == int(self.test)) & self.val
        return ByList(np.sort(hashes[val]), np.sort(hashes[test]))


@dataclass(frozen=True)
class TemporalSplit:
    """The latest pairs are test, those before them validation, the earliest train.

    Pairs of the same time stay together: each border is between two times, where the fractions are met most nearly
    (of two such places, the later). The earliest time is always train.

    Raises:
        DataError: If a fraction is outside [0, 1) or together they leave nothing for training.

    Example:
        >>> ids = np.arange(6, dtype=np.uint64)
        >>> pairs = Pairs(np.arange(6), ids, ids, time=np.array([5, 1, 4, 3, 3, 2]))
        >>> TemporalSplit(val_fraction=1 / 3, test_fraction=1 / 3).place(pairs).assign(pairs.hashes(0)).tolist()
        [2, 0, 2, 1, 1, 0]
    """

    val_fraction: float = FRACTION
    test_fraction: float = FRACTION

    def __post_init__(self) -> None:
        _check_fractions(self.val_fraction, self.test_fraction)

    def place(self, pairs: Pairs) -> ByList:
        """Return the lists of the latest pairs.

        Raises:
            DataError: If there are no times.
        """
        if pairs.time is None:
            raise DataError(_NO_TIMES)
        order = np.argsort(pairs.time, kind="stable")
        time, hashes = pairs.time[order], pairs.hashes(ByList.seed)[order]
        borders = np.append(np.flatnonzero(time[1:] != time[:-1]) + 1, len(pairs))[::-1]
        before_test = len(pairs) - round(self.test_fraction * len(pairs))
        before_val = before_test - round(self.val_fraction * len(pairs))
        val, test = (int(borders[np.abs(borders - wanted).argmin()]) for wanted in (before_val, before_test))
        return ByList(np.sort(hashes[val:test]), np.sort(hashes[test:]))


@dataclass(frozen=True)
class GivenSplit:
    """The split that the source gives.

    Example:
        >>> ids = np.arange(3, dtype=np.uint64)
        >>> pairs = Pairs(np.arange(3), ids, ids, given=np.array([2, 0, 1], dtype=np.int8))
        >>> GivenSplit().place(pairs).assign(pairs.hashes(0)).tolist()
        [2, 0, 1]
    """

    def place(self, pairs: Pairs) -> ByList:
        """Return the lists of the pairs given as validation and test.

        Raises:
            DataError: If the source gives none.
        """
        if pairs.given is None:
            raise DataError("split='given' needs a column 'split' with train, val or test in every row; add it.")
        hashes = pairs.hashes(ByList.seed)
        val, test = (np.sort(hashes[pairs.given == SPLITS.index(name)]) for name in ("val", "test"))
        return ByList(val, test)


def split_named(name: str, val_fraction: float, test_fraction: float, seed: int, *, timed: bool) -> Split:
    """Return a rule by its name.

    Args:
        name: ``"random"``, ``"leave_one_out"``, ``"temporal"`` or ``"given"``.
        val_fraction: Fraction for validation; for ``"leave_one_out"`` 0 or the default, for ``"given"`` the default.
        test_fraction: The same for testing.
        seed: Of ``"random"``.
        timed: Whether the interactions have times.

    Raises:
        DataError: If there is no such rule, or it cannot be had with these arguments.

    Example:
        >>> split_named("leave_one_out", 0, 0.1, seed=0, timed=False)
        LeaveOneOutSplit(val=False, test=True)
    """
    fractions = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    if name == "random":
        return RandomSplit(**fractions, seed=seed)
    if name == "temporal":
        if not timed:
            raise DataError(_NO_TIMES)
        return TemporalSplit(**fractions)
    if name not in get_args(SplitName):
        known = ", ".join(map(repr, get_args(SplitName)))
        raise DataError(f"split={name!r} is not known; choose one of {known}.")
    for argument, fraction in fractions.items():
        # A fraction that would be silently ignored is worse than a refusal.
        if name == "leave_one_out" and fraction not in (0, FRACTION):
            raise DataError(
                f"{argument}={fraction} does not apply to split='leave_one_out', which holds out one interaction of "
                "every user; leave it out, or give 0 to hold out none."
            )
        if name == "given" and fraction != FRACTION:
            raise DataError(
                f"{argument}={fraction} does not apply to split='given', which the source decides; leave it out."
            )
    return GivenSplit() if name == "given" else LeaveOneOutSplit(val=val_fraction > 0, test=test_fraction > 0)


_NO_TIMES = "split='temporal' needs the time of every interaction; name the column of times: timestamp=..."


def _check_fractions(val: float, test: float) -> None:
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(
            f"val_fraction={val} and test_fraction={test} leave nothing to train on or are no fractions; "
            "choose two numbers from 0 on with a sum below 1."
        )


def _cut(ordered: Hashes, count: int) -> int:
    """A value that ``count`` of the ascending hashes are below: halfway, so that it is the hash of no row."""
    if count == 0:
        return 0
    below = int(ordered[count - 1])
    above = int(ordered[count]) if count < len(ordered) else 2**64 - 1
    return below + (above - below + 1) // 2
