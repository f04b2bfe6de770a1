"""What an audit's numbers allow to be said, by rules that are written down with every answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_ifru.audit_report import AuditReport

#: How far a membership AUROC may lie outside the range of the retrained models'.
MEMBERSHIP_TOLERANCE = 0.01
#: How many times the noise floor counts as no further away than chance.
FLOOR_TOLERANCE = 1.05
#: Which share of the original's distance to a paired retrained model counts as nothing left.
PAIRED_TOLERANCE = 0.1
#: Which share of the original's distance beyond chance counts as all of it.
UNCHANGED = 0.9
#: How far the AUROC on test pairs may lie below the one it is compared with.
AUROC_TOLERANCE = 0.002

Answer = Literal["yes", "partly", "no", "cannot be said"]


@dataclass(frozen=True)
class Finding:
    """A question of the audit, the answer, the numbers it rests on, and the rule by which it follows from them."""

    question: str
    answer: Answer
    because: str
    rule: str


def standard_error(auroc: float, pairs: int) -> float:
    r"""Return how much an AUROC of ``pairs`` members and as many others varies by chance (Hanley and McNeil, 1982).

    .. math::

        \sqrt{\frac{A (1 - A) + (n - 1)(Q_1 + Q_2 - 2 A^2)}{n^2}}, \qquad
        Q_1 = \frac{A}{2 - A}, \quad Q_2 = \frac{2 A^2}{1 + A}

    Example:
        >>> round(standard_error(0.5, 20), 3), round(standard_error(0.5, 2000), 3)
        (0.092, 0.009)
    """
    spread = auroc / (2 - auroc) + 2 * auroc**2 / (1 + auroc) - 2 * auroc**2
    return math.sqrt(max(0.0, auroc * (1 - auroc) + (pairs - 1) * spread)) / pairs


def findings(report: AuditReport) -> list[Finding]:
    """Return the answers in the order of the page: the attack, the forgotten pairs, the test pairs, the usefulness."""
    return [
        _attack(report),
        _close(report, "forgotten", "Does the model answer about the forgotten pairs like one that never saw them?"),
        _close(report, "test", "Does the model answer about what remains like one that never saw them?"),
        _useful(report),
    ]


def headline(found: Sequence[Finding]) -> str:
    """Return the verdict in one or two sentences; the usefulness, which says nothing of forgetting, is left out.

    Example:
        >>> found = [Finding("Is it so?", answer, "", "") for answer in ("yes", "yes", "partly", "no")]
        >>> headline(found)[:47]
        'The measurements agree with forgetting in part:'
    """
    answers = {finding.answer for finding in found[:3]}
    if answers == {"yes"}:
        return (
            "In everything measured here the model behaves like one that was trained without the forgotten pairs. This "
            "is what successful forgetting looks like; it is no proof of it."
        )
    if "no" in answers:
        return (
            "At least one measurement speaks against the model having forgotten. It should not be relied on as having "
            "forgotten before the reason is known."
        )
    if answers == {"cannot be said"}:
        return (
            "Whether the model has forgotten cannot be said from what was given to this audit; the reasons stand with "
            "each question."
        )
    return (
        "The measurements agree with forgetting in part: something of the forgotten pairs may be left, or could not be "
        "judged. Which it is stands with each question."
    )


def limits(report: AuditReport) -> list[str]:
    """Return what the audit does not prove, given what was measured."""
    error = standard_error(report.unlearned["membership_auroc"] or 0.5, report.num_attacked)
    count = len(report.retrained)
    said = [
        "It is a measurement and no proof. That no trace was found by these means does not show that there is none.",
        "Only the files listed here were examined. Other copies of the model, backups, older checkpoints, logs, "
        "caches, stored recommendations and exported embeddings were not. The original checkpoint still remembers.",
        "Whether the data were deleted where they are stored, and by others to whom they were passed on, is no part "
        "of this audit.",
        "One attack was tried: an attacker who sees scores and takes high ones for memories. Stronger attacks were "
        "not: ones with models of the attacker's own, ones that read the parameters, and ones that compare the model "
        "before and after, for which whoever kept both has the means.",
        "The numbers are averages over pairs. An average can hide single pairs, and single people, about whom the "
        "model still knows something.",
        f"By chance alone the attack's figure varies by about ±{1.96 * error:.3f}, because {report.num_attacked:,} "
        "forgotten pairs could be used for it.",
        f"One model was examined, a {report.model}. Nothing follows for other models that were trained on the same "
        "data or on this model's output.",
    ]
    if count == 0:
        said.append(
            "There was no retrained model to compare with. How complete the forgetting is was therefore not measured "
            "at all, and the attack's figure has nothing to be compared with but the original's."
        )
    else:
        said.append(
            "That the retrained models were trained without the forgotten pairs is what their files say of their data; "
            "how they were trained, the audit cannot see."
        )
    if count == 1 and not report.paired:
        said.append(
            "There was one retrained model. Two models retrained with different seeds differ as well; by how much is "
            "not known here, so that the distances have no scale."
        )
    if report.paired:
        said.append(
            "That the retrained models are paired (the same initial weights, order and negatives as the original) is "
            "what was declared; the audit cannot check it. One original has one pairing, so the direction of change is "
            "compared with the mean of the retrained models and not averaged over several originals."
        )
    if report.implicit:
        said.append(
            "The model ranks and does not estimate probabilities: its scores between 0 and 1 can be compared with one "
            "another, but are no chances of anything."
        )
    return said


def _attack(report: AuditReport) -> Finding:
    question = "Does an attacker learn no more about the forgotten pairs than from a model that never saw them?"
    rule = (
        f"Yes, if the attack's figure is within {MEMBERSHIP_TOLERANCE} of the range of the retrained models'; partly, "
        "if it is nearer to it than the original's; otherwise no. It cannot be said if the attack finds nothing in the "
        "original either, or if there is no retrained model."
    )
    now, then = (figures["membership_auroc"] or 0.0 for figures in (report.unlearned, report.original))
    told = (
        f"Shown a forgotten pair and one never seen, the attacker picks the forgotten one in {_of_100(now)} of 100 "
        f"cases, with the original model in {_of_100(then)}"
    )
    reference = [figures["membership_auroc"] or 0.0 for figures in report.retrained]
    if not reference:
        because = (
            f"{told}: the trace is {'weaker' if now < then else 'no weaker'} than before. Whether it is gone cannot be "
            "said, because what a model that never saw the pairs would give is not known without a retrained one, and "
            "is not 50: what people choose scores above what they do not, whether a model was trained on it or not."
        )
        return Finding(question, "cannot be said", because, rule)
    low, high = min(reference), max(reference)
    gap, gap_then = (max(low - value, value - high, 0.0) for value in (now, then))
    span = _of_100(low) if len(reference) == 1 else f"{_of_100(low)} to {_of_100(high)}"
    because = f"{told}, and with models that never saw them in {span}."
    if gap <= MEMBERSHIP_TOLERANCE and gap_then <= MEMBERSHIP_TOLERANCE:
        return Finding(question, "cannot be said", f"{because} This attack finds nothing in the original either.", rule)
    answer: Answer = "yes" if gap <= MEMBERSHIP_TOLERANCE else "partly" if gap < gap_then else "no"
    return Finding(question, answer, because, rule)


def _close(report: AuditReport, pairs: str, question: str) -> Finding:
    rule = (
        "Chance is the distance between retrained models, and 0 for paired ones or if there is only one. Yes, if the "
        f"distance is at most {FLOOR_TOLERANCE} times chance, or {PAIRED_TOLERANCE} of the original's for paired ones; "
        f"partly, if at least {1 - UNCHANGED:.0%} of what the original's has beyond chance is gone; otherwise no. It "
        "cannot be said if the original's is no more than chance either, without a retrained model, or without pairs."
    )
    close = report.closeness.get(pairs)
    if close is None:
        missing = "there are no such pairs" if report.retrained else "there is no retrained model to compare with"
        return Finding(question, "cannot be said", f"This was not measured: {missing}.", rule)
    now, then = close.distance["unlearned"], close.distance["original"]
    chance = 0.0 if report.paired or close.noise_floor is None else close.noise_floor
    because = (
        f"Its answers are {now:.4f} away from those of {'paired ' if report.paired else ''}retrained models on "
        f"average, the original's {then:.4f}"
    )
    if chance:
        because += f", and those of retrained models from each other {chance:.4f}"
    if then <= FLOOR_TOLERANCE * chance:
        because += ": on these pairs the original cannot be told from a retrained model either"
        return Finding(question, "cannot be said", f"{because}.", rule)
    left = max(0.0, (now - chance) / (then - chance))
    because += f": {left:.0%} of {'what is beyond chance' if chance else 'the distance'} is left"
    if not report.paired and not chance:
        because += ". How much of it is chance cannot be told from one retrained model"
    near = now <= (FLOOR_TOLERANCE * chance if chance else PAIRED_TOLERANCE * then if report.paired else 0.0)
    answer: Answer = "yes" if near else "partly" if left <= UNCHANGED else "no"
    return Finding(question, answer, f"{because}.", rule)


def _useful(report: AuditReport) -> Finding:
    others = report.retrained or [report.original]
    name = "retrained models" if report.retrained else "the original model"
    question = f"Does the model still predict as well as {name}?"
    rule = f"Yes, if the AUROC on all test pairs is at most {AUROC_TOLERANCE} below theirs on average; otherwise no."
    now, reference = report.unlearned["auroc"], [figures["auroc"] for figures in others]
    known = [value for value in reference if value is not None]
    if now is None or not known:
        return Finding(question, "cannot be said", "There are no test pairs of both kinds, liked and not liked.", rule)
    wanted = sum(known) / len(known)
    because = f"AUROC on the test pairs that remain: {now:.4f}, of {name} {wanted:.4f}."
    return Finding(question, "yes" if now >= wanted - AUROC_TOLERANCE else "no", because, rule)


def _of_100(share: float) -> str:
    return f"{100 * share:.1f}"
