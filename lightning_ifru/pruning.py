"""Which parameters are unknowns of the Newton system: importance-based pruning and erased rows as masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_ifru.graph import Importance, bipartite_edge_index
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters
from lightning_ifru.problem import Problem


def important_nodes(objective: Objective, problem: Problem, keep_ratio: float, hops: int) -> Tensor:
    r"""Mark the nodes to solve for: the share ``keep_ratio`` of all nodes with the largest importance, ``[num_nodes]``.

    The scores are those of :class:`~lightning_ifru.graph.Importance` on the graph of all training interactions,
    whatever their label, since every interaction couples its two rows through the loss. Endpoints of forgotten
    interactions always stay in; nodes beyond ``hops`` never come in. ``keep_ratio=1`` keeps everything: the exact
    solve.

    Source: arXiv 2307.02147, section 3.3.
    """
    if keep_ratio >= 1.0:
        return torch.ones(objective.num_nodes, dtype=torch.bool, device=problem.forget.device)
    everything = problem.interactions
    edges = bipartite_edge_index(everything.user, everything.item, objective.num_users)
    counts = problem.node_counts(objective, problem.forgotten)
    scores = Importance(hops)(edges, counts.to(torch.float32))
    best = scores.topk(math.ceil(keep_ratio * objective.num_nodes)).indices
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[best] = scores[best] > 0
    return keep | (counts > 0)


def expand_to_parameters(nodes: Tensor, objective: Objective, parameters: Parameters, dense: float = 1.0) -> Tensor:
    """Spread a value per node ``[num_nodes]`` over the parameter vector ``[P]``.

    Every entry of a node's row gets the node's value, every entry of a parameter without node rows gets ``dense``.

    Example:
        >>> from lightning_ifru.losses import resolve_loss
        >>> objective = Objective(lambda p, e: p["w"], lambda p, s, t: s, resolve_loss("mse"), lambda p: 0.0, 1, 1,
        ...                       node_parameters={"item_row": "item"})
        >>> expand_to_parameters(
        ...     torch.tensor([0.0, 5.0]), objective, {"item_row": torch.zeros(1, 2), "bias": torch.zeros(1)})
        tensor([5., 5., 1.])
    """
    rows = {"user": nodes[: objective.num_users], "item": nodes[objective.num_users :], "node": nodes}
    pieces = []
    for name, tensor in parameters.items():
        if name in objective.node_parameters:
            value = rows[objective.node_parameters[name]].to(tensor.dtype)
            pieces.append(value.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor).reshape(-1))
        else:
            pieces.append(torch.full_like(tensor, dense).reshape(-1))
    return torch.cat(pieces)
