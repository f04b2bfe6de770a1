"""What a module holds of its nodes beside the trained weights: features, of which the rows of the erased are cleared.

Buffers, frozen parameters and tensors among the hyper-parameters are written into every checkpoint. Zeros do no harm
there: who is erased has no edge along which a message could go, is in no batch, and is not recommended. Only a layer
that takes a mean over all nodes, whether they have edges or not, sees the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.objective import NodeKind
from lightning_ifru.removal import Removal

if TYPE_CHECKING:
    from lightning_ifru.datamodule import InteractionDataModule
    from lightning_ifru.mixin import IFRUMixin

#: Packages whose layers have buffers of columns, such as running means, and none of nodes.
_LAYERS = ("torch", "torch_geometric", "torchmetrics")


def node_buffers(
    module: nn.Module, declared: Mapping[str, NodeKind] | None, num_users: int, num_items: int
) -> dict[str, NodeKind]:
    """Return the kind of rows of every buffer and frozen parameter that holds rows of nodes.

    Args:
        module: the model.
        declared: what it declares; ``None``: frozen embedding tables, and buffers and frozen parameters of modules of
            one's own, with as many rows as there are users, items or both, where that leaves no doubt.
        num_users: the number of users in the data.
        num_items: the number of items.

    Raises:
        ObjectiveError: the declaration does not fit.

    Example:
        >>> module = nn.Sequential(nn.BatchNorm1d(3), nn.Embedding(4, 2).requires_grad_(False))
        >>> module.register_buffer("features", torch.ones(3, 5))
        >>> node_buffers(module, None, 3, 4)
        {'features': 'user', '1.weight': 'item'}
    """
    sizes: dict[NodeKind, int] = {"node": num_users + num_items, "user": num_users, "item": num_items}
    held = dict(held_beside(module))
    if declared is not None:
        for name, kind in declared.items():
            got = tuple(held[name].shape) if name in held else None
            if kind not in sizes or not got or got[0] != sizes[kind]:
                raise ObjectiveError(
                    f"{type(module).__name__}.node_buffers names '{name}' as rows of every {kind}; got shape {got}, "
                    f"wanted a buffer or frozen parameter with as many rows as its kind has: {sizes}."
                )
        return dict(declared)
    kinds = {}
    for name, tensor in held.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        layer = type(owner).__module__.partition(".")[0] in _LAYERS
        fitting = [kind for kind, size in sizes.items() if tensor.dim() and len(tensor) == size]
        if len(fitting) == 1 and (not layer or isinstance(owner, nn.Embedding) or owner is module):
            kinds[name] = fitting[0]
    return kinds


def clear_rows(module: IFRUMixin, data: InteractionDataModule, removal: Removal) -> None:
    """Set to zero what a module holds of those whom a removal has left without any interaction.

    Tensors are replaced and not written to, for they may be the caller's own.

    Args:
        module: the model.
        data: from which the removal has been taken.
        removal: what was removed.
    """
    users = removal.users[data.table.by_user.counts[removal.users] == 0]
    items = removal.withdrawn
    if not (len(users) or len(items)):
        return
    rows: dict[NodeKind, Tensor] = {"user": users, "item": items, "node": torch.cat([users, items + data.num_users])}
    kinds = node_buffers(module, module.node_buffers, data.num_users, data.num_items)
    for name, kind in kinds.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = _cleared(owner.get_buffer(leaf), rows[kind])
        else:
            frozen = owner.get_parameter(leaf)
            frozen.data = _cleared(frozen.data, rows[kind])
    if kinds:
        rank_zero_info(f"Cleared the rows of the erased in {', '.join(kinds)}; node_buffers says which hold any.")
    names = {name.rpartition(".")[2]: kind for name, kind in kinds.items()}
    sizes: dict[int, NodeKind] = {}
    if module.node_buffers is None and data.num_users != data.num_items:
        sizes = {data.num_users: "user", data.num_items: "item", data.num_users + data.num_items: "node"}
    for settings in saved_settings(module):
        for name, value in settings.items():
            settings[name] = _cleared_below(value, names.get(name), sizes, rows)


def saved_settings(module: object) -> list[dict[str, Any]]:
    """Return the hyper-parameters that Lightning keeps of a module: those now, and those that loggers get again."""
    found = (getattr(module, name, None) for name in ("_hparams", "_hparams_initial"))
    return [settings for settings in found if isinstance(settings, dict)]


def held_beside(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module holds beside the trained weights, by name: buffers and frozen parameters."""
    yield from module.named_buffers(remove_duplicate=False)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            yield name, parameter


def _cleared_below(
    value: Any, named: NodeKind | None, sizes: Mapping[int, NodeKind], rows: Mapping[NodeKind, Tensor]
) -> Any:
    """A setting with the rows of the erased cleared, also in dicts and lists, which are the caller's own."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        whose = named or sizes.get(len(value))
        return value if whose is None else _cleared(value, rows[whose])
    if isinstance(value, dict):
        below = {key: _cleared_below(part, None, sizes, rows) for key, part in value.items()}
        if all(below[key] is part for key, part in value.items()):
            return value
        changed = value.copy()
        changed.update(below)
        return changed
    if type(value) in (list, tuple):
        parts = [_cleared_below(part, None, sizes, rows) for part in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(parts)
    return value


def _cleared(value: Any, rows: Tensor) -> Any:
    if not isinstance(value, Tensor):
        value = value.copy()
        value[rows.numpy()] = 0
        return value
    rows = rows.to(value.device)
    if value.layout != torch.strided:
        entries = value.detach().to_sparse_coo().coalesce()
        kept = ~torch.isin(entries.indices()[0], rows)
        parts = entries.indices()[:, kept], entries.values()[kept]
        cleared = torch.sparse_coo_tensor(*parts, value.shape, is_coalesced=True)
        return cleared if value.layout == torch.sparse_coo else cleared.to_sparse(layout=value.layout)
    value = value.detach().clone()
    value[rows] = 0
    return value
