"""Graphs and histories that a module keeps beside the trained weights: refused if what is to be forgotten is in them.

They hold positions and no ids, so that nothing in the checkpoint that is written would show whose they are.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.node_buffers import held_beside, node_buffers, saved_settings
from lightning_ifru.removal import Removal

if TYPE_CHECKING:
    from lightning_ifru.datamodule import InteractionDataModule
    from lightning_ifru.mixin import IFRUMixin

#: The most columns of a table of interactions: of a wider one two hold pairs by chance.
_MOST_COLUMNS = 8
#: The least part of the entries that are pairs of the data. Of other numbers some are pairs too, by chance.
_ENOUGH = 3 / 4


def check_buffers(module: IFRUMixin, data: InteractionDataModule, removal: Removal) -> None:
    """Refuse a module whose ``node_buffers`` do not fit, or that holds a graph of its own with what is to be forgotten.

    Looked at are buffers, frozen parameters, and tensors and arrays among the hyper-parameters, of any type of numbers.

    Raises:
        ObjectiveError: they do not; or one is an index of edges ``[2, E]``, a table ``[E, 2]`` of pairs with up to six
            columns more, or a matrix of pairs, sparse or not, or two are columns ``[E]`` of pairs, and one of these is
            to be forgotten.
    """
    node_buffers(module, module.node_buffers, data.num_users, data.num_items)
    known = _Known(data, removal)
    lists: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for what, tensor in _kept(module):
        if tensor.dim() == 1 and tensor.layout == torch.strided:
            lists[len(tensor)].append((what, tensor))
        elif any(known.has_pairs(columns) for columns in _tables(tensor, data)):
            _refuse(what, module)
    for group in lists.values():
        fitting = [(what, column) for what, tensor in group if (column := known.column(tensor)) is not None]
        for (what, first), (other, second) in itertools.combinations(fitting, 2):
            if known.are_pairs(first, second):
                _refuse(f"{what} with {other}", module)


class _Known:
    """The pairs of the data, and which of them go, as numbers of pairs of nodes."""

    def __init__(self, data: InteractionDataModule, removal: Removal) -> None:
        self._nodes, self._data = data.num_users + data.num_items, data
        self._gone = self._pairs(removal.rows)
        self._ends = torch.zeros(self._nodes, dtype=torch.bool)
        self._ends[self._gone // self._nodes] = True
        self._ends[self._gone % self._nodes] = True
        self._every: Tensor | None = None

    def _pairs(self, rows: Tensor) -> Tensor:
        """A number for each pair of a user and an item, and of a user and an item's node, in some rows of the table."""
        user, item = self._data.table.user[rows] * self._nodes, self._data.table.item[rows]
        return torch.cat([user + item, user + item + self._data.num_users])

    def column(self, tensor: Tensor) -> Tensor | None:
        """Positions, -1 for all that is none; nothing where most is none."""
        tensor = tensor.detach().cpu()
        tensor = tensor.double() if tensor.is_floating_point() else tensor.to(torch.int64)
        fits = (tensor >= 0) & (tensor < self._nodes) & (tensor == tensor.floor())
        if len(tensor) < 2 or fits.float().mean() < _ENOUGH:
            return None
        return tensor.where(fits, -1).to(torch.int64)

    def has_pairs(self, tensors: Tensor) -> bool:
        """Return whether two of some columns hold a history with what is to be forgotten."""
        columns = [column for tensor in tensors if (column := self.column(tensor)) is not None]
        return any(self.are_pairs(first, second) for first, second in itertools.combinations(columns, 2))

    def are_pairs(self, first: Tensor, second: Tensor) -> bool:
        """Return whether two columns hold a history with what is to be forgotten."""
        # Few rows have both ends of a pair that goes, and the rest need not be searched for any.
        some = ((first >= 0) & self._ends[first] & (second >= 0) & self._ends[second]).nonzero().squeeze(1)
        if not bool(torch.isin(self._codes(first[some], second[some]), self._gone).any()):
            return False
        if self._every is None:
            self._every = self._pairs(self._data.table.alive)
        codes = self._codes(first, second)
        found = torch.isin(codes, self._every).any(0) & (first >= 0) & (second >= 0)
        if found.float().mean() < _ENOUGH:
            return False
        # A history has each pair once, or nearly all pairs; columns of few different numbers are features.
        different = len(codes[0, found].unique())
        return different > len(first) / 2 or different > len(self._every) / 4

    def _codes(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first * self._nodes + second, second * self._nodes + first])


def _refuse(what: str, module: IFRUMixin) -> None:
    raise ObjectiveError(
        f"{what} of {type(module).__name__} is a graph of its own with what is to be forgotten in it; leave it out, "
        "and use the graph that encode is given, or self.edge_index."
    )


def _kept(module: IFRUMixin) -> Iterator[tuple[str, Tensor]]:
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    for name, tensor in held_beside(module):
        yield f"the {'buffer' if name in buffers else 'frozen parameter'} '{name}'", tensor
    seen: set[int] = set()
    for settings in saved_settings(module):
        for name, value in settings.items():
            for tensor in _tensors_below(value, seen):
                yield f"the hyper-parameter '{name}'", tensor


def _tensors_below(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, (Tensor, np.ndarray)):
        if id(value) not in seen and (isinstance(value, Tensor) or value.dtype.kind in "iufb"):
            seen.add(id(value))
            yield torch.as_tensor(value if isinstance(value, Tensor) else value.astype(np.float64))
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            if not isinstance(part, (str, int, float)):
                yield from _tensors_below(part, seen)


def _tables(tensor: Tensor, data: InteractionDataModule) -> Iterator[Tensor]:
    """What of a tensor may be columns of pairs, in all ways in which it may be read."""
    users, items, nodes = data.num_users, data.num_items, data.num_users + data.num_items
    if tensor.layout != torch.strided:
        yield tensor.detach().to_sparse_coo().coalesce().indices()
    elif tensor.shape in ((users, items), (items, users), (nodes, nodes)):
        # What has far more entries than there are pairs is no graph, and its places would take all memory.
        if int(tensor.count_nonzero()) <= 3 * int(data.table.alive.sum()):
            yield tensor.nonzero().T
    elif tensor.dim() == 2 and not tensor.is_complex() and tensor.dtype != torch.bool:
        for columns in (tensor, tensor.T):
            if 2 <= len(columns) <= _MOST_COLUMNS:
                yield columns
