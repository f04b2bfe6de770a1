"""How well pairs are predicted that the forgotten have touched, beside all pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import check_finite, joined
from lightning_ifru.metrics.scores import auroc

_STATES = ("scores", "positive", "user_touched", "item_touched")


def affected_auroc(
    scores: Tensor, positive: Tensor, user_touched: Tensor, item_touched: Tensor
) -> dict[str, float | None]:
    """Return the AUROC on all test pairs, on those whose user or item was touched, and on those where both were.

    A user or an item is touched if one of its interactions was to be forgotten. An AUROC can rise while the model
    moves away from the retrained one: it says what forgetting costs, not that something was forgotten.

    Args:
        scores: logits ``[n]`` of the test pairs.
        positive: whether a pair's label is positive, bool ``[n]``.
        user_touched: whether a pair's user was touched by the forgotten, bool ``[n]``.
        item_touched: the same of its item, bool ``[n]``.

    Returns:
        ``"all"``, ``"or"``, ``"and"``; ``None`` where one of the two classes is missing.

    Raises:
        UnlearningError: If shapes differ, a mask is not bool, or a score is not finite.

    Source: arXiv 2307.02147 (its ``or`` and ``and`` test sets).

    Example:
        >>> positive = torch.tensor([True, False, True, False])
        >>> touched = torch.tensor([True, True, False, False]), torch.tensor([True, True, True, False])
        >>> affected_auroc(torch.tensor([2.0, 1.0, 0.0, 3.0]), positive, *touched)
        {'all': 0.25, 'or': 0.5, 'and': 1.0}
    """
    _check(scores, positive, user_touched, item_touched)
    pairs = {"all": torch.ones_like(positive), "or": user_touched | item_touched, "and": user_touched & item_touched}
    return {name: auroc(scores[some], positive[some]) for name, some in pairs.items()}


def _check(scores: Tensor, *masks: Tensor) -> None:
    """Refuse masks that do not fit, which as numbers would be taken for positions."""
    for name, mask in zip(_STATES[1:], masks, strict=True):
        if mask.dtype != torch.bool or mask.shape != scores.shape:
            raise UnlearningError(
                f"{name} is of type {mask.dtype} and shape {list(mask.shape)}; "
                f"give one bool for each of the scores {list(scores.shape)}."
            )
    check_finite(scores=scores)


class AffectedAUROC(Metric):
    """:func:`affected_auroc` over batches and processes; ``compute`` returns the same dictionary.

    Example:
        >>> metric = AffectedAUROC()
        >>> for score, positive in ((2.0, True), (1.0, False)):
        ...     metric.update(torch.tensor([score]), *torch.tensor([[positive], [True], [False]]))
        >>> metric.compute()
        {'all': 1.0, 'or': 1.0, 'and': None}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        # One type for all states: a process without a batch sends an empty tensor of the metric's own type.
        self.set_dtype(torch.float64)
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, positive: Tensor, user_touched: Tensor, item_touched: Tensor) -> None:
        """Add pairs: logits ``[n]`` and bool masks ``[n]``."""
        _check(scores, positive, user_touched, item_touched)
        for name, values in zip(_STATES, (scores, positive, user_touched, item_touched), strict=True):
            getattr(self, name).append(values.double())

    def compute(self) -> dict[str, float | None]:
        """Return the three AUROCs on all pairs so far."""
        scores, *masks = (joined(getattr(self, name)) for name in _STATES)
        return affected_auroc(scores, *(mask.bool() for mask in masks))
