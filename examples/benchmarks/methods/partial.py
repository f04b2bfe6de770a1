"""Partial retraining: a model for each shard of the interactions, of which a request retrains those it touches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from recipes import Scorer, Trained, train
from torch import Tensor

from lightning_ifru import InteractionDataModule, UnlearningRequest
from methods.interface import Forgotten
from methods.staged import Staged

#: The shard of every row of the table, -1 for rows not trained on: ``(original, number of shards) -> [rows]``.
Partition = Callable[[Trained, int], Tensor]
#: One scorer from those of the shards' models: ``(original, data, scorers) -> scorer``.
Aggregate = Callable[[Trained, InteractionDataModule, list[Scorer]], Scorer]


class PartialRetraining:
    """Exact forgetting by training a model on each shard alone, and aggregating what they know.

    A shard's model has the original's recipe, on the interactions and the graph of the shard. (Batches smaller by the
    number of shards, for as many steps as the original had, took six times as long and were no better.) Negatives are
    drawn from all items; where a request takes an item out of the sampler, every shard has seen it and is trained
    again.

    Args:
        name: in the tables.
        partition: how interactions are divided; it is not undone by a request, as in the papers.
        aggregate: how the models become one; anything trained in it is trained again for every request.
        shards: how many.
    """

    def __init__(self, name: str, partition: Partition, aggregate: Aggregate, shards: int = 10) -> None:
        self.name = name
        #: What its rows are measured against, which is among their settings: those of one model say nothing of it.
        self.reference = "again"
        self._partition, self._aggregate, self._shards = partition, aggregate, shards

    def prepare(self, original: Trained) -> Scorer:
        """Divide the interactions, train the shards' models, and return their aggregate's scores."""
        data = original.copy()[1]
        self._shard = self._partition(original, self._shards)
        self._scorers = [self._train(original, data, k) for k in range(self._shards)]
        return self._aggregate(original, data, self._scorers)

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Train the touched shards' models without a request, and aggregate anew."""
        staged = Staged(original, request)
        removal = staged.data.removal()
        touched = set(self._shard[removal.rows].tolist()) - {-1}
        if not staged.data.labelled and len(removal.withdrawn):
            touched = set(range(self._shards))
        staged.data.commit(removal)
        staged.lap("apply")
        scorers = [
            self._train(original, staged.data, k) if k in touched else scorer for k, scorer in enumerate(self._scorers)
        ]
        staged.lap("train")
        scorer = self._aggregate(original, staged.data, scorers)
        staged.lap("aggregate")
        return staged.finish(scorer, {"shards": self._shards, "shards_retrained": len(touched)})

    def again(self, original: Trained, request: UnlearningRequest) -> Scorer:
        """Train all shards' models without a request, divided as before: the retraining that this method is held to."""
        data = original.copy()[1]
        data.forget(request)
        data.commit(data.removal())
        return self._aggregate(original, data, [self._train(original, data, k) for k in range(self._shards)])

    def _train(self, original: Trained, data: InteractionDataModule, k: int) -> Scorer:
        part = copy.deepcopy(data)
        table = part.table
        table.split[table.rows("train") & (self._shard != k)] = -1
        table.trained &= self._shard == k
        part.adopt(table)
        return train(original.recipe, lambda: part, original.seed + k).scorer


@dataclass(frozen=True)
class MeanScorer:
    """The mean of several models' scores."""

    scorers: list[Scorer]
    num_users: int
    h: None = None
    parameters: None = None

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the logits ``[n]`` of pairs."""
        return torch.stack([scorer.pairs(user, item) for scorer in self.scorers]).mean(0)

    def block(self, users: Tensor) -> Tensor:
        """Return the logits ``[n, num_items]`` of users with all items."""
        total = self.scorers[0].block(users)
        for scorer in self.scorers[1:]:
            total += scorer.block(users)
        return total / len(self.scorers)


def random_partition(original: Trained, shards: int) -> Tensor:
    """Divide the training interactions at random into shards of one size, by their rows alone."""
    rows = original.data.table.trained.nonzero().flatten()
    generator = torch.Generator().manual_seed(original.seed)
    shard = torch.full((len(original.data.table),), -1)
    shard[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % shards
    return shard


def mean_of_scores(original: Trained, data: InteractionDataModule, scorers: list[Scorer]) -> MeanScorer:
    """Aggregate by the mean."""
    return MeanScorer(scorers, data.num_users)


def sisa() -> PartialRetraining:
    """Return SISA: random shards, the mean of scores.

    Source: Bourtoule et al., *Machine Unlearning*, IEEE S&P 2021, arXiv 1912.03817.
    """
    return PartialRetraining("sisa", random_partition, mean_of_scores)
