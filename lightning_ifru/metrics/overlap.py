"""How many of the recommended items two models share."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import mean


def topk_overlap(top: Tensor, reference: Tensor) -> Tensor:
    r"""Return the share of recommended items that two models have in common, in whatever order.

    .. math::

        \frac{1}{|U|} \sum_u |A_u \cap B_u| / k

    Args:
        top: positions of the ``k`` recommended items of every user, integers ``[users, k]``.
        reference: the same, of another model.

    Returns:
        A float64 scalar between 0 and 1.

    Raises:
        UnlearningError: If there are no lists, shapes differ, a position is no integer, or a list names an item twice.

    Example:
        >>> float(topk_overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [4, 5]])))
        0.75
    """
    return mean(_shared_sums(top, reference))


def _shared_sums(top: Tensor, reference: Tensor) -> Tensor:
    """The number of shared items, and the number of places."""
    for name, lists in (("top", top), ("reference", reference)):
        if lists.ndim != 2 or lists.is_floating_point():
            raise UnlearningError(f"{name} is {lists.dtype} {list(lists.shape)}; give item positions [users, k].")
        if double := int(_repeated(lists).any(1).sum()):
            raise UnlearningError(
                f"{double} of {len(lists)} lists of {name} name an item twice; give k different ones."
            )
    if top.shape != reference.shape:
        raise UnlearningError(
            f"lists of {list(top.shape)} and {list(reference.shape)} cannot be compared; give as many of one length."
        )
    shared = _repeated(torch.cat([top, reference], dim=1)).sum()
    return torch.stack([shared.double(), shared.new_tensor(top.numel(), dtype=torch.float64)])


def _repeated(lists: Tensor) -> Tensor:
    """Where, in the sorted lists, an item equals the one before."""
    ordered = lists.sort(dim=1).values
    return ordered[:, 1:] == ordered[:, :-1]


class TopKOverlap(Metric):
    """:func:`topk_overlap` over batches of users and processes.

    Example:
        >>> metric = TopKOverlap()
        >>> metric.update(torch.tensor([[1, 2]]), torch.tensor([[2, 1]]))
        >>> metric.update(torch.tensor([[3, 4]]), torch.tensor([[4, 5]]))
        >>> float(metric.compute())
        0.75
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, top: Tensor, reference: Tensor) -> None:
        """Add the users' lists ``[users, k]`` of two models."""
        self.sums += _shared_sums(top, reference)

    def compute(self) -> Tensor:
        """Return the share over all users so far."""
        return mean(self.sums)
