r"""How many message-passing hops an encoder reaches, found by experiment instead of by reading its layers.

The encoder is asked about a graph of its own nodes in which only a few paths :math:`v_0 - v_1 - \dots - v_m` have
edges. The rows of :math:`v_0` are moved, and the reach is the last node that notices:

.. math::

    \text{hops} = \max \{ k : \partial h_{v_k} / \partial \theta_{v_0} \neq 0 \}

Forward derivatives are exactly zero where nothing is passed on, however small they are elsewhere; a finite difference
would drown in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import jvp

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.objective import NodeKind, Objective
from lightning_ifru.parameters import Parameters

#: Two paths are moved at their user's end, two at their item's end, and the fifth is only watched.
_PATHS, _MOVED = 5, 4
#: Users, and items, on a path, if there are as many: a reach of up to 21 is found.
_HALF = 12
#: Rows are drawn anew a few times, because a ReLU that is shut, or a maximum taken elsewhere, hides a hop.
_DRAWS = 3


def known_hops(objective: Objective, parameters: Parameters, declared: int | None) -> int | None:
    """Return how many edges away a node's representation reaches: as declared, or else by :func:`infer_hops`.

    Raises:
        ObjectiveError: less is declared than the experiment finds.
    """
    sizes = objective.num_users, objective.num_items
    found = infer_hops(objective.encode, parameters, objective.node_parameters, *sizes)
    if declared is None or found is None or found <= declared:
        return found if declared is None else declared
    raise ObjectiveError(
        f"{objective.name} declares message_passing_hops={declared}, and its representations reach {found} edges away; "
        f"declare {found}, or leave it out to have it found."
    )


def infer_hops(
    encode: Callable[[Parameters, Tensor], Tensor],
    parameters: Parameters,
    node_parameters: Mapping[str, NodeKind],
    num_users: int,
    num_items: int,
) -> int | None:
    r"""Return how many edges away a node's representation reaches, or ``None`` where the experiment leaves a doubt.

    A doubt is left where users, or items, in two places reach unequally far; where nodes notice that no path connects
    to the moved ones (a mean over all nodes, a norm over the graph, a graph of the encoder's own); where the reach is
    as long as the path; where the loss of an edge is noticed farther away than a moved row; where rows of users or of
    items are no parameters; where nodes are too few for five paths; and where the encoder fails on a graph that is not
    its data's. An encoder that does something else only for nodes of three edges or more is not seen through: those of
    the paths have two. It costs a few encodings of a graph with hardly any edges.

    Args:
        encode: ``(parameters, edge_index [2, 2E]) -> [num_users + num_items, d]``.
        parameters: where to ask; in place of the rows of the nodes on the paths random ones are put.
        node_parameters: for each parameter whose rows belong to users, items or nodes, to which.
        num_users: the offset of items among nodes.
        num_items: the number of items.

    Example:
        >>> from lightning_ifru.graph import propagate
        >>> rows = {"w": torch.randn(80, 4)}
        >>> infer_hops(lambda p, g: p["w"] + propagate(g, propagate(g, p["w"])), rows, {"w": "node"}, 40, 40)
        2
        >>> print(infer_hops(lambda p, g: p["w"] - p["w"].mean(0), rows, {"w": "node"}, 40, 40))
        None
    """
    half = min(_HALF, num_users // _PATHS, num_items // _PATHS)
    kinds = set(node_parameters.values())
    if half < 2 or not ("node" in kinds or {"user", "item"} <= kinds):
        return None
    paths = _paths(half, num_users, num_items).to(next(iter(parameters.values())).device)
    points = [_draw(parameters, node_parameters, num_users, paths, seed) for seed in range(_DRAWS)]
    try:
        reaches = [_reach(encode, *point, num_users, paths) for point in points]
        if any(reach is None for reach in reaches):
            return None
        first_user, second_user, first_item, second_item = (max(r) for r in zip(*filter(None, reaches), strict=True))
        hops = max(first_user, first_item)
        agree = first_user == second_user and first_item == second_item
        # A path that the reach does not end within does not show where it ends.
        within = 0 <= hops < paths.shape[1] - 2
        known = agree and within and not _loss_is_noticed_beyond(hops, encode, points[0][0], num_users, paths)
    except Exception:  # whatever an encoder of the user's own has to say of such a graph
        return None
    return hops if known else None


def _paths(half: int, num_users: int, num_items: int) -> Tensor:
    """Return the nodes of the paths, spread over all there are, ``[_PATHS, 2 * half]``; the first is to be moved."""
    count = _PATHS * half
    users, items = (torch.arange(count) * total // count for total in (num_users, num_items))
    paths = torch.stack([users, items + num_users], dim=-1).view(half, _PATHS, 2).transpose(0, 1).reshape(_PATHS, -1)
    paths[_MOVED // 2 : _MOVED] = paths[_MOVED // 2 : _MOVED].flip(1)
    return paths


def _edge_index(paths: Tensor, num_users: int) -> Tensor:
    ends = torch.stack([paths[:, :-1].reshape(-1), paths[:, 1:].reshape(-1)])
    return bipartite_edge_index(ends.amin(0), ends.amax(0) - num_users, num_users)


def _draw(
    parameters: Parameters, node_parameters: Mapping[str, NodeKind], num_users: int, paths: Tensor, seed: int
) -> tuple[Parameters, Parameters]:
    """Return parameters with random rows on the paths, and a direction in which the first nodes' rows move."""
    generator = torch.Generator().manual_seed(seed)
    point, direction = dict(parameters), {name: torch.zeros_like(p) for name, p in parameters.items()}

    def put(into: Tensor, kind: NodeKind, nodes: Tensor, scale: float) -> None:
        rows = nodes if kind == "node" else nodes[(nodes < num_users) == (kind == "user")]
        rows = rows - num_users if kind == "item" else rows
        into[rows] = (scale * torch.randn(len(rows), *into.shape[1:], generator=generator)).to(into)

    for name, kind in node_parameters.items():
        point[name] = point[name].clone()
        put(point[name], kind, paths.flatten(), float(point[name].std()) or 1.0)
        put(direction[name], kind, paths[:_MOVED, 0], 1.0)
    return point, direction


def _reach(
    encode: Callable[[Parameters, Tensor], Tensor],
    point: Parameters,
    direction: Parameters,
    num_users: int,
    paths: Tensor,
) -> list[int] | None:
    """Return for each moved path the last position that notices, -1 for none; ``None`` if others notice, too."""
    edge_index = _edge_index(paths, num_users)
    tangent = jvp(lambda p: encode(p, edge_index), (point,), (direction,))[1]
    notices = (tangent != 0).any(dim=1)  # what is not a number is not zero
    on_paths = notices[paths[:_MOVED]]
    if int(notices.sum()) > int(on_paths.sum()):
        return None
    positions = torch.arange(1, paths.shape[1] + 1, device=paths.device)
    reach: list[int] = ((on_paths * positions).amax(dim=1) - 1).tolist()
    return reach


def _loss_is_noticed_beyond(
    hops: int, encode: Callable[[Parameters, Tensor], Tensor], point: Parameters, num_users: int, paths: Tensor
) -> bool:
    """Whether a node farther than ``hops`` from both ends of each path's first edge notices that these are gone."""
    with torch.no_grad():
        whole, cut = (encode(point, _edge_index(some, num_users)) for some in (paths, paths[:, 1:]))
    beyond = torch.ones(len(whole), dtype=torch.bool, device=paths.device)
    beyond[paths[:, : hops + 2]] = False
    slack = 1e-5 * float(whole.abs().max())  # accelerators reorder sums
    return not torch.allclose(whole[beyond], cut[beyond], rtol=1e-4, atol=slack)
