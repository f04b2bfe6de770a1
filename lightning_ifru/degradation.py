"""Damage: steps by which the loss explodes or a metric falls are refused, whatever the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_ifru.errors import DegradationError
from lightning_ifru.verdict import Tolerance

#: Metrics are held against their bound where there are so many surviving test pairs; of fewer, one can be a fifth.
MEASURED_PAIRS = 100
#: Recall and NDCG are where they add up to so much over the users, of whom each has at most 1: of fewer hits, half can
#: go by chance.
MEASURED_HITS = 20
#: AUROC falls beyond chance where it falls by more than so many of its standard errors.
STANDARD_ERRORS = 2


def check_risk(before: float, after: float, tolerance: Tolerance) -> None:
    """Refuse steps by which the training objective on what stays has exploded.

    Raises:
        DegradationError: it has; or it is not finite.

    Example:
        >>> check_risk(0.5, 2.0, Tolerance())
        Traceback (most recent call last):
        lightning_ifru.errors.DegradationError: the training objective on what stays would go from 0.5 to 2, more ...
    """
    if math.isfinite(after) and after - before <= (tolerance.loss_grows - 1) * abs(before):
        return
    raise DegradationError(
        f"the training objective on what stays would go from {before:.3g} to {after:.3g}, more than the "
        f"{tolerance.loss_grows:g}-fold that Tolerance(loss_grows=...) (--ifru.tolerance.loss_grows) allows; nothing "
        "was changed: retrain, or force IFRU(curvature='gauss-newton', damping=1.0) for a smaller step."
    )


def check_metrics(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    pairs: int,
    users: int,
    classes: tuple[int, int],
    tolerance: Tolerance,
) -> None:
    r"""Refuse a model that would predict far worse than before, where there are 100 test pairs and 20 hits to tell.

    Of AUROC counts what lies above the one half that constant scores have, and a fall of more than two standard errors
    of such scores,

    .. math::  2 \sqrt{\frac{n_1 + n_0 + 1}{12\, n_1 n_0}}

    Args:
        before: the metrics by name, ``None`` where one is not defined.
        after: the same of the corrected model.
        pairs: the test pairs that survive.
        users: those of them who are recommended to, over whom recall and NDCG are means.
        classes: the positive and the negative pairs of the AUROC, :math:`n_1` and :math:`n_0`.
        tolerance: the bound.

    Raises:
        DegradationError: a metric would fall by more than the bound.

    Example:
        >>> check_metrics({"auroc": 0.8}, {"auroc": 0.5}, 100, 50, (50, 50), Tolerance())
        Traceback (most recent call last):
        lightning_ifru.errors.DegradationError: auroc on 100 surviving test pairs would fall from 0.800 to 0.500, by ...
    """
    if pairs < MEASURED_PAIRS:
        return
    for name, value in before.items():
        now = after[name]
        if value is None or now is None:
            continue
        nothing, share = (0.5, " of what lies above one half") if name == "auroc" else (0.0, "")
        if value - max(now, nothing) <= tolerance.metric_falls * (value - nothing):
            continue
        by_chance = value - now <= _chance(*classes) if name == "auroc" else value * users < MEASURED_HITS
        if not by_chance:
            raise DegradationError(
                f"{name} on {pairs:,} surviving test pairs would fall from {value:.3f} to {now:.3f}, by more than the "
                f"{tolerance.metric_falls:.0%}{share} that Tolerance(metric_falls=...) "
                "(--ifru.tolerance.metric_falls) allows; nothing was changed: retrain, or allow more if what is "
                "forgotten explains it."
            )


def _chance(positives: int, negatives: int) -> float:
    """By how much AUROC may fall by chance."""
    return STANDARD_ERRORS * math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
