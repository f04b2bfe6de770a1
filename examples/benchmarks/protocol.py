"""The data of the experiment and what is forgotten of them: the same for every model, seed and method."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from recipes import Recipe, Source

from lightning_ifru import InteractionDataModule, UnlearningError, UnlearningRequest
from lightning_ifru.interactions import Interactions
from lightning_ifru.sources import read_source

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DataSettings:
    """How ratings become interactions.

    Attributes:
        user, item, rating: columns of the file.
        core: users and items with fewer rated pairs are dropped, until there are none.
        positive_above: ratings above are positive.
        val_fraction, test_fraction: held out at random.
        seed: of the split, and of everything that is drawn at random to be forgotten.
    """

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    core: int = 5
    positive_above: float = 3.0
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Deletion:
    """What is forgotten.

    Attributes:
        kind: ``"flipped"``: the last training interactions, whose labels were flipped before training;
            ``"users"``: random users, erased; ``"interactions"``: random training interactions;
            ``"active"``: half of the training interactions of each of the most active users;
            ``"popular"``: the most popular items, erased.
        fraction: of the users that train, for ``"users"``; of the training interactions for all others. The last
            active user gives only as many as are missing; the last popular item is the one that reaches the fraction.
    """

    kind: Literal["flipped", "users", "interactions", "active", "popular"]
    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"a deletion's fraction is {self.fraction:g}; give one above 0 and up to 1.")

    @property
    def name(self) -> str:
        """A short name for tables."""
        return f"{self.kind} {100 * self.fraction:g}%"


@dataclass(frozen=True)
class Ratings:
    """The rated pairs of a file, and data modules and requests made of them."""

    frame: pd.DataFrame
    settings: DataSettings
    digest: str

    @classmethod
    def read(cls, path: Path, settings: DataSettings) -> Ratings:
        """Read a file of ratings and reduce it to its core; ``digest`` tells one file from another."""
        columns = {"user": settings.user, "item": settings.item, "rating": settings.rating}
        try:
            frame = read_source(path, **columns).drop_duplicates(["user", "item"], keep="last")
        except UnlearningError as error:
            raise ValueError(
                f"{error} Columns have their names in the configuration: 'data: {{user: ...}}'."
            ) from error
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        left = core(frame, settings.core)
        if left.empty:
            raise ValueError(
                f"of {len(frame)} rated pairs none is left with {settings.core} of each user and item; "
                "lower 'core' in the configuration's 'data', or give more ratings."
            )
        return cls(left, settings, digest)

    def described(self) -> dict[str, object]:
        """Return the settings and the file's digest, for a row."""
        return {**asdict(self.settings), "digest": self.digest}

    def source(self, recipe: Recipe, deletion: Deletion) -> Source:
        """Return what reads the data of a recipe, with the wrong labels that a deletion may plant.

        With labels for BCE; for BPR the positive pairs alone, the wrongly positive among them.
        """
        label = self._labels()
        if deletion.kind == "flipped":
            label[self._flipped(deletion)] = ~label[self._flipped(deletion)]
        pairs = self.frame[["user", "item"]]
        frame = pairs[label] if recipe.loss == "bpr" else pairs.assign(label=label.astype(float))
        return self._reader(frame, recipe.batch_size)

    def request(self, deletion: Deletion, data: InteractionDataModule) -> UnlearningRequest:
        """Return what a deletion forgets of data that nothing was forgotten of; it depends on no training seed."""
        if deletion.kind == "flipped":
            rows = self._flipped(deletion)
            # Of implicit feedback, a pair that was wrongly made negative is not there to be forgotten.
            wrong = self.frame.iloc[rows if data.labelled else rows[~self._labels()[rows]]]
            return UnlearningRequest(interactions=wrong[["user", "item"]].to_numpy())
        train = data.train
        rng = np.random.default_rng([self.settings.seed, zlib.crc32(deletion.name.encode())])
        if deletion.kind == "users":
            users = rng.permutation(np.unique(train.user.numpy()))
            return UnlearningRequest(users=data.user_ids[users[: count(deletion.fraction, len(users))]])
        wanted = count(deletion.fraction, len(train))
        if deletion.kind == "popular":
            return UnlearningRequest(items=data.item_ids[_popular(train, wanted)])
        some = _active(train, wanted, rng) if deletion.kind == "active" else rng.permutation(len(train))[:wanted]
        users, items = data.user_ids[train.user.numpy()[some]], data.item_ids[train.item.numpy()[some]]
        return UnlearningRequest(interactions=list(zip(users, items, strict=True)))

    def _labels(self) -> npt.NDArray[np.bool_]:
        return (self.frame["rating"] > self.settings.positive_above).to_numpy(copy=True)

    def _flipped(self, deletion: Deletion) -> Positions:
        """The rows whose labels a deletion flips: the last of those that train, negative ones included."""
        data = self._reader(self.frame[["user", "item"]], 1)()
        train = data.table.rows("train").numpy().nonzero()[0]
        return train[-count(deletion.fraction, len(train)) :]

    def _reader(self, frame: pd.DataFrame, batch_size: int) -> Source:
        columns = {name: frame[name].to_numpy() for name in frame}
        held_out = {"val_fraction": self.settings.val_fraction, "test_fraction": self.settings.test_fraction}
        labelled = {"rating": "label", "threshold": 0.5} if "label" in frame else {}

        def read() -> InteractionDataModule:
            return InteractionDataModule(
                columns, **labelled, **held_out, batch_size=batch_size, seed=self.settings.seed
            )

        return read


def count(fraction: float, total: int) -> int:
    """Return how many of a total a fraction is: rounded up, so that it is one at least."""
    return math.ceil(round(fraction * total, 6))


def core(frame: pd.DataFrame, least: int) -> pd.DataFrame:
    """Drop users and items with fewer than ``least`` rows, again and again, until there are none.

    Example:
        >>> core(pd.DataFrame({"user": [1, 1, 2, 2, 3], "item": [1, 2, 1, 2, 2]}), 2).index.tolist()
        [0, 1, 2, 3]
    """
    while len(frame):
        kept = (frame.groupby("user")["item"].transform("size") >= least) & (
            frame.groupby("item")["user"].transform("size") >= least
        )
        if kept.all():
            break
        frame = frame[kept]
    return frame.reset_index(drop=True)


def _popular(train: Interactions, wanted: int) -> Positions:
    """The most popular items, until ``wanted`` training interactions are theirs."""
    sizes = np.bincount(train.item.numpy())
    order = np.argsort(-sizes, kind="stable")
    return order[: int(np.searchsorted(sizes[order].cumsum(), wanted)) + 1]


def _active(train: Interactions, wanted: int, rng: np.random.Generator) -> Positions:
    """A random half of the training interactions of each of the most active users, ``wanted`` in all."""
    user = train.user.numpy()
    chosen: list[int] = []
    for active in np.argsort(-np.bincount(user), kind="stable"):
        mine = rng.permutation(np.flatnonzero(user == active))
        chosen += mine[: min(len(mine) // 2, wanted - len(chosen))].tolist()
        if len(chosen) == wanted:
            break
    return np.array(chosen, dtype=np.int64)
