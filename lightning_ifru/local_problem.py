r"""Equation (1) on the rows around what is forgotten, from the layers that a pass over all data has left.

With :math:`W_k` the layers of the data's gradient and :math:`W'_k` what becomes of them,

.. math::

    b = \frac{1}{n} \sum_k \alpha_k \left( W_k + \hat A^k \Delta_F \right) - \frac{1}{n'} \sum_k \alpha_k W'_k

:math:`\Delta_F` puts the expectation over all candidates in the place of the negatives that the forgotten had drawn.
:math:`W'_0` differs from :math:`W_0` by the forgotten examples, by the negatives drawn anew for items that have left,
and by the examples whose scores move with the graph, of which :class:`~lightning_ifru.comparisons.Comparisons` holds
those of the rows solved for. Everything else follows from :class:`~lightning_ifru.local_graph.LocalGraph`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ifru.comparisons import Comparisons
from lightning_ifru.examples import Examples
from lightning_ifru.importance import important_near
from lightning_ifru.local_graph import LocalGraph, locate
from lightning_ifru.neighbours import every_place
from lightning_ifru.ranks import ALONE
from lightning_ifru.warm import LinearModel, WarmState

#: Scores of forgotten examples with candidates at most; where there are more, with a sample of the candidates.
EXPECTED = 1 << 18


@dataclass(frozen=True, eq=False)
class Departure:
    """What goes.

    Attributes:
        rows: the training rows ``[k]``, ascending.
        erased: the nodes without any interaction left, ascending: nothing but Ω acts on their rows.
        withdrawn: the items that leave the candidates.
        fresh: the new rows ``[len(erased), d]`` of the erased.
    """

    rows: Tensor
    erased: Tensor
    withdrawn: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Budget:
    """What a local solve may look at.

    Attributes:
        rows: rows to solve for beside the ends of what is forgotten.
        interactions: interactions to look at for each of them.
        hops: rounds of the importance score.
        expected: scores of forgotten examples with candidates.
    """

    rows: int
    interactions: int
    hops: int = 2
    expected: int = EXPECTED


class Patch:
    """Some nodes of a model, numbered anew in their order, so that users still come first.

    Args:
        model: the model.
        nodes: the nodes ``[m]``, ascending.
        num_users: the offset of items among all nodes.
        device: where the model is.
    """

    def __init__(self, model: LinearModel, nodes: Tensor, num_users: int, device: torch.device) -> None:
        self.nodes, self._offset, self._device = nodes, num_users, device
        users = int((nodes < num_users).sum())
        # Small enough for every rank to have all of it.
        self.objective = replace(model.objective, num_users=users, num_items=len(nodes) - users, ranks=ALONE)

    def at(self, nodes: Tensor) -> Tensor:
        """Return the new numbers of ``nodes``, which are all among those of the patch."""
        return locate(nodes, self.nodes)[0].to(self._device)

    def examples(
        self,
        user: Tensor,
        item: Tensor,
        weight: float | Tensor,
        target: Tensor | None = None,
        negative: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Examples:
        """Return examples whose users, items, negatives and candidates are given as nodes."""
        first_item = self.objective.num_users
        return Examples(
            self.at(user),
            self.at(item) - first_item,
            weight,
            target=None if target is None else target.to(self._device),
            negative=None if negative is None else self.at(negative) - first_item,
            candidates=None if candidates is None else self.at(candidates) - first_item,
        )

    def gradient(self, h: Tensor, *examples: Examples) -> Tensor:
        """Return the gradient in ``h [m, d]`` of the examples' weighted losses."""
        return self.objective.decoded(h, {}, examples)[1]


