r"""The two sides of an unlearning problem: the risk before and the risk after, on their own graphs and samplers.

Training interactions :math:`D`, to forget :math:`F`, to retain :math:`R = D \setminus F`; the graph :math:`G` of
:math:`D`'s positive interactions and :math:`G'` of :math:`R`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_ifru.examples import Examples
from lightning_ifru.graph import affected_nodes
from lightning_ifru.interactions import Interactions
from lightning_ifru.losses import Loss
from lightning_ifru.objective import Objective
from lightning_ifru.presence import batch_presence

#: Pairs of forgotten interactions and candidates, at most: a few times those of the retained and their negatives.
_EXPECTED = 1 << 24


@dataclass(frozen=True)
class Problem:
    """What is known before anything is solved.

    Attributes:
        interactions: the training interactions ``D``.
        forget: which of them are ``F``, a bool mask ``[|D|]``.
        before: the ``edge_index`` of ``G``.
        after: the ``edge_index`` of ``G'``.
        erased: nodes without any interaction left, a bool mask ``[num_nodes]``: nothing but Ω acts on their rows.
        candidates: the items ``[M]`` that negatives were drawn from.
        candidates_after: those they would be drawn from without ``F``.
        num_negatives: negatives that training drew for each example, which a listwise loss takes at once.
        batch_size: examples of a training batch, on which the weight of a penalty of batches depends.
    """

    interactions: Interactions
    forget: Tensor
    before: Tensor
    after: Tensor
    erased: Tensor
    candidates: Tensor
    candidates_after: Tensor
    num_negatives: int = 1
    batch_size: int = 1

    @cached_property
    def retained(self) -> Interactions:
        """``R``."""
        return self.interactions[~self.forget]

    @cached_property
    def forgotten(self) -> Interactions:
        """``F``."""
        return self.interactions[self.forget]

    def node_counts(self, objective: Objective, interactions: Interactions) -> Tensor:
        """Return the number of interactions of every node, ``[num_nodes]``."""
        nodes = torch.cat([interactions.user, interactions.item + objective.num_users])
        return torch.bincount(nodes, minlength=objective.num_nodes)

    def affected(self, objective: Objective, hops: int) -> Tensor:
        """Mark the nodes whose representation an encoder of ``hops`` layers can change, ``[num_nodes]``."""
        # The graphs themselves say which edges have gone: whether a rating is one is a matter of the data.
        degrees = (torch.bincount(edges[0], minlength=objective.num_nodes) for edges in (self.before, self.after))
        before, after = degrees
        return affected_nodes(self.before, (before != after).nonzero().flatten(), objective.num_nodes, hops)


@dataclass(frozen=True)
class Sides:
    """Means over ``R`` before and after, and over ``F``, as weighted examples.

    Both sides of ``R`` use the same negatives (common random numbers), except where a negative is an item that leaves
    the sampler: those are drawn anew on the side after. ``F`` has the expectation over all items, exactly where the
    loss takes negatives one at a time; for a listwise loss they are dealt into sets of as many as training drew, once.
    Where these were more than 2^24 pairs, the items are dealt to parts of ``F``, so that each occurs equally often.

    Attributes:
        retained, retained_after: ``R`` with the sampler before and after; their ``presence`` is that of ``D`` and of
            ``R`` in training batches.
        forgotten: ``F``, in parts.
        share: ``|F| / |D|``.
    """

    retained: Examples
    retained_after: Examples
    forgotten: tuple[Examples, ...]
    share: float

    @classmethod
    def of(cls, problem: Problem, objective: Objective, negatives: int, seed: int) -> Sides:
        """Build the sides of ``problem``.

        Args:
            problem: what is forgotten and what stays.
            objective: whose loss says whether there are negatives, and whether batches have a penalty.
            negatives: negatives for each retained example, at least; a listwise loss takes them in whole sets.
            seed: of the negatives.
        """
        sides = cls._of(problem, objective.loss, negatives, seed)
        if objective.node_regularization is None:
            return sides
        before, after = (
            replace(part, presence=_presence(problem, objective, interactions, candidates))
            for part, interactions, candidates in (
                (sides.retained, problem.interactions, problem.candidates),
                (sides.retained_after, problem.retained, problem.candidates_after),
            )
        )
        return replace(sides, retained=before, retained_after=after)

    @classmethod
    def _of(cls, problem: Problem, loss: Loss, negatives: int, seed: int) -> Sides:
        r, f = problem.retained, problem.forgotten
        share = len(f) / (len(r) + len(f))
        if not loss.needs_negatives:
            retained = Examples(r.user, r.item, 1 / len(r), target=r.label)
            forgotten = Examples(f.user, f.item, 1 / max(1, len(f)), target=f.label)
            return cls(retained, retained, (forgotten,), share)
        generator = torch.Generator().manual_seed(seed)
        candidates, group, user, item = problem.candidates, 1, r.user, r.item
        if loss.kind == "listwise":
            group = problem.num_negatives
            sets = -(-negatives // group)
            negatives, user, item = group, r.user.repeat(sets), r.item.repeat(sets)
            candidates = _deal(candidates, group, generator)
        draw = _draw(problem.candidates, (len(user), negatives), generator)
        redraw = draw
        if problem.candidates_after.numel() < problem.candidates.numel():
            stays = torch.zeros(int(problem.candidates.max()) + 1, dtype=torch.bool, device=draw.device)
            stays[problem.candidates_after] = True
            gone = ~stays[draw]
            redraw = draw.clone()
            redraw[gone] = _draw(problem.candidates_after, (int(gone.sum()),), generator)
        retained = Examples(user, item, 1 / len(user), negative=draw)
        return cls(
            retained,
            retained if redraw is draw else replace(retained, negative=redraw),
            tuple(_expected(f, candidates, group, generator)),
            share,
        )


def _presence(problem: Problem, objective: Objective, interactions: Interactions, candidates: Tensor) -> Tensor:
    counts = problem.node_counts(objective, interactions)
    drawn = candidates + objective.num_users if objective.loss.needs_negatives else None
    return batch_presence(counts, len(interactions), problem.batch_size, drawn, problem.num_negatives)


def _expected(
    forgotten: Interactions, candidates: Tensor, group: int, generator: torch.Generator
) -> Iterator[Examples]:
    """Give every forgotten interaction the expectation over all candidates, or where there are many an even share."""
    weight, parts = 1 / max(1, len(forgotten)), -(-len(forgotten) * candidates.numel() // _EXPECTED)
    parts = min(parts, len(forgotten), candidates.numel() // group)
    if parts <= 1:
        yield Examples(forgotten.user, forgotten.item, weight, candidates=candidates, group=group)
        return
    rows, items = len(forgotten), candidates.numel() // group
    some = torch.randperm(rows, generator=generator).to(candidates.device).tensor_split(parts)
    dealt = torch.randperm(items, generator=generator).to(candidates.device).tensor_split(parts)
    for index, part in zip(some, dealt, strict=True):
        negatives = candidates.view(-1, group)[part].flatten()
        yield Examples(forgotten.user[index], forgotten.item[index], weight, candidates=negatives, group=group)


def _deal(candidates: Tensor, group: int, generator: torch.Generator) -> Tensor:
    """Shuffle the candidates and deal them into whole groups; the last one is filled up from the first."""
    shuffled = candidates[torch.randperm(candidates.numel(), generator=generator).to(candidates.device)]
    whole = -(-candidates.numel() // group) * group
    return shuffled.repeat(-(-whole // candidates.numel()))[:whole]


def _draw(candidates: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that every device sees the same numbers.
    position = torch.randint(candidates.numel(), shape, generator=generator)
    return candidates[position.to(candidates.device)]
