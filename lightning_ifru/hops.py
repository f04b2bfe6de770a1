"""How far things are from what is forgotten, in edges of the old graph."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ifru.graph import affected_nodes
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, unravel
from lightning_ifru.problem import Problem

#: The distances told apart; the last one takes in all that is further, or out of reach.
HOPS = ("0", "1", "2", "3+")


def node_hops(objective: Objective, problem: Problem) -> Tensor:
    """Return every node's number of edges on ``G`` to the nearest end of a forgotten interaction, 3 at most.

    Args:
        objective: whose nodes they are.
        problem: what is forgotten, whatever its label.

    Returns:
        Positions in :data:`HOPS`, int64 ``[num_nodes]``: 3 stands for everything further, and for what is out of reach.
    """
    ends = problem.node_counts(objective, problem.forgotten).nonzero().flatten()
    found = torch.full((objective.num_nodes,), len(HOPS) - 1, device=ends.device)
    for hop in range(len(HOPS) - 1):
        found[ends] = found[ends].clamp(max=hop)
        if hop < len(HOPS) - 2:
            ends = affected_nodes(problem.before, ends, objective.num_nodes, 1).nonzero().flatten()
    return found


def influence_by_hop(b: Tensor, objective: Objective, parameters: Parameters, problem: Problem) -> dict[str, float]:
    r"""Return the norm of equation (1) on the rows at each distance from what is forgotten.

    .. math:: \|b_h\|, \qquad \sum_h \|b_h\|^2 = \|b\|^2

    with a part for each of :data:`HOPS` at which there is a node, and a part ``"dense"`` for the parameters without
    node rows, if there are any.

    Args:
        b: the influence, or any other vector ``[P]``.
        objective: which parameters hold rows of nodes.
        parameters: whose vector it is.
        problem: what is forgotten.
    """
    hops = node_hops(objective, problem)
    kinds = {"user": hops[: objective.num_users], "item": hops[objective.num_users :], "node": hops}
    squares, seen = torch.zeros(len(HOPS) + 1, dtype=torch.float64, device=b.device), torch.zeros_like(hops[:0])
    for name, part in unravel(b, parameters).items():
        rows = kinds.get(objective.node_parameters.get(name, ""))
        kind = hops.new_full((1,), len(HOPS)) if rows is None else rows
        size = torch.linalg.vector_norm(part.reshape(len(kind), -1), dim=1)
        squares.index_add_(0, kind, size.double().square())
        seen = torch.cat([seen, kind.unique()])
    norms = squares.sqrt().tolist()
    return {name: norms[kind] for kind, name in enumerate((*HOPS, "dense")) if kind in seen}
