"""Training examples with their weights in the risk, and cut into chunks of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ifru.losses import Loss


@dataclass(frozen=True, eq=False)
class Examples:
    """A weighted set of training examples.

    Attributes:
        user, item: indices ``[n]``.
        weight: the weight of each example in the risk, ``1/n`` for a mean, or one for each, ``[n]``.
        target: labels ``[n]`` of a pointwise loss.
        negative: items ``[n, K]`` of a pairwise loss, drawn once.
        candidates: items ``[M]``; instead of ``negative``: the expectation over all of them. Exact where a loss takes
            negatives one at a time; of one that takes ``group`` at once the mean over sets in which each occurs once.
        group: how many candidates the loss takes at once.
        presence: the weight :math:`p_v` of every node's own penalty, ``[num_nodes]``; ``None`` without one.
    """

    user: Tensor
    item: Tensor
    weight: float | Tensor
    target: Tensor | None = None
    negative: Tensor | None = None
    candidates: Tensor | None = None
    group: int = 1
    presence: Tensor | None = None

    def __len__(self) -> int:
        return self.user.numel()

    def __getitem__(self, index: Tensor | slice) -> Examples:
        """Return some of the examples, with the weights they have."""
        return replace(
            self,
            user=self.user[index],
            item=self.item[index],
            weight=self.weight[index] if isinstance(self.weight, Tensor) else self.weight,
            target=None if self.target is None else self.target[index],
            negative=None if self.negative is None else self.negative[index],
        )

    @property
    def columns(self) -> int:
        """Pairs that each example has where its negatives were drawn: its own and those of its negatives."""
        return 1 if self.negative is None else 1 + self.negative.shape[1]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Examples as pairs of nodes: ``B`` examples of ``columns`` pairs each, flattened to ``[B * columns]``.

    Column 0 of an example is its own pair, the others pair its user with its negatives.
    """

    source: Tensor
    destination: Tensor
    columns: int
    target: Tensor | None
    weight: float | Tensor

    @classmethod
    def of(cls, num_users: int, examples: Examples) -> Chunk:
        """Pair the users of examples with their items and negatives, if they have any."""
        user, item = examples.user, examples.item
        if examples.negative is not None:
            user = user.repeat_interleave(examples.columns)
            item = torch.cat([item.unsqueeze(1), examples.negative], dim=1).reshape(-1)
        return cls(user, item + num_users, examples.columns, examples.target, examples.weight)

    def risk(self, loss: Loss, scores: Tensor) -> Tensor:
        """Return the chunk's share of the risk, a scalar, from its scores ``[B * columns]``."""
        return (self.weight * loss(scores.view(-1, self.columns), self.target)).sum()


def chunks(examples: Examples, num_users: int, size: int) -> Iterator[Chunk]:
    """Cut ``examples`` into chunks of at most ``size`` pairs (at least one example each)."""
    if examples.candidates is None:
        for start, stop in ranges(len(examples), size // examples.columns):
            yield Chunk.of(num_users, examples[start:stop])
    elif examples.group > 1:
        yield from _grouped(examples, examples.candidates.view(-1, examples.group), num_users, size)
    else:
        # An expectation over more items than fit a chunk is the weighted mean of expectations over its parts.
        total = examples.candidates.numel()
        for part in examples.candidates.split(max(1, size - 1)):
            for start, stop in ranges(len(examples), size // (1 + part.numel())):
                some = examples[start:stop]
                negative, weight = part.expand(stop - start, -1), some.weight * (part.numel() / total)
                yield Chunk.of(num_users, replace(some, negative=negative, weight=weight))


def _grouped(examples: Examples, groups: Tensor, num_users: int, size: int) -> Iterator[Chunk]:
    """Pair every example with every one of ``groups [G, K]`` of candidates."""
    columns = 1 + groups.shape[1]
    for part in groups.split(max(1, size // columns)):
        for start, stop in ranges(len(examples), size // (columns * len(part))):
            each = torch.arange(start, stop, device=part.device).repeat_interleave(len(part))
            some = examples[each]
            negative, weight = part.repeat(stop - start, 1), some.weight / len(groups)
            yield Chunk.of(num_users, replace(some, negative=negative, weight=weight))


def ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``0 .. total`` into ranges of ``size``, of 1 at least.

    Example:
        >>> list(ranges(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, size)
    for start in range(0, total, size):
        yield start, min(start + size, total)
