r"""How far a model's scores are from those of a model retrained without the forgotten: distance, ratio, noise floor.

All scores are logits, and all distances are between their sigmoids. Every class adds up sums in float64, so that
chunks, batches and processes give what one call on everything gives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import alike, check_finite, mean


def score_distance(scores: Tensor, reference: Tensor) -> Tensor:
    r"""Return how far scores are from a reference, on average: of two retrained models this is the *noise floor*.

    .. math::

        \frac{1}{n} \sum_i |\sigma(s_i) - \sigma(r_i)|

    Args:
        scores: logits ``[n]``.
        reference: logits ``[n]`` of another model for the same pairs.

    Returns:
        A float64 scalar between 0 and 1.

    Raises:
        UnlearningError: If there are no pairs, shapes differ, or a score is not finite.

    Example:
        >>> float(score_distance(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 99.0])))
        0.25
    """
    return mean(_distance_sums(scores, reference))


def noise_floor(retrained: Tensor) -> Tensor:
    r"""Return how far retrained models that differ in nothing but the seed are from each other, on average.

    .. math::

        \frac{2}{m (m - 1)} \sum_{a < b} \frac{1}{n} \sum_i |\sigma(s^a_i) - \sigma(s^b_i)|

    No unlearning can be told from retraining below this distance, unless the two are paired.

    Args:
        retrained: logits ``[m, n]`` of ``m`` models for the same pairs.

    Returns:
        A float64 scalar between 0 and 1.

    Raises:
        UnlearningError: If there are fewer than two models, no pairs, or a score is not finite.

    Example:
        >>> float(noise_floor(torch.tensor([[0.0], [0.0], [99.0]])))
        0.3333333333333333
    """
    return mean(_floor_sums(retrained))


def completeness_ratio(unlearned: Tensor, original: Tensor, retrained: Tensor) -> Tensor:
    r"""Return which share of the original model's distance to the retrained one unlearning leaves.

    .. math::

        \rho = \frac{\sum_i |\sigma(u_i) - \sigma(r_i)|}{\sum_i |\sigma(o_i) - \sigma(r_i)|}

    1 is having done nothing, 0 is having retrained, and above 1 the model has moved away. With another denominator,
    such as the original model on the graph without the forgotten, give that as ``original``.

    Args:
        unlearned: logits ``[n]`` of the model that was to forget.
        original: logits ``[n]`` of the model it was made from.
        retrained: logits ``[n]`` of the model that never saw the forgotten.

    Returns:
        A float64 scalar, 0 or more.

    Raises:
        UnlearningError: If original and retrained score alike, shapes differ, or a score is not finite.

    Example:
        >>> original, retrained = torch.tensor([0.0, 0.0]), torch.tensor([99.0, -99.0])
        >>> float(completeness_ratio(torch.tensor([99.0, 0.0]), original, retrained))
        0.5
    """
    return _ratio(_ratio_sums(unlearned, original, retrained))


def change_cosine(unlearned: Tensor, original: Tensor, retrained: Tensor) -> Tensor:
    r"""Return whether unlearning moves scores in the direction in which retraining moves them.

    .. math::

        \cos(\bar{u}, \bar{r}), \qquad
        \bar{u}_i = \frac{1}{m} \sum_s \sigma(u^s_i) - \sigma(o^s_i), \qquad
        \bar{r}_i = \frac{1}{m} \sum_s \sigma(r^s_i) - \sigma(o^s_i)

    The changes are averaged over paired seeds ``s`` first, because a single retraining's change is mostly noise.

    Args:
        unlearned: logits ``[n]``, or ``[m, n]`` of as many seeds.
        original: logits of the same shape; seed by seed the model that was unlearned.
        retrained: logits of the same shape; seed by seed paired with the original.

    Returns:
        A float64 scalar between -1 and 1.

    Raises:
        UnlearningError: If one of the two does not change any score, there is none, shapes differ, or a score is
            not finite.

    Example:
        >>> original, retrained = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> round(float(change_cosine(torch.tensor([2.0, 2.0]), original, retrained)), 4)
        0.7071
    """
    return _cosine(_change_products(unlearned, original, retrained))


def _distance_sums(scores: Tensor, reference: Tensor) -> Tensor:
    """The sum of distances and the number of pairs."""
    one, other = (each.sigmoid() for each in alike(scores=scores, reference=reference))
    return torch.stack([(one - other).abs().sum(), one.new_tensor(one.numel())])


def _floor_sums(retrained: Tensor) -> Tensor:
    """The sum of distances, each the mean over pairs of models, and the number of pairs of nodes."""
    if retrained.ndim != 2 or len(retrained) < 2:
        raise UnlearningError(
            f"a noise floor needs the scores [m, n] of two retrained models at least, not {list(retrained.shape)}; "
            "retrain with another seed."
        )
    check_finite(retrained=retrained)
    models, p = len(retrained), retrained.double().sigmoid()
    apart = torch.stack([(p[a] - p[a + 1 :]).abs().sum() for a in range(models - 1)]).sum()
    return torch.stack([apart / (models * (models - 1) / 2), p.new_tensor(p.shape[1])])


def _ratio_sums(unlearned: Tensor, original: Tensor, retrained: Tensor) -> Tensor:
    """The unlearned model's sum of distances to the retrained one, and the original's."""
    u, o, r = (each.sigmoid() for each in alike(unlearned=unlearned, original=original, retrained=retrained))
    return torch.stack([(u - r).abs().sum(), (o - r).abs().sum()])


def _ratio(sums: Tensor) -> Tensor:
    left, before = sums
    if not before:
        raise UnlearningError(
            "the original and the retrained model score alike, so that nothing is there to be completed; "
            "compare on pairs that the forgotten have an influence on."
        )
    return left / before


def _change_products(unlearned: Tensor, original: Tensor, retrained: Tensor) -> Tensor:
    """The products of the seeds' mean changes: of the two, of unlearning's with itself, of retraining's."""
    u, o, r = (each.sigmoid() for each in alike(unlearned=unlearned, original=original, retrained=retrained))
    if o.ndim not in (1, 2):
        raise UnlearningError(f"scores are of shape {list(o.shape)}; give [n] of one seed or [seeds, n] of several.")
    if not o.numel():
        raise UnlearningError(f"scores of shape {list(o.shape)} have no direction; give at least one pair and seed.")
    moved, wanted = ((after - o).view(-1, o.shape[-1]).mean(0) for after in (u, r))
    return torch.stack([moved @ wanted, moved @ moved, wanted @ wanted])


