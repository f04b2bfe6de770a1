"""Data whose size can be chosen, and requests of a chosen size to forget some of them."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from protocol import count
from recipes import Recipe

from lightning_ifru import InteractionDataModule

Positions = npt.NDArray[np.int64]

#: Interactions go with ``(rank + _SHIFT) ** -exponent``: near MovieLens-20M's most active user and most rated film.
_USERS, _ITEMS, _SHIFT = 0.5, 0.75, 10.0


@dataclass(frozen=True)
class Dataset:
    """Interactions from files or generated ones; a few words that a process can be told.

    Attributes:
        path: a CSV file of interactions, possibly compressed.
        test: another one of held-out interactions; without it nothing is held out.
        user, item: the columns of ids.
        shape: instead of a path the numbers of users, items and interactions to generate.
        seed: of the generator, and of what is drawn to be forgotten.
    """

    path: Path | None = None
    test: Path | None = None
    user: str = "user"
    item: str = "item"
    shape: tuple[int, int, int] | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for tables."""
        if self.path is not None:
            return self.path.name.partition(".")[0]
        assert self.shape is not None
        return f"generated {' × '.join(f'{size:,}' for size in self.shape)}"

    def columns(self) -> dict[str, Any]:
        """Return columns ``user`` and ``item``, and ``split`` where there is a test."""
        if self.path is None:
            assert self.shape is not None
            user, item = generate(*self.shape, seed=self.seed)
            return {"user": user, "item": item}
        wanted = [self.user, self.item]
        frames = [pd.read_csv(self.path, usecols=wanted)[wanted]]
        if self.test is not None:
            frames = [frames[0].assign(split="train"), pd.read_csv(self.test, usecols=wanted)[wanted]]
            frames[1] = frames[1].assign(split="test")
        frame = pd.concat(frames).rename(columns={self.user: "user", self.item: "item"})
        return {name: frame[name].to_numpy() for name in frame}

    def read(self, batch_size: int) -> InteractionDataModule:
        """Return the data, read but for the graph."""
        held_out: dict[str, Any] = {"split": "given"} if self.test else {"val_fraction": 0.0, "test_fraction": 0.0}
        data = InteractionDataModule(self.columns(), batch_size=batch_size, **held_out)
        _ = data.table
        return data

    def scaled(self, factor: float) -> Dataset:
        """Return generated data with so many times the users, items and interactions: of the same mean degree."""
        assert self.shape is not None
        users, items, interactions = (round(factor * size) for size in self.shape)
        return Dataset(shape=(users, items, interactions), seed=self.seed)

    def described(self) -> dict[str, Any]:
        """Return what a row says about where the data are from, and what a trained model depends on."""
        files = [path for path in (self.path, self.test) if path is not None]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16] if files else None
        return {"name": self.name, "generated": self.shape, "seed": self.seed, "digest": digest}


def generate(users: int, items: int, interactions: int, seed: int = 0) -> tuple[Positions, Positions]:
    """Return the users and items of different pairs, sorted by user, with hubs as popularity has them.

    Everybody has one interaction; the others fall on a user and an item independently, each with a probability that
    goes with a power of its rank, until there are enough different ones.

    Raises:
        ValueError: If so many do not fit, or some users or items would have none.

    Example:
        >>> user, item = generate(3, 2, 3, seed=1)
        >>> user.tolist(), sorted(set(item.tolist()))
        ([0, 1, 2], [0, 1])
    """
    if not 0 < max(users, items) <= interactions <= users * items / 2:
        raise ValueError(
            f"{interactions} interactions of {users} users and {items} items cannot be generated; ask for at least one "
            "of each, and for at most half of all pairs."
        )
    rng = np.random.default_rng(seed)
    scales = [_cumulated(users, _USERS, rng), _cumulated(items, _ITEMS, rng)]
    # One interaction each: both sides once in a random order, the shorter one again and again.
    first = [np.resize(rng.permutation(size), max(users, items)) for size in (users, items)]
    codes = np.unique(first[0] * items + first[1])
    kept = codes
    while len(codes) < interactions:
        # A tenth more than are missing, as some are there already.
        wanted = (interactions - len(codes)) * 11 // 10 + 1
        user, item = (np.searchsorted(scale, rng.random(wanted), side="right") for scale in scales)
        codes = np.union1d(codes, user * items + item)
    spare = len(codes) - interactions
    if spare:
        rest = np.setdiff1d(codes, kept, assume_unique=True)
        codes = np.setdiff1d(codes, rng.choice(rest, spare, replace=False), assume_unique=True)
    return codes // items, codes % items


def _cumulated(size: int, exponent: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The cumulated probabilities of ranks, which are dealt out at random."""
    weights = rng.permutation((np.arange(size) + _SHIFT) ** -exponent).cumsum()
    return weights / weights[-1]


def ask(data: InteractionDataModule, size: str, seed: int, path: Path) -> int:
    """Write a request file and return how many training interactions it names.

    Args:
        data: from which nothing is forgotten that the request could name.
        size: ``"100 users"``: that many at random; ``"1%"``: that many of the training interactions at random.
        seed: of the draw.
        path: of the CSV file.

    Raises:
        ValueError: If the size is none of these.
    """
    found = re.fullmatch(r"(\d+) users?|([\d.]+)%", size)
    if found is None:
        raise ValueError(f"the size {size!r} of a request is not known; write '100 users' or '1%'.")
    train, rng = data.train, np.random.default_rng([seed, 1])
    user, item = train.user.numpy(), train.item.numpy()
    if found[1]:
        chosen = rng.permutation(np.unique(user))[: int(found[1])]
        lines, named = [["user"], *([data.user_ids[u]] for u in chosen)], int(np.isin(user, chosen).sum())
    else:
        rows = rng.permutation(len(train))[: count(float(found[2]) / 100, len(train))]
        pairs = zip(data.user_ids[user[rows]], data.item_ids[item[rows]], strict=True)
        lines, named = [["user", "item"], *map(list, pairs)], len(rows)
    _write(path, lines)
    return named


def ask_typical(data: InteractionDataModule, number: int, seed: int, folder: Path) -> list[tuple[Path, int]]:
    """Write a request for each of some users, at evenly spaced quantiles of the number of interactions.

    Of data of different sizes these are comparable requests. Who has a number that several have is drawn by ``seed``.

    Returns:
        The files, and how many training interactions each user has.
    """
    degrees = np.bincount(data.train.user.numpy(), minlength=data.num_users)
    present = np.random.default_rng([seed, 2]).permutation(np.flatnonzero(degrees))
    present = present[np.argsort(degrees[present], kind="stable")]
    places = ((np.arange(number) + 0.5) / number * len(present)).astype(int)
    requests = []
    # In a random order, so that what comes later in a process is not what is larger.
    for user in np.random.default_rng([seed, 3]).permutation(present[places]):
        path = folder / f"user-{len(requests)}.csv"
        _write(path, [["user"], [data.user_ids[user]]])
        requests.append((path, int(degrees[user])))
    return requests


def _write(path: Path, lines: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


def shape_of(data: InteractionDataModule) -> dict[str, Any]:
    """Return how large data are; no id."""
    n = len(data.train)
    return {"users": data.num_users, "items": data.num_items, "interactions": n, "test": len(data.test)}


def batches(data: InteractionDataModule, recipe: Recipe) -> int:
    """Return the number of batches of an epoch."""
    return -(-len(data.train) // recipe.batch_size)
