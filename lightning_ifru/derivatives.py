r"""Directional derivatives of functions that autograd can differentiate once more, forwards or else backwards twice.

Forward mode costs one pass and keeps nothing, but some operations have none: Huber's loss, sparse products, attention.
They have a gradient, which is linear in what is pulled back, :math:`u \mapsto J^\top u`; the gradient of that is
:math:`J` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import jvp, vjp
from torch.utils._pytree import tree_map


class Derivative:
    """Takes directional derivatives in forward mode, and backwards from the first operation on that has none.

    Example:
        >>> from torch.nn.functional import huber_loss
        >>> gradient = torch.func.grad(lambda x: huber_loss(x, torch.zeros(2), reduction="sum"))
        >>> Derivative()(gradient, (torch.tensor([0.5, 2.0]),), (torch.ones(2),))  # no forward mode
        (tensor([0.5000, 1.0000]), tensor([1., 0.]))
    """

    def __init__(self) -> None:
        self._forward = True

    def __call__(self, function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
        """Return ``function`` at ``primals`` and :math:`J v` for ``tangents`` ``v``, both of the same shapes."""
        if self._forward:
            try:
                return jvp(function, primals, tangents)
            except NotImplementedError:
                self._forward = False
        output, pullback = vjp(function, *primals)[:2]
        (derivative,) = vjp(pullback, tree_map(torch.zeros_like, output))[1](tangents)
        return output, derivative