def _cosine(products: Tensor) -> Tensor:
    both, moved, wanted = products
    for square, who in ((moved, "unlearning"), (wanted, "retraining")):
        if not square:
            raise UnlearningError(f"{who} has changed no score, and no change has no direction; compare other models.")
    return (both / (moved.sqrt() * wanted.sqrt())).clamp(-1.0, 1.0)


class ScoreDistance(Metric):
    """:func:`score_distance` over chunks of pairs and processes.

    Example:
        >>> metric = ScoreDistance()
        >>> metric.update(torch.tensor([0.0]), torch.tensor([0.0]))
        >>> metric.update(torch.tensor([0.0]), torch.tensor([99.0]))
        >>> float(metric.compute())
        0.25
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, reference: Tensor) -> None:
        """Add the pairs' logits ``[n]`` of two models."""
        self.sums += _distance_sums(scores, reference)

    def compute(self) -> Tensor:
        """Return the mean distance of all pairs so far."""
        return mean(self.sums)


class NoiseFloor(Metric):
    """:func:`noise_floor` over chunks of pairs and processes; every chunk holds the scores of all models.

    Example:
        >>> metric = NoiseFloor()
        >>> metric.update(torch.tensor([[0.0], [99.0]]))
        >>> float(metric.compute())
        0.5
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, retrained: Tensor) -> None:
        """Add the pairs' logits ``[m, n]`` of the retrained models."""
        self.sums += _floor_sums(retrained)

    def compute(self) -> Tensor:
        """Return the noise floor on all pairs so far."""
        return mean(self.sums)


class CompletenessRatio(Metric):
    """:func:`completeness_ratio` over chunks of pairs and processes: the ratio of all sums, not a mean of ratios.

    Example:
        >>> metric = CompletenessRatio()
        >>> for logit in (99.0, 0.0):
        ...     metric.update(torch.tensor([logit]), original=torch.zeros(1), retrained=torch.tensor([99.0]))
        >>> float(metric.compute())
        0.5
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, unlearned: Tensor, original: Tensor, retrained: Tensor) -> None:
        """Add the pairs' logits ``[n]`` of the three models."""
        self.sums += _ratio_sums(unlearned, original, retrained)

    def compute(self) -> Tensor:
        """Return the ratio on all pairs so far."""
        return _ratio(self.sums)


class ChangeCosine(Metric):
    """:func:`change_cosine` over chunks of pairs and processes.

    Every chunk holds *all* paired seeds of its pairs, ``[seeds, n]``, because changes are averaged over seeds before
    they are multiplied; what is added up over chunks are the three products of which the cosine is made.

    Example:
        >>> metric = ChangeCosine()
        >>> for unlearned, retrained in ((2.0, 1.0), (2.0, 0.0)):
        ...     metric.update(torch.tensor([unlearned]), torch.zeros(1), torch.tensor([retrained]))
        >>> round(float(metric.compute()), 4)
        0.7071
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    products: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("products", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, unlearned: Tensor, original: Tensor, retrained: Tensor) -> None:
        """Add the pairs' logits ``[n]`` or ``[seeds, n]`` of the three models."""
        self.products += _change_products(unlearned, original, retrained)

    def compute(self) -> Tensor:
        """Return the cosine on all pairs so far."""
        return _cosine(self.products)
