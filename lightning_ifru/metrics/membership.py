"""An attacker who asks of an interaction whether it was in the training data, and how well that can be told."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import joined
from lightning_ifru.metrics.scores import auroc

MIN_MEMBERS = 20
r"""Pairs of either kind that an attack needs at least.

The standard error of an AUROC :math:`A` of :math:`m` members and :math:`n` others is

.. math::

    \sqrt{\frac{A (1 - A) + (m - 1)(Q_1 - A^2) + (n - 1)(Q_2 - A^2)}{m n}}, \qquad
    Q_1 = \frac{A}{2 - A}, \quad Q_2 = \frac{2 A^2}{1 + A}.

With 20 of each it is .09 at :math:`A = .5` and .05 at .9, so that an attack that succeeds and one that guesses are
told apart and little else; with fewer not even that. To measure one to .01 takes more than a thousand.
Source: Hanley and McNeil, *The Meaning and Use of the Area under a ROC Curve*, Radiology 143 (1982), 29-36.
"""


def membership_auroc(members: Tensor, nonmembers: Tensor) -> Tensor:
    r"""Return how well an attacker tells forgotten pairs from never-seen ones by saying "member" for high scores.

    .. math::

        P(s_{member} > s_{nonmember}) + \tfrac12 P(s_{member} = s_{nonmember})

    The number to compare it with is not one half but the retrained model's: what people have chosen scores above
    what they have not, whether a model was trained on it or not.

    Args:
        members: logits ``[n]`` of the forgotten pairs.
        nonmembers: logits ``[m]`` of pairs never seen, as of :func:`matched_nonmembers`.

    Returns:
        A float64 scalar between 0 and 1.

    Raises:
        UnlearningError: If there are fewer than :data:`MIN_MEMBERS` of either, they are no lists, or a score is not
            finite.

    Source: Yeom et al., *Privacy Risk in Machine Learning*, arXiv 1709.01604 (the attack by a threshold on the loss).

    Example:
        >>> float(membership_auroc(torch.arange(20.0) + 10, torch.arange(20.0)))
        0.875
    """
    if members.ndim != 1 or nonmembers.ndim != 1:
        raise UnlearningError(
            f"members {list(members.shape)} and nonmembers {list(nonmembers.shape)} are no lists of scores; give "
            "[n] of both."
        )
    if (fewest := min(len(members), len(nonmembers))) < MIN_MEMBERS:
        raise UnlearningError(
            f"an attack on {len(members)} forgotten pairs and {len(nonmembers)} never seen would say nothing; "
            f"{MIN_MEMBERS} of each are needed at least, {MIN_MEMBERS - fewest} more than there are."
        )
    scores = torch.cat([members, nonmembers])
    area = auroc(scores, torch.arange(len(scores), device=scores.device) < len(members))
    return torch.tensor(area, dtype=torch.float64, device=scores.device)


class MembershipAUROC(Metric):
    """:func:`membership_auroc` over batches and processes; only all pairs together must be enough for an attack.

    Example:
        >>> metric = MembershipAUROC()
        >>> for part in torch.arange(20.0).split(10):
        ...     metric.update(members=part + 10, nonmembers=part)
        >>> float(metric.compute())
        0.875
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    members: list[Tensor]
    nonmembers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # A process without a batch sends an empty tensor of the metric's own type.
        self.set_dtype(torch.float64)
        self.add_state("members", [], dist_reduce_fx="cat")
        self.add_state("nonmembers", [], dist_reduce_fx="cat")

    def update(self, members: Tensor, nonmembers: Tensor) -> None:
        """Add logits ``[n]`` of forgotten pairs and ``[m]`` of pairs never seen; either may be empty."""
        self.members.append(members.double())
        self.nonmembers.append(nonmembers.double())

    def compute(self) -> Tensor:
        """Return the AUROC of the attack on all pairs so far."""
        return membership_auroc(joined(self.members), joined(self.nonmembers))
