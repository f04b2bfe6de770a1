"""What every measure asks of its input: values that are finite, shapes that fit, and something to measure at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_ifru.errors import UnlearningError


def check_finite(**values: Tensor) -> None:
    """Refuse tensors with a value that is not finite.

    Raises:
        UnlearningError: The sentence says how many of how many, and of what.

    Example:
        >>> check_finite(scores=torch.tensor([0.5, torch.nan]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_ifru.errors.UnlearningError: 1 of 2 values of scores is not finite; measure a model ...
    """
    for name, tensor in values.items():
        if not all_finite(tensor):
            bad = tensor.numel() - int(tensor.isfinite().sum())
            raise UnlearningError(
                f"{bad} of {tensor.numel()} values of {name} {'is' if bad == 1 else 'are'} not finite; "
                "measure a model that has not diverged."
            )


def all_finite(tensor: Tensor) -> bool:
    """Return whether every value is finite.

    Example:
        >>> all_finite(torch.tensor([0.5, 1.0])), all_finite(torch.tensor([0.5, torch.nan]))
        (True, False)
    """
    # The extremes are not finite if any value is not. A mask of all values took longer than to compute the values.
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def alike(**values: Tensor) -> list[Tensor]:
    """Return the tensors in float64, in order, all finite and of one shape.

    Raises:
        UnlearningError: If shapes differ or a value is not finite.

    Example:
        >>> alike(scores=torch.zeros(2), reference=torch.zeros(3))
        Traceback (most recent call last):
        lightning_ifru.errors.UnlearningError: scores [2] and reference [3] differ in shape; measure both on the same.
    """
    if len({tensor.shape for tensor in values.values()}) > 1:
        shapes = " and ".join(f"{name} {list(tensor.shape)}" for name, tensor in values.items())
        raise UnlearningError(f"{shapes} differ in shape; measure both on the same.")
    check_finite(**values)
    return [tensor.to(torch.float64) for tensor in values.values()]


def mean(sums: Tensor) -> Tensor:
    """Return the quotient of a total and a count, ``sums [2]``.

    Raises:
        UnlearningError: If nothing was counted.

    Example:
        >>> float(mean(torch.tensor([3.0, 2.0])))
        1.5
    """
    total, count = sums
    if not count:
        raise UnlearningError("there is nothing to take a mean of; give at least one pair or row.")
    return total / count


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """Return a metric's collected values ``[n]``, whether parts of one process or already put together of several.

    Example:
        >>> joined([torch.ones(1), torch.zeros(1)]), joined([])
        (tensor([1., 0.]), tensor([], dtype=torch.float64))
    """
    return dim_zero_cat(state) if len(state) else torch.empty(0, dtype=torch.float64)
