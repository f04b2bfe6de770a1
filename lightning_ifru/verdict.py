r"""When not to trust an unlearning: a verdict from what can be observed without labels, test data or a retrained model.

The *doubt* estimates which part of the way to a retrained model is left on the forgotten pairs,

.. math::  \text{doubt} = 1 - (1 - s)\, \frac{1}{1 + U}\, \frac{1}{1 + f P}

with :math:`s` the share of the forgotten for whom no step was taken, :math:`U` the share of the change of their
scores that is decided by the damping, :math:`P` the pull that training has left on them in parts of theirs (see
:mod:`lightning_ifru.looseness`), and :math:`f` the share of all training interactions forgotten since training. All are
means over the forgotten of all requests since then, so that what many small requests leave adds up. Each factor is the
part of the way that is sure in spite of one of them; what is not sure in spite of all is never more than all of it.

How well that follows the distance to retrained models is measured by ``examples/benchmarks/drift.py``, whose rule has
chosen the threshold of the doubt on a quarter of its trainings. Of the others, 43 of the 47 that come to be more than
half way from the retrained model are told in time, and 11 of the 13 that stay near are spared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lightning_ifru.errors import UnlearningError
from lightning_ifru.influence import Update
from lightning_ifru.solvers import Status

VerdictName = Literal["complete", "complete within tolerance", "retrain advised"]
COMPLETE: VerdictName = "complete"
WITHIN: VerdictName = "complete within tolerance"
ADVISED: VerdictName = "retrain advised"
#: The verdict where retraining was done.
RETRAINED = "retrained"


@dataclass(frozen=True)
class Tolerance:
    """What an unlearning may leave, and what it may do to the model.

    Args:
        complete: the doubt up to which it is complete.
        doubt: the doubt up to which it is complete within tolerance; beyond it, retraining is advised.
        removed: the share of the training interactions, forgotten since training, beyond which retraining is advised:
            the experiments that the other thresholds come from go no further.
        loss_grows: how many times as large the training objective on what stays may become by the steps; beyond it
            all is undone.
        metric_falls: the share that recall and NDCG may lose of their value, and AUROC of what lies above one half,
            where the callback evaluates and at least 100 test pairs survive; beyond it all is undone, unless there are
            fewer than 20 hits or AUROC falls by no more than two standard errors.

    Raises:
        UnlearningError: a threshold out of its range.

    Example:
        >>> Tolerance(doubt=0.2).doubt
        0.2
    """

    complete: float = 0.1
    doubt: float = 0.3
    removed: float = 0.2
    loss_grows: float = 3.0
    metric_falls: float = 0.5

    def __post_init__(self) -> None:
        domain = {"loss_grows": (1.0, math.inf)}
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), domain.get(field.name, (0.0, 1.0))
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and low <= value <= high):
                wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
                raise UnlearningError(f"Tolerance got {field.name}={value!r}; wanted {wanted}.")
        if self.complete > self.doubt:
            raise UnlearningError(
                f"Tolerance got complete={self.complete} above doubt={self.doubt}; wanted it to be at most that."
            )


@dataclass(frozen=True)
class Evidence:
    """What one request tells.

    Attributes:
        forgotten: training interactions that go.
        present: training interactions before.
        influence, left: ``‖r‖`` before and after.
        steps: accepted steps.
        moved, undecided, asked, pulled: see :class:`~lightning_ifru.looseness.Looseness`.
        negative_curvature: linear systems that were seen not to be positive definite.
        unconverged: accepted steps whose linear system was not solved to its tolerance.
        sampled: whether rows or examples around the forgotten were left out.
    """

    forgotten: int
    present: int
    influence: float
    left: float
    steps: int
    moved: float = 0.0
    undecided: float = 0.0
    asked: float = 0.0
    pulled: float = 0.0
    negative_curvature: int = 0
    unconverged: int = 0
    sampled: bool = False

    @property
    def told(self) -> bool:
        """Whether all that the doubt is made of is finite."""
        return all(map(math.isfinite, (self.moved, self.undecided, self.asked, self.pulled)))

    @classmethod
    def of(cls, update: Update, forgotten: int, present: int) -> Evidence:
        """Return what an update tells.

        Args:
            update: what the method has arrived at.
            forgotten: training interactions that go.
            present: training interactions before.
        """
        loose, extent = update.looseness, update.extent
        return cls(
            forgotten=forgotten,
            present=present,
            influence=update.residual_before,
            left=update.residual_after,
            steps=len(update.steps),
            moved=loose.moved,
            undecided=loose.undecided,
            asked=loose.asked,
            pulled=loose.pulled,
            negative_curvature=update.negative_curvature,
            unconverged=sum(step.status is Status.MAX_ITERATIONS for step in update.steps),
            sampled=extent.path == "local" and bool(extent.sampled_rows or extent.left_out > 0),
        )


@dataclass(frozen=True)
class Drift:
    """What the requests since training have left, as sums over them; a ledger's entry carries it to the next.

    Attributes:
        requests: how many.
        trained: training interactions before the first.
        forgotten: training interactions that went.
        stuck: of these, those for which no step was accepted.
        influence, left: sums of the squares of ``‖r‖`` before and after.
        moved, undecided, asked, pulled: sums over the forgotten, see :class:`~lightning_ifru.looseness.Looseness`.

    Example:
        >>> first = Drift().after(Evidence(5, 100, influence=1.0, left=0.1, steps=1, moved=0.2, undecided=0.05))
        >>> first.removed, first.undecided_share, round(first.doubt, 3)
        (0.05, 0.25, 0.2)
        >>> round(first.after(Evidence(5, 95, influence=1.0, left=1.0, steps=0)).doubt, 3)
        0.6
    """

    requests: int = 0
    trained: int = 0
    forgotten: int = 0
    stuck: int = 0
    influence: float = 0.0
    left: float = 0.0
    moved: float = 0.0
    undecided: float = 0.0
    asked: float = 0.0
    pulled: float = 0.0

    @classmethod
    def of(cls, entry: Mapping[str, Any] | None) -> Drift:
        """Return the drift that the last entry of a ledger carries; none where there is no entry, or an older one."""
        known = (entry or {}).get("drift") or {}
        return cls(**{field.name: known[field.name] for field in fields(cls) if known.get(field.name) is not None})

    def after(self, evidence: Evidence) -> Drift:
        """Return the drift after one more request; one of which nothing can be told counts as one without a step."""
        n = evidence.forgotten
        if not evidence.told:  # the sums go into ledgers, which hold finite numbers alone
            evidence = replace(evidence, steps=0, moved=0.0, undecided=0.0, asked=0.0, pulled=0.0)
        return Drift(
            requests=self.requests + 1,
            trained=self.trained or evidence.present,
            forgotten=self.forgotten + n,
            stuck=self.stuck + (n if evidence.influence and not evidence.steps else 0),
            influence=self.influence + evidence.influence**2,
            left=self.left + evidence.left**2,
            moved=self.moved + n * evidence.moved,
            undecided=self.undecided + n * evidence.undecided,
            asked=self.asked + n * evidence.asked,
            pulled=self.pulled + n * evidence.pulled,
        )

    @property
    def removed(self) -> float:
        """The share of the training interactions that went."""
        return self.forgotten / max(1, self.trained)

    @property
    def undecided_share(self) -> float:
        """:math:`U`."""
        return self.undecided / self.moved if self.moved else 0.0

    @property
    def pull(self) -> float:
        """:math:`P`."""
        return self.pulled / self.asked if self.asked else 0.0

    @property
    def unsolved(self) -> float:
        """:math:`s`."""
        return self.stuck / max(1, self.forgotten)

    @property
    def loose(self) -> float:
        """The part of the way that the damping has decided, :math:`U / (1 + U)`."""
        return self.undecided_share / (1 + self.undecided_share)

    @property
    def unfinished(self) -> float:
        """The part of the way that training has left undone, :math:`f P / (1 + f P)`."""
        undone = self.removed * self.pull
        return undone / (1 + undone)

    @property
    def doubt(self) -> float:
        """An estimate of which part of the way to a retrained model is left on the forgotten pairs."""
        return 1 - (1 - self.unsolved) * (1 - self.loose) * (1 - self.unfinished)


@dataclass(frozen=True)
class Verdict:
    """A verdict, and why, a sentence each."""

    name: VerdictName
    reasons: tuple[str, ...]


def judge(evidence: Evidence, before: Drift, tolerance: Tolerance, *, kept: bool = True) -> tuple[Verdict, Drift]:
    """Return the verdict on a request, and the drift after it.

    Args:
        evidence: what the request tells.
        before: the drift of the requests before it.
        tolerance: the thresholds.
        kept: whether the correction is kept where retraining is advised; if not, reasons say what it would have left.

    Example:
        >>> verdict, _ = judge(Evidence(1, 100, influence=1.0, left=1.0, steps=0), Drift(), Tolerance())
        >>> verdict.name, verdict.reasons[0][:47]
        ('retrain advised', 'No step brought the model nearer to having forg')
    """
    drift = before.after(evidence)
    advised, within = [*_against(evidence, drift, tolerance, kept)], [*_doubts(evidence, drift, tolerance)]
    if advised:
        return Verdict(ADVISED, (*advised, *within)), drift
    if within:
        return Verdict(WITHIN, tuple(within)), drift
    return Verdict(COMPLETE, ("Nothing that can be observed without retraining speaks against it.",)), drift


def _against(evidence: Evidence, drift: Drift, tolerance: Tolerance, kept: bool) -> Iterator[str]:
    """Reasons to retrain."""
    if evidence.influence and not evidence.steps:
        done = (
            "data and graph are without the forgotten, the weights are as they were, apart from rows of the erased, "
            "which are drawn anew"
        )
        undone = "a correction would have left the weights as they were"
        yield f"No step brought the model nearer to having forgotten: {done if kept else undone}."
    if not (evidence.told and math.isfinite(drift.doubt)):
        yield "How much may be left cannot be told: numbers that the doubt is made of are not finite."
    elif drift.doubt > tolerance.doubt and (evidence.steps or drift.requests > 1):
        yield _doubt(drift, f"more than the {tolerance.doubt:.0%} that are tolerated", kept)
    if drift.removed > tolerance.removed:
        said = "have been forgotten" if kept else "would have been forgotten by correcting"
        yield (
            f"{drift.removed:.1%} of the training interactions {said} since the model was trained, more than the "
            f"{tolerance.removed:.0%} that are tolerated."
        )


def _doubts(evidence: Evidence, drift: Drift, tolerance: Tolerance) -> Iterator[str]:
    """Reasons why it is not complete beyond doubt."""
    if tolerance.complete < drift.doubt <= tolerance.doubt:
        yield _doubt(drift, f"at most the {tolerance.doubt:.0%} that are tolerated")
    if evidence.negative_curvature:
        yield (
            "Training had not ended in a valley: the objective bent downwards from where it ended (negative curvature "
            "was met), so that a training anew could end elsewhere."
        )
    if evidence.unconverged:
        yield (
            f"{evidence.unconverged} of {evidence.steps} steps stopped before their equations were solved; a larger "
            "IFRU(cg_iterations=...) (--ifru.method.cg_iterations) lets them go on."
        )
    if evidence.sampled:
        yield (
            "The request was worked out around what is forgotten, on a sample of the data, and judged on the same; "
            "IFRU(locality='full') (--ifru.method.locality full) looks at all."
        )


def _doubt(drift: Drift, compared: str, kept: bool = True) -> str:
    parts = {
        "steps were not found": drift.unsolved,
        "training has left the weights loose, so that several changes of them explain the data equally well": (
            drift.loose
        ),
        "training was not over, and what it has left undone weighs more the more is forgotten": drift.unfinished,
    }
    over = "" if drift.requests == 1 else f" over {drift.requests} requests"
    main = max(parts, key=lambda name: parts[name])
    share = f"{drift.doubt:.0%} of the way to a retrained model"
    pairs = f"on the forgotten pairs{over}, {compared}: {main}."
    return f"About {share} may be left {pairs}" if kept else f"A correction might have left about {share} {pairs}"