class LocalProblem:
    """A request worked out on the rows around it.

    Args:
        warm: the layers of the model.
        departure: what goes.
        budget: what to look at.
        seed: of the samples.

    Attributes:
        nodes: the rows looked at, ``[m]``, ascending; those solved for are marked in ``unknown``.
        start: their parameters with the rows of the erased drawn anew, ``[m, d]``.
        graph: the graph among them.
        patch: they, and the nodes they are compared with.
        examples: the comparisons that stay, with weights that make their sum the mean over what stays.
        importance: the share of the importance score that is theirs.
        capped: how many of them were looked at by a sample.
    """

    def __init__(self, warm: WarmState, departure: Departure, budget: Budget, seed: int) -> None:
        self._warm, self._departure = warm, departure
        self._forgotten = warm.near.ends(departure.rows)
        near, generator = warm.near, torch.Generator().manual_seed(seed)
        each = 1 if warm.draws is None else warm.draws.per_row
        self.draws_after = None if warm.draws is None else warm.draws.without(departure.withdrawn)
        chosen, self.importance = important_near(
            near, departure.rows, budget.rows, budget.hops, budget.interactions, generator
        )
        withdrawn = departure.withdrawn + near.num_users
        self.nodes = torch.cat([chosen, departure.erased, withdrawn]).unique()
        self.erased = locate(self.nodes, departure.erased)[1]
        self.unknown = locate(self.nodes, chosen)[1] & ~self.erased
        table = warm.embeddings[0]
        self._device = table.device
        self.here = self.nodes.to(self._device)
        self.start = table[self.here]
        self.start[self.erased.to(self._device)] = departure.fresh.to(table)
        self.graph = LocalGraph(near, self.nodes, warm.degree[self.nodes], departure.rows, table)
        #: Their numbers of examples that stay.
        self.counts = near.degrees(self.nodes) - torch.bincount(
            locate(torch.cat(near.ends(departure.rows)), self.nodes)[0], minlength=len(self.nodes)
        )
        self.num_before = warm.num_examples
        self.num_after = warm.num_examples - len(departure.rows)
        self._embeddings = [layer[self.here] for layer in warm.embeddings]
        self._gradients = [layer[self.here] for layer in warm.gradients]
        # Norms of the gradient's changes in rows beyond the nodes, by what goes and by scores that move.
        self._slope_gone = self._slope_moved = 0.0
        self._left, self._expected = self._departed(budget, generator)

        found = Comparisons(
            near, self.draws_after, self.nodes[self.unknown], departure.rows, budget.interactions, generator
        )
        self.capped = found.capped
        user, item = near.ends(found.row)
        negative = None if self.draws_after is None else self._node(self.draws_after.drawn(found.slot)).unsqueeze(1)
        others = [] if negative is None else [negative.flatten()]
        self.patch = self._patch(user, item, *others)
        self.at = self.patch.at(self.nodes)
        self._h = self._rows(self.patch.nodes)
        weight = (found.weight / each).to(self._device, table.dtype)
        target = near.table.label[found.row] if warm.draws is None else None
        self._summed = self.patch.examples(user, item, weight, target, negative)
        self.examples = replace(self._summed, weight=weight / self.num_after)

        first = self.start - self._embeddings[0]
        #: The changes of the layers, and then the representations, when nothing but the data has changed.
        self._changes = self.changes(first)
        self.h = self._moved(self._changes[0])

    def influence(self) -> tuple[Tensor, Tensor]:
        """Return equation (1) and its direct part on the nodes, ``[m, d]``; zeros in the rows of the erased."""
        warm, graph = self._warm, self.graph
        whole = warm.model.mean(self._gradients)
        changes = warm.model.mean(self._changes[1])
        before = (whole + graph.encode(self._expected, warm.model.weights, after=False)) / self.num_before
        resampled = (whole + graph.encode(self._left, warm.model.weights, after=False)) / self.num_after
        total = before - (whole + changes) / self.num_after
        direct = before - resampled
        rows = self.erased.to(self._device)
        return total.masked_fill(rows.unsqueeze(1), 0.0), direct.masked_fill(rows.unsqueeze(1), 0.0)

    @property
    def gradient(self) -> Tensor:
        """The gradient of the risk of all data in the rows of the nodes, ``[m, d]``."""
        model = self._warm.model
        decay = model.objective.weight_decay.get(model.name, 0.0)
        return model.mean(self._gradients) / self.num_before + decay * self._embeddings[0]

    @property
    def pairs(self) -> Tensor:
        """The nodes of what goes, by their new numbers, ``[2, k]``."""
        return torch.stack([self.at[locate(end, self.nodes)[0].to(self._device)] for end in self._forgotten])

    def changes(self, first: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return how the layers of embeddings and of gradients change on the nodes if the table does by ``first``."""
        embeddings = self.graph.changes(self._embeddings, first)
        gradient = self._left
        if any(bool(change.any()) for change in embeddings):
            moved = self.patch.gradient(self._moved(embeddings), self._summed)
            moved -= self.patch.gradient(self._h, self._summed)
            gradient = gradient + moved[self.at]
            self._slope_moved = _elsewhere(moved, self.at)
        gone = self.erased.to(self._device).unsqueeze(1)
        return embeddings, self.graph.changes(self._gradients, torch.where(gone, -self._gradients[0], gradient))

    def hops(self, most: int) -> Tensor:
        """Return the nodes' distances from what goes, by edges among them, ``most`` for those further, ``[m]``."""
        reached = torch.zeros(len(self.nodes), 1).to(self.start)
        ends = locate(torch.cat(self._warm.near.ends(self._departure.rows)), self.nodes)[0]
        reached[ends.to(self._device)] = 1.0
        hops = torch.full((len(self.nodes),), most, device=self._device)
        for hop in range(most):
            hops[(reached[:, 0] > 0) & (hops == most)] = hop
            reached = reached + self.graph.propagate(reached, after=False)
        return hops

    def commit(self, rows: Tensor) -> None:
        """Tell the layers that the nodes' parameters are now ``rows [m, d]`` and that what goes has gone."""
        embeddings, gradients = self.changes(rows - self._embeddings[0])
        self._warm.update(
            self.nodes,
            # The table to the bit, so that it is known again.
            [rows, *(old + change for old, change in zip(self._embeddings[1:], embeddings[1:], strict=True))],
            [old + change for old, change in zip(self._gradients, gradients, strict=True)],
            self.graph.degree_after,
            self.draws_after,
            len(self._departure.rows),
            (self._left_out(embeddings), self._slope_gone + self._slope_moved),
        )

    def _moved(self, changes: Sequence[Tensor]) -> Tensor:
        """The representations of the patch after changes of the layers on the nodes."""
        return self._h.index_add(0, self.at, self._warm.model.mean(changes))

    def _left_out(self, changes: Sequence[Tensor]) -> float:
        """A bound of how far the layers elsewhere are from what the changes on the nodes would make of them."""
        if len(self.nodes) == self._warm.near.num_nodes:
            return 0.0
        total, layer = 0.0, 0.0
        for weight, old, change in zip(self._warm.model.weights[1:], self._embeddings, changes, strict=False):
            layer += float(torch.linalg.vector_norm(self.graph.carried(old, change)))
            total += abs(weight) * layer
        return total

    def _departed(self, budget: Budget, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The change of the gradient by examples that go and are drawn anew, and by the expectation over candidates."""
        near, draws, rows = self._warm.near, self._warm.draws, self._departure.rows
        user, item = near.ends(rows)
        if draws is None or self.draws_after is None:
            patch = self._patch(user, item)
            gone = patch.examples(user, item, 1.0, near.table.label[rows])
            gradient = patch.gradient(self._rows(patch.nodes), gone)[patch.at(self.nodes)]
            return -gradient, torch.zeros_like(gradient)
        candidates = draws.some(max(1, budget.expected // max(1, len(rows))), generator)
        again = self._withdrawn_slots()
        again_row = again // draws.per_row
        ends = near.ends(again_row)
        drawn = [self._node(some) for some in (draws.items(rows), draws.drawn(again), self.draws_after.drawn(again))]
        candidates = self._node(candidates)
        patch = self._patch(user, item, *ends, *(some.flatten() for some in drawn), candidates)
        h, here = self._rows(patch.nodes), patch.at(self.nodes)
        gone = patch.examples(user, item, 1.0, negative=drawn[0])
        redrawn = [patch.examples(*ends, 1.0 / draws.per_row, negative=some.unsqueeze(1)) for some in drawn[1:]]
        left = patch.gradient(h, gone)
        expected = patch.gradient(h, patch.examples(user, item, 1.0, candidates=candidates)) - left
        change = patch.gradient(h, redrawn[1]) - patch.gradient(h, redrawn[0]) - left
        self._slope_gone = _elsewhere(change, here)
        return change[here], expected[here]

    def _withdrawn_slots(self) -> Tensor:
        """The slots of what stays that had drawn an item which has left the candidates."""
        draws, items = self._warm.draws, self._departure.withdrawn
        assert draws is not None
        which, place = every_place(draws.lengths(items))
        slots, _ = draws.slots(items[which], place)
        rows = slots // draws.per_row
        return slots[self._warm.near.trained(rows) & ~locate(rows, self._departure.rows)[1]]

    def _patch(self, *nodes: Tensor) -> Patch:
        near = self._warm.near
        return Patch(self._warm.model, torch.cat([self.nodes, *nodes]).unique(), near.num_users, self._device)

    def _rows(self, nodes: Tensor) -> Tensor:
        here = nodes.to(self._device)
        return self._warm.model.mean([layer.index_select(0, here) for layer in self._warm.embeddings])

    def _node(self, items: Tensor) -> Tensor:
        return items + self._warm.near.num_users


def _elsewhere(rows: Tensor, here: Tensor) -> float:
    """The norm of rows ``[m, d]`` but for those at ``here``."""
    return float(torch.linalg.vector_norm(rows.index_fill(0, here, 0.0)))
