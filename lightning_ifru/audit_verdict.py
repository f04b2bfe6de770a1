"""What an audit's numbers allow to be said, by rules that are written down with every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lightning_ifru.audit_report import AuditReport, Figures

#: How far a membership AUROC may lie outside the range of the retrained models'.
MEMBERSHIP_TOLERANCE = 0.01
#: Of how many people the attacked pairs must be for chance to be known.
MIN_PEOPLE = 5
#: How many times the noise floor counts as no further away than chance.
FLOOR_TOLERANCE = 1.05
#: How many times the largest distance between retrained models is surely further away than chance: two of them have
#: one distance, and the next one is not rarely half as large again.
SURELY_BEYOND = 2
#: Which share of the original's distance to retrained models counts as nothing left, whatever chance is.
NOTHING_LEFT = 0.1
#: A distance to paired models that is nothing, where chance is not known: retrained models that differ in their seed
#: differ by .009 to .05 in the published experiments and in this package's own, and no single answer between 0 and 1
#: of practical use turns on a hundredth.
NEGLIGIBLE = 0.01
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


def measured(figures: Figures, name: str) -> float:
    """Return a figure that every model has.

    Example:
        >>> measured({"membership_auroc": 0.5}, "membership_auroc")
        0.5
    """
    value = figures[name]
    assert value is not None
    return value


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
    spread = "How far chance goes cannot be told from so few people."
    if report.attack.intervals:
        low, high = map(_of_100, report.attack.intervals["unlearned"])
        spread = f"With other people like them it would lie between {low} and {high} of 100 (95 in 100)."
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
        f"The attack's figure rests on {report.attack.pairs:,} forgotten pairs of "
        f"{_count(report.attack.users, 'person')}; those of one person are not independent of each other. {spread}",
        f"One model was examined, a {report.model}. Nothing follows for other models that were trained on the same "
        "data or on this model's output.",
    ]
    if any(report.erased.values()):
        said.append(
            f"Of {_count(report.erased['users'], 'person')} and {_count(report.erased['items'], 'item')} nothing is "
            "left to be trained on: what described them was drawn anew at random. Their own pairs look forgotten by "
            "that alone, and the attack's figure on them is that of one random draw; it says little. What they have "
            "left in others is asked with the test pairs. Their descriptions are left out where inner numbers are "
            "compared."
        )
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
        "if it is nearer to it than the original's; otherwise no. A figure below the range counts as one above it: a "
        "pair that scores lower than a model would score it that never saw it, is given away as well. It cannot be "
        "said if a figure is not further from the range than chance (with other people in the place of these, 95 in "
        "100, and between retrained models; for a no, twice the latter, which takes two of them unless they are "
        f"paired), if the original's is not, if the pairs are of fewer than {MIN_PEOPLE} people, or without a "
        "retrained model."
    )
    now, then = (measured(figures, "membership_auroc") for figures in (report.unlearned, report.original))
    told = (
        f"Shown a forgotten pair and one never seen, the attacker picks the forgotten one in {_of_100(now)} of 100 "
        f"cases, with the original model in {_of_100(then)}"
    )
    reference = [measured(figures, "membership_auroc") for figures in report.retrained]
    if not reference:
        because = (
            f"{told}: the trace is {'weaker' if now < then else 'no weaker'} than before. Whether it is gone cannot be "
            "said, because what a model that never saw the pairs would give is not known without a retrained one, and "
            "is not 50: what people choose scores above what they do not, whether a model was trained on it or not."
        )
        return Finding(question, "cannot be said", because, rule)
    low, high = min(reference), max(reference)
    gap, gap_then = (max(low - value, value - high, 0.0) for value in (now, then))
    error, error_then = (report.attack.gap_errors[name] for name in ("unlearned", "original"))
    span = _of_100(low) if len(reference) == 1 else f"{_of_100(low)} to {_of_100(high)}"
    because = f"{told}, and with models that never saw them in {span}"
    answer: Answer = "cannot be said"
    if report.attack.users < MIN_PEOPLE:
        because += f". They are of {_count(report.attack.users, 'person')} only: how far chance goes cannot be told"
    elif gap_then <= max(MEMBERSHIP_TOLERANCE, error_then, high - low):
        because += ". In the original either this attack finds nothing that is beyond chance"
    elif gap <= MEMBERSHIP_TOLERANCE:
        answer = "yes"
    elif gap <= max(error, high - low):
        because += f". The difference is within chance, which is {_of_100(max(error, high - low))} of 100 here"
    elif gap < gap_then:
        answer = "partly"
    elif gap > 2 * (high - low) and (report.paired or len(reference) > 1):
        answer = "no"
    else:
        because += ". How far retrained models are from each other by chance is not known well enough"
    return Finding(question, answer, f"{because}.", rule)


def _close(report: AuditReport, pairs: str, question: str) -> Finding:
    rule = (
        f"Yes, if at most {NOTHING_LEFT:.0%} of the original's distance is left, or if the distance is at most "
        f"{FLOOR_TOLERANCE} times chance, which is the mean distance between retrained models, or at most the largest "
        f"between them; partly, if more than {1 - UNCHANGED:.0%} of what the original's has beyond chance is gone; no, "
        f"if not, and the distance is more than {SURELY_BEYOND} times the largest. It cannot be said otherwise; nor "
        "if the original's distance is within chance; nor without a retrained model, or without pairs. With one "
        "retrained model that is not paired chance is not known, and the answer is never no. For paired models chance "
        f"is taken to be 0, and an original's distance of at most {NEGLIGIBLE} to be within it."
    )
    close = report.closeness.get(pairs)
    if close is None:
        missing = "there are no such pairs" if report.retrained else "there is no retrained model to compare with"
        return Finding(question, "cannot be said", f"This was not measured: {missing}.", rule)
    now, then = close.distance["unlearned"], close.distance["original"]
    chance = 0.0 if report.paired or close.noise_floor is None else close.noise_floor
    largest = max(close.among, default=0.0)
    within = max(NEGLIGIBLE, largest) if report.paired else max(FLOOR_TOLERANCE * chance, largest)
    because = (
        f"Its answers are {now:.4f} away from those of {'paired ' if report.paired else ''}retrained models on "
        f"average, the original's {then:.4f}"
    )
    if chance:
        because += f", and those of retrained models from each other {chance:.4f}"
    if then <= within and not (report.paired and now <= NOTHING_LEFT * then):
        because += ": on these pairs the original cannot be told from a retrained model either"
        return Finding(question, "cannot be said", f"{because}.", rule)
    left = max(0.0, (now - chance) / (then - chance))
    because += f": {left:.0%} of {'what is beyond chance' if chance else 'the distance'} is left"
    unknown = not report.paired and not close.among
    if unknown:
        because += ". How much of it is chance cannot be told from one retrained model"
    answer: Answer = "cannot be said"
    if now <= NOTHING_LEFT * then or (not report.paired and now <= within):
        answer = "yes"
    elif left < UNCHANGED:
        answer = "partly"
    elif now > SURELY_BEYOND * largest and not unknown:
        answer = "no"
    elif not unknown:
        because += f". Yet it may be chance, being at most {SURELY_BEYOND} times what retrained models differ by"
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


def _count(number: int, one: str) -> str:
    many = {"person": "people"}.get(one, f"{one}s")
    return f"{number:,} {one if number == 1 else many}"


def _of_100(share: float) -> str:
    return f"{100 * share:.1f}"
