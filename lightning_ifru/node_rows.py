"""Which parameters hold a row for every user, item or node, and what such a row is before training."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.objective import NodeKind


def node_kinds(
    module: nn.Module, declared: Mapping[str, NodeKind] | None, num_users: int, num_items: int
) -> dict[str, NodeKind]:
    """Return the kind of rows of every trainable parameter of ``module`` that holds rows of nodes.

    Args:
        module: the model.
        declared: what it declares; ``None``: embedding tables with as many rows as there are users, items or both.
        num_users: the number of users in the data.
        num_items: the number of items.

    Raises:
        ObjectiveError: the declaration does not fit, or a parameter's size fits and leaves a doubt.

    Example:
        >>> node_kinds(nn.ModuleDict({"user": nn.Embedding(3, 2), "scale": nn.Linear(2, 2)}), None, 3, 4)
        {'user.weight': 'user'}
    """
    sizes: dict[NodeKind, int] = {"node": num_users + num_items, "user": num_users, "item": num_items}
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if declared is not None:
        # torch.compile of a part puts "_orig_mod." into the names of what is in it.
        actual = {name.replace("_orig_mod.", ""): name for name in named}
        declared = {actual.get(name, name): kind for name, kind in declared.items()}
        for name, kind in declared.items():
            got = tuple(named[name].shape) if name in named else None
            if kind not in sizes or not got or got[0] != sizes[kind]:
                raise ObjectiveError(
                    f"{type(module).__name__}.node_parameters names '{name}' as rows of every {kind}; got shape "
                    f"{got}, wanted a trainable parameter with as many rows as its kind has: {sizes}."
                )
        return dict(declared)
    tables = {f"{name}.weight".lstrip(".") for name, m in module.named_modules() if isinstance(m, nn.Embedding)}
    kinds: dict[str, NodeKind] = {}
    for name, parameter in named.items():
        fitting = [kind for kind, size in sizes.items() if parameter.dim() and parameter.shape[0] == size]
        if not fitting and name in tables and parameter.shape[0] >= min(sizes.values()):
            raise ObjectiveError(
                f"the embedding '{name}' of {type(module).__name__} has {parameter.shape[0]} rows, and the data have "
                f"{num_users} users and {num_items} items; build it without spare rows, so that a forgotten person's "
                "can be found, or declare node_parameters = {...} without it if it holds nobody's."
            )
        if not fitting:
            continue
        if len(fitting) > 1 or name not in tables:
            raise ObjectiveError(
                f"the parameter '{name}' of {type(module).__name__}, shape {tuple(parameter.shape)}, may hold a row "
                f"for every {' or '.join(fitting)}; say which parameters do: node_parameters = {{'{name}': "
                f"'{fitting[0]}'}}, or {{}} for none."
            )
        kinds[name] = fitting[0]
    return kinds


def fresh_rows(module: nn.Module, name: str, rows: Tensor, seed: int) -> Tensor:
    """Return rows ``[n, d]`` of a parameter as the outermost module on the way to it initialises them.

    Args:
        module: the model.
        name: the parameter, as in ``named_parameters``.
        rows: positions ``[n]`` in its first dimension.
        seed: of the random numbers; the global generator is left alone.

    Raises:
        ObjectiveError: no module on the way has a ``reset_parameters``.
    """
    path = name.split(".")
    for depth in range(len(path)):
        owner = module.get_submodule(".".join(path[:depth]))
        if callable(getattr(owner, "reset_parameters", None)):
            break
    else:
        raise ObjectiveError(
            f"no module on the way to '{name}' of {type(module).__name__} has reset_parameters, so that the rows of "
            "erased users cannot be drawn anew; define reset_parameters() or override initial_rows()."
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        fresh = copy.deepcopy(owner).cpu()
        fresh.reset_parameters()  # type: ignore[operator]
        return fresh.get_parameter(".".join(path[depth:]))[rows.cpu()].detach()
