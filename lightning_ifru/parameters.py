"""Parameters as a dict of tensors, and the same as one vector for the linear algebra."""

from __future__ import annotations

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def ravel(parameters: Parameters) -> Tensor:
    """Concatenate all tensors into one vector ``[P]``, in the dict's order; a view where there is one.

    Example:
        >>> ravel({"a": torch.ones(1, 2), "b": torch.zeros(1)})
        tensor([1., 1., 0.])
    """
    pieces = [tensor.reshape(-1) for tensor in parameters.values()]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def unravel(vector: Tensor, like: Parameters) -> Parameters:
    """Cut a vector ``[P]`` into views with the names and shapes of ``like``; the inverse of :func:`ravel`.

    Example:
        >>> unravel(torch.tensor([1.0, 1.0, 0.0]), {"a": torch.ones(1, 2), "b": torch.zeros(1)})["b"]
        tensor([0.])
    """
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(tensor.shape) for piece, (name, tensor) in zip(pieces, like.items(), strict=True)}
