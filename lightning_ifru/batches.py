"""Batches of interactions, in an order that survives forgetting: what is forgotten leaves a gap in its batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_ifru.interactions import Interactions, InteractionTable

Batch = dict[str, Tensor]


class TrainingBatches(Dataset[Batch]):
    """The training batches of an epoch, the ``k``-th batch as item ``k``.

    Order and negatives are a function of seed, epoch and position in the table. The rows that were forgotten take part
    in the permutation and in the draw, and are then dropped: training on what is left, from the same seed, is training
    on the same batches without the forgotten (*paired retraining*).

    A batch that loses all its rows takes one from the largest, so that every epoch has as many. A negative that falls
    on an item that has left the candidates is drawn anew.

    Args:
        table: all interactions, with what was forgotten.
        batch_size: rows of a batch before anything was forgotten.
        num_negatives: items drawn for each row, uniformly and without rejection; 0 where the batches hold labels.
        seed: of order and negatives.

    Example:
        >>> import pandas as pd
        >>> from lightning_ifru.splits import RandomSplit
        >>> frame = pd.DataFrame({"user": range(4), "item": range(4)})
        >>> batches = TrainingBatches(InteractionTable(frame, split=RandomSplit(0.0, 0.0)), 2, 1, seed=0)
        >>> len(batches), sorted(batches[0]["user"].tolist() + batches[1]["user"].tolist())
        (2, [0, 1, 2, 3])
    """

    def __init__(self, table: InteractionTable, batch_size: int, num_negatives: int, seed: int) -> None:
        trained = table.trained.nonzero().flatten()
        self._alive = table.alive[trained]
        # Copies: what is forgotten while a loader lives must not turn into rows of blanks in its next batch.
        rows = trained[self._alive]
        self._interactions = Interactions(table.user[rows], table.item[rows], table.label[rows])
        self._candidate = torch.zeros(len(table.items), dtype=torch.bool)
        self._candidate[table.candidates] = True
        self._batch_size, self._num_negatives, self._seed = batch_size, num_negatives, seed
        self._drawn: tuple[list[Tensor], Tensor | None] | None = None
        self._epoch = 0

    def __len__(self) -> int:
        slots = -(-len(self._alive) // self._batch_size)
        return min(slots, len(self._interactions))

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, on which order and negatives depend."""
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, None

    def __getitem__(self, index: int) -> Batch:
        if self._drawn is None:
            self._drawn = self._draw()
        batches, negatives = self._drawn
        rows = batches[index]
        some = self._interactions[rows]
        if negatives is None:
            return {"user": some.user, "item": some.item, "label": some.label}
        return {"user": some.user, "item": some.item, "negative": negatives[rows]}

    def _draw(self) -> tuple[list[Tensor], Tensor | None]:
        """The rows of every batch of the epoch, and all negatives ``[n, num_negatives]``."""
        entropy = np.random.SeedSequence([self._seed % 2**64, self._epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        order = torch.randperm(len(self._alive), generator=generator)
        place = self._alive.cumsum(0) - 1
        batches = [place[part[self._alive[part]]] for part in order.split(self._batch_size)]
        for k in [k for k, batch in enumerate(batches) if not len(batch)]:
            largest = max(range(len(batches)), key=lambda j: len(batches[j]))
            if len(batches[largest]) > 1:
                batches[k], batches[largest] = batches[largest].tensor_split([1])
        batches = [batch for batch in batches if len(batch)]
        if not self._num_negatives:
            return batches, None
        items = len(self._candidate)
        negatives = torch.randint(items, (len(self._alive), self._num_negatives), generator=generator)[self._alive]
        while (gone := ~self._candidate[negatives]).any():
            negatives[gone] = torch.randint(items, (int(gone.sum()),), generator=generator)
        return batches, negatives


class HeldOutBatches(Dataset[Batch]):
    """Interactions that are fetched by the batch, with labels or with the same negatives every time."""

    def __init__(self, interactions: Interactions, negatives: Tensor | None) -> None:
        self.interactions = interactions
        self.negatives = negatives

    def __len__(self) -> int:
        return len(self.interactions)

    def __getitem__(self, index: int) -> Batch:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        index = torch.tensor(indices)
        some = self.interactions[index]
        if self.negatives is None:
            return {"user": some.user, "item": some.item, "label": some.label}
        return {"user": some.user, "item": some.item, "negative": self.negatives[index]}


class _Epochs(Sampler[int]):
    """All batches of an epoch: the one the trainer has set, or without a trainer the next."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[int]:
        # A generator, because a trainer that resumes asks for the iterator first and sets the epoch then.
        self._batches.set_epoch(self._epoch)
        self._epoch += 1
        yield from range(len(self._batches))


def training_loader(batches: TrainingBatches) -> DataLoader[Batch]:
    """Return a loader whose order follows the trainer's epoch."""
    return DataLoader(batches, batch_size=None, sampler=_Epochs(batches))


def held_out_loader(batches: HeldOutBatches, batch_size: int) -> DataLoader[Batch]:
    """Return a loader of batches in the order of the table."""
    # The dataset slices a whole batch at once, so there is nothing left to collate.
    return DataLoader(batches, batch_size=batch_size, collate_fn=_whole)


def _whole(batch: Any) -> Any:
    return batch
