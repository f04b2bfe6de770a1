"""A module's methods as functions of its parameters, and what keeps them from being ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch_geometric.nn import MessagePassing

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.parameters import Parameters


class Stateless(nn.Module):
    """Calls a module's methods with other parameters in place of its own.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> Stateless(layer).on({"weight": torch.tensor([[2.0]])}, "forward", torch.tensor([3.0])).tolist()
        [6.0]
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, method: str, *inputs: Any) -> Tensor:
        """Call a method of the module by its name."""
        return getattr(self.module, method)(*inputs)

    def on(self, parameters: Parameters, method: str, *inputs: Any) -> Tensor:
        """Return ``module.method(*inputs)`` at ``parameters``."""
        return functional_call(self, {f"module.{name}": p for name, p in parameters.items()}, (method, *inputs))


def decoder_parameters(call: Stateless, parameters: Parameters, edge_index: Tensor) -> tuple[str, ...]:
    """Return the parameters that the scores depend on beside the representations, by asking autograd."""
    with torch.no_grad():
        h = call.on(parameters, "encode", edge_index)
    with torch.enable_grad():
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        score = call.on(leaves, "decode", h[:1], h[-1:]).sum()
        if not score.requires_grad:
            return ()
        found = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(leaves, found, strict=True) if gradient is not None)


def refuse_kept_graphs(module: nn.Module) -> None:
    """Refuse PyG layers that answer with the graph they have first seen, whatever graph they are given.

    Raises:
        ObjectiveError: there is one.
    """
    for name, part in module.named_modules():
        kept = (value is not None for key, value in vars(part).items() if key.startswith("_cached"))
        if isinstance(part, MessagePassing) and (getattr(part, "cached", False) or any(kept)):
            raise ObjectiveError(
                f"the layer '{name}' of {type(module).__name__} is a {type(part).__name__}(cached=True), which keeps "
                "the graph with what is to be forgotten; build the module with cached=False and load the weights."
            )


def check_layer_weights(name: str, weights: Any) -> None:
    """Refuse what cannot be the weights of an encoder's layers.

    Raises:
        ObjectiveError: it is no sequence of at least one finite number.
    """
    if weights is None:
        return
    numbers = isinstance(weights, (tuple, list)) and all(type(w) in (int, float) for w in weights)
    if numbers and not all(math.isfinite(w) for w in weights):
        raise ObjectiveError(
            f"{name} declares layer_weights={weights!r}, so that its weights are not finite; wanted a tuple of finite "
            "numbers: the model or its checkpoint is broken, give one whose weights are finite."
        )
    if not numbers or not weights:
        raise ObjectiveError(
            f"{name} declares layer_weights={weights!r}; wanted a tuple of finite numbers, the weight of the table "
            "itself first, or None."
        )
