"""Interactions from a PyG ``HeteroData``: the edges from one node type to another, by the positions of their nodes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from lightning_ifru.errors import DataError


def node_counts(data: HeteroData, user: str, item: str) -> tuple[int, int]:
    """Return the numbers of nodes of the two types, with and without edges.

    Raises:
        DataError: If ``data`` does not say how many nodes there are.
    """
    counts = []
    for node_type in (user, item):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what PyG would warn of is refused below
            # Asking for a type that is not there would create it.
            count = data[node_type].num_nodes if node_type in data.node_types else None
        if count is None:
            raise DataError(
                f"the HeteroData does not say how many nodes of type {node_type!r} there are; set "
                f"data[{node_type!r}].num_nodes."
            )
        counts.append(int(count))
    return counts[0], counts[1]


def edge_columns(data: HeteroData, columns: dict[str, str]) -> dict[str, Any]:
    """Return the columns of the edges from users to items.

    Edges in the other direction are not read, whether there are any or not. Where a split is asked for, it is the
    edge attribute of that name, or else edges of ``edge_label_index`` are test and those of ``edge_index`` train; if
    there is an ``edge_label``, those labelled 0 are drawn negatives and no interactions.

    Args:
        data: Node types and edge types.
        columns: ``user`` and ``item``, the names of node types; possibly ``rating``, ``timestamp`` and ``split``, the
            names of edge attributes.

    Returns:
        One array of a value for each edge under each of these names.

    Raises:
        DataError: If there is not exactly one such edge type, or it lacks what is asked for.

    Example:
        >>> data = HeteroData()
        >>> data["user"].num_nodes, data["book"].num_nodes = 2, 3
        >>> data["user", "rates", "book"].edge_index = torch.tensor([[0, 1], [2, 2]])
        >>> edge_columns(data, {"user": "user", "item": "book"})
        {'user': tensor([0, 1]), 'book': tensor([2, 2])}
    """
    user, item = columns["user"], columns["item"]
    edge_type = _edge_type(data, user, item)
    store, sizes = data[edge_type], node_counts(data, user, item)
    edges = _edges(store, "edge_index", edge_type, sizes)
    attributes = {role: name for role, name in columns.items() if role not in ("user", "item")}
    held_out = None
    if "split" in attributes and "edge_label_index" in store:
        if others := [name for role, name in attributes.items() if role != "split" or name in store]:
            raise DataError(
                f"the edges {edge_type} have an edge_label_index, for which there is no {others[0]!r}; put all edges "
                f"into edge_index, with an attribute {attributes['split']!r} of train, val or test."
            )
        held_out = _edges(store, "edge_label_index", edge_type, sizes)
        if "edge_label" in store:
            label = store["edge_label"]
            if len(label) != held_out.shape[1]:
                raise DataError(
                    f"the edges {edge_type} have {len(label)} labels in edge_label for {held_out.shape[1]} edges in "
                    "edge_label_index; give each one."
                )
            held_out = held_out[:, label.detach().cpu() > 0]
        del attributes["split"]
        edges = torch.cat([edges, held_out], dim=1)
    table: dict[str, Any] = {user: edges[0], item: edges[1]}
    for role, name in attributes.items():
        if name not in store:
            names = ", ".join(map(repr, store.keys()))
            what = "edge_label_index nor " if role == "split" else ""
            raise DataError(f"the edges {edge_type} have no {what}attribute {name!r} (theirs: {names}); add it.")
        table[name] = store[name]
    if held_out is not None:
        table[columns["split"]] = ["train"] * (edges.shape[1] - held_out.shape[1]) + ["test"] * held_out.shape[1]
    return table


def _edge_type(data: HeteroData, user: str, item: str) -> tuple[str, str, str]:
    found = [edge_type for edge_type in data.edge_types if (edge_type[0], edge_type[2]) == (user, item)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"the HeteroData has {len(found)} edge types from {user!r} to {item!r} ({_listed(found)}); delete all but "
            "the one to read."
        )
    turned = [edge_type for edge_type in data.edge_types if (edge_type[0], edge_type[2]) == (item, user)]
    raise DataError(
        f"the HeteroData has no edge type from {user!r} to {item!r} (its edge types: {_listed(data.edge_types)}); "
        + (f"turn the edges {turned[0]} round." if turned else "name the types of its nodes with user= and item=.")
    )


def _listed(edge_types: list[tuple[str, str, str]]) -> str:
    return ", ".join(map(str, edge_types)) or "none"


def _edges(store: Any, name: str, edge_type: tuple[str, str, str], sizes: tuple[int, int]) -> Tensor:
    """The edges ``[2, E]`` of that name, which fit the nodes."""
    edges: Any = store.get(name)
    fits = isinstance(edges, Tensor) and edges.dim() == 2 and edges.shape[0] == 2
    if not fits or edges.is_floating_point() or edges.dtype == torch.bool:
        got = f"{list(edges.shape)} of {edges.dtype}" if isinstance(edges, Tensor) else type(edges).__name__
        raise DataError(f"the edges {edge_type} have as {name} {got}; wanted whole numbers of shape [2, E].")
    edges = edges.detach().cpu().as_subclass(Tensor)
    for row, size, node_type in zip(edges, sizes, (edge_type[0], edge_type[2]), strict=True):
        odd = (row < 0) | (row >= size)
        if odd.any():
            raise DataError(
                f"the {name} of {edge_type} names node {int(row[odd][0])} of {size} of type {node_type!r}; correct "
                f"the edges, or data[{node_type!r}].num_nodes."
            )
    return edges
