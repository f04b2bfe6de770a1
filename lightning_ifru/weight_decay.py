"""The L2 penalty that an optimiser adds to the risk by itself, read from its ``weight_decay``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.parameters import Parameters


def l2_penalty(parameters: Parameters, decays: Mapping[str, float]) -> Tensor:
    r"""Return :math:`\sum_p \frac{\lambda_p}{2} \|\theta_p\|^2`, a scalar.

    Example:
        >>> l2_penalty({"w": torch.tensor([3.0, 4.0])}, {"w": 0.1})
        tensor(1.2500)
    """
    zero = next(iter(parameters.values())).new_zeros(())
    return sum((0.5 * decay * parameters[name].square().sum() for name, decay in decays.items()), start=zero)


def l2_decays(module: nn.Module, configured: Any) -> dict[str, float]:
    """Return the decay of every trainable parameter of ``module`` that has one.

    Args:
        module: the module the optimisers were made for.
        configured: what its ``configure_optimizers`` returned, in any of the forms that Lightning takes.

    Raises:
        ObjectiveError: an optimiser decays weights outside of the gradient (AdamW), or is not known not to.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> l2_decays(layer, torch.optim.Adam([layer.weight], weight_decay=0.1))
        {'weight': 0.1}
    """
    # An optimiser passes over what is frozen, which has no gradient.
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    decays: dict[str, float] = {}
    for optimizer in _optimizers(configured):
        for group in optimizer.param_groups:
            decay = float(group.get("weight_decay", 0.0))
            if decay and (not _adds_decay(optimizer) or group.get("decoupled_weight_decay")):
                raise ObjectiveError(
                    f"{type(optimizer).__name__} with weight_decay={decay:g} may decay weights outside of "
                    "the objective; train with Adam(weight_decay=...), or with weight_decay=0 and "
                    "an own regularization()."
                )
            decay += float(group.get("lambd", 0.0))  # ASGD's own: plain descent makes it a penalty, too
            decays.update({names[id(p)]: decay for p in group["params"] if decay and id(p) in names})
    return decays


_ADDING_DECAY = {
    inspect.unwrap(optimizer.step)
    for optimizer in (
        *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Adam, torch.optim.Adamax, torch.optim.NAdam),
        *(torch.optim.RAdam, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
    )
}


def _adds_decay(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser steps as one of torch's that add ``weight_decay`` times the weights to the gradient."""
    # Torch wraps the steps of a class when one is made; and its AdamW is, in newer versions, an Adam that is decoupled.
    return inspect.unwrap(type(optimizer).step) in _ADDING_DECAY


def _optimizers(configured: Any) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimisers in any of the forms that ``configure_optimizers`` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, (list, tuple)):
        for part in configured:
            yield from _optimizers(part)
