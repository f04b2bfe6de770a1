"""The rows to solve for, found from what is forgotten outwards, without a look at all nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ifru.local_graph import locate
from lightning_ifru.neighbours import Neighbours, some_places


def important_near(
    near: Neighbours, gone: Tensor, most: int, hops: int, per_node: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    r"""Return the ends of what is forgotten and the most important nodes beside them, and the share they have.

    The score is that of :class:`~lightning_ifru.graph.Importance`, of which each round goes out from the ``most`` best
    nodes so far and looks at ``per_node`` rows of each: :math:`s_0(v) = \#F(v) / \deg(v)`, and then the mean of a
    node's neighbours and itself.

    Args:
        near: the training interactions.
        gone: the training rows that go.
        most: nodes to add to the ends.
        hops: rounds.
        per_node: rows to look at for each node.
        generator: of the sample of a node's rows where it has more.

    Returns:
        The nodes, ascending, and the share of the sum of all scores found that is theirs.

    Source: arXiv 2307.02147, section 3.3.
    """
    nodes, counts = torch.cat(near.ends(gone)).unique(return_counts=True)
    if not len(nodes):
        return nodes, 1.0
    ends, score = nodes, counts / near.degrees(nodes).double()
    for _ in range(hops):
        best = score.topk(min(most + len(ends), len(score))).indices
        which, place = some_places(near.lengths(nodes[best]), per_node, generator)
        rows = near.at(nodes[best][which], place)
        trained = near.trained(rows)
        rows, which = rows[trained], which[trained]
        user, item = near.ends(rows)
        other = user + item - nodes[best][which]
        reached = torch.cat([nodes, other]).unique()
        total = torch.zeros(len(reached), dtype=score.dtype)
        total[locate(nodes, reached)[0]] = score
        total.index_add_(0, locate(other, reached)[0], score[best][which])
        nodes, score = reached, total / near.degrees(reached)
    order = score.masked_fill(locate(nodes, ends)[1], float("inf")).argsort(descending=True, stable=True)
    kept = order[: len(ends) + most].sort().values
    return nodes[kept], float(score[kept].sum() / score.sum())
