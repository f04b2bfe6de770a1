r"""The two sides of an unlearning problem: the risk before and the risk after, on their own graphs and samplers.

Training interactions :math:`D`, to forget :math:`F`, to retain :math:`R = D \setminus F`; the graph :math:`G` of
:math:`D`'s positive interactions and :math:`G'` of :math:`R`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_ifru.graph import affected_nodes
from lightning_ifru.interactions import Interactions
from lightning_ifru.objective import Examples, Loss, Objective


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
    """

    interactions: Interactions
    forget: Tensor
    before: Tensor
    after: Tensor
    erased: Tensor
    candidates: Tensor
    candidates_after: Tensor

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
        positive = self.forgotten[self.forgotten.label > 0]
        endpoints = torch.cat([positive.user, positive.item + objective.num_users])
        return affected_nodes(self.before, endpoints, objective.num_nodes, hops)


@dataclass(frozen=True)
class Sides:
    """Means over ``R`` before and after, and over ``F``, as weighted examples.

    Both sides of ``R`` use the same negatives (common random numbers), except where a negative is an item that leaves
    the sampler: those are drawn anew on the side after. ``F`` has the expectation over all items, exactly.
    """

    retained: Examples
    retained_after: Examples
    forgotten: Examples
    share: float

    @classmethod
    def of(cls, problem: Problem, loss: Loss, negatives: int, seed: int) -> Sides:
        """Build the sides of ``problem``; ``negatives`` are drawn for each retained example of a pairwise loss."""
        r, f = problem.retained, problem.forgotten
        share = len(f) / (len(r) + len(f))
        if not loss.pairwise:
            retained = Examples(r.user, r.item, 1 / len(r), target=r.label)
            forgotten = Examples(f.user, f.item, 1 / max(1, len(f)), target=f.label)
            return cls(retained, retained, forgotten, share)
        generator = torch.Generator().manual_seed(seed)
        draw = _draw(problem.candidates, (len(r), negatives), generator)
        redraw = draw
        if problem.candidates_after.numel() < problem.candidates.numel():
            gone = ~torch.isin(draw, problem.candidates_after)
            redraw = draw.clone()
            redraw[gone] = _draw(problem.candidates_after, (int(gone.sum()),), generator)
        retained = Examples(r.user, r.item, 1 / len(r), negative=draw)
        return cls(
            retained,
            retained if redraw is draw else Examples(r.user, r.item, 1 / len(r), negative=redraw),
            Examples(f.user, f.item, 1 / max(1, len(f)), candidates=problem.candidates),
            share,
        )


def _draw(candidates: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # Drawn on the CPU, so that every device sees the same numbers.
    position = torch.randint(candidates.numel(), shape, generator=generator)
    return candidates[position.to(candidates.device)]
