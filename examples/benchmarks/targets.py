"""What the numbers must reach, and whether they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from rows import Row
from summary import OURS, Estimate, averaged, difference, jackknife, metric, number, ordered, speeds, those

_NAMES = {
    "mf-bce": "MF",
    "lightgcn1-bce": "LightGCN-1",
    "lightgcn2-bce": "LightGCN-2",
    "mf-bpr": "MF",
    "lightgcn2-bpr-weak": "LightGCN-2, weakly regularised",
    "lightgcn2-bpr": "LightGCN-2, well regularised",
    "lightgcn3-published": "LightGCN-3, as published",
}
_PAIRS = {"test": "test pairs", "forgotten": "forgotten pairs", "random": "random pairs"}
_FLIPPED = {"suite": "flipped", "deletion": "flipped 2%"}
_ONE_PERCENT = {"suite": "deletions", "deletion": "interactions 1%"}


@dataclass(frozen=True)
class Target:
    """A line of the table.

    Attributes:
        what: what is measured, and on what.
        before: what was known before.
        limit: what is to be reached, in words.
        found: what was found, in words; ``None`` if nothing was measured.
        verdict: ``not measured``; or by the mean, ``reached`` or ``**missed**``, and ``within the interval`` where the
            limit lies in the 95% interval.
    """

    what: str
    before: str
    limit: str
    found: str | None = None
    verdict: str = "not measured"


def verdict(value: Estimate, least: float = -math.inf, most: float = math.inf) -> str:
    """Return in words whether a mean is within its limits, and whether its interval says so, too.

    Example:
        >>> verdict(Estimate(0.2, 0.01, 5), most=0.25), verdict(Estimate(0.2, 0.1, 5), least=0.25)
        ('reached', '**missed**, within the interval')
    """
    word = "reached" if least <= value.mean <= most else "**missed**"
    unsure = value.half is not None and any(abs(value.mean - limit) < value.half for limit in (least, most))
    return f"{word}, within the interval" if unsure else word


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return every line, for which rows are there or not."""
    lines: list[Target] = []
    for recipe, factor, before in (
        ("mf-bce", 1.05, {"test": ".0405, floor .0374", "forgotten": ".0497, floor .0368"}),
        ("lightgcn1-bce", 1.3, {"test": ".0270, floor .0088", "forgotten": ".0369, floor .0090"}),
    ):
        lines += [_distance(rows, recipe, pairs, factor, before[pairs]) for pairs in ("test", "forgotten")]
    flipped = ("mf-bce", "lightgcn1-bce", "lightgcn2-bce")
    lines += [_auroc(rows, recipe) for recipe in flipped]
    lines += [_membership(rows, recipe) for recipe in flipped]
    for recipe in ("lightgcn2-bpr-weak", "lightgcn2-bpr"):
        what = f"1% random, paired, BPR, {_NAMES[recipe]}, random pairs, against the graph-swapped original"
        ratio = "prototype .35, a gradient step .59"
        lines.append(_ratio(rows, _ONE_PERCENT, recipe, "ratio.random.paired.swapped", f"{what}: ρ", 0.30, ratio))
        lines.append(_swapped_cosine(rows, recipe, f"{what}: cosine"))
    for recipe, limit, before in (
        ("mf-bpr", 0.25, "prototype .29, fine-tuning .58"),
        ("lightgcn2-bpr-weak", 0.35, "prototype .41, fine-tuning .82"),
        ("lightgcn2-bpr", 0.12, "prototype .15, fine-tuning .51"),
    ):
        what = f"1% random, paired, BPR, {_NAMES[recipe]}, forgotten pairs: ρ"
        lines.append(_ratio(rows, _ONE_PERCENT, recipe, "ratio.forgotten.paired", what, limit, before))
    lines.append(_averaged_cosine(rows))
    for recipe, limit, before in (
        ("mf-bpr", 0.80, ".86"),
        ("lightgcn2-bpr-weak", 0.80, ".85"),
        ("lightgcn2-bpr", 0.45, ".48"),
    ):
        what = f"2% of users erased, paired, BPR, {_NAMES[recipe]}, test pairs of other users: ρ"
        where = {"suite": "deletions", "deletion": "users 2%"}
        lines.append(_ratio(rows, where, recipe, "ratio.test.paired", what, limit, before))
    recipes = [recipe for recipe in _NAMES if those(rows, suite="sequential", recipe=recipe)] or ["lightgcn2-bpr"]
    lines += [_sequential(rows, recipe, pairs) for recipe in recipes for pairs in ("test", "forgotten")]
    graphs = ("lightgcn1-bce", "lightgcn2-bce")
    lines += [_seconds(rows, recipe) for recipe in graphs]
    lines += [_share(rows, _FLIPPED, recipe, "2% flipped") for recipe in graphs]
    published = ordered(row["recipe"] for row in rows if row["suite"] == "published") or ["lightgcn3-published"]
    return [*lines, *(_share(rows, {"suite": "published"}, recipe, "1% random") for recipe in published)]


def _distance(rows: Sequence[Row], recipe: str, pairs: str, factor: float, before: str) -> Target:
    mine = those(rows, **_FLIPPED, recipe=recipe, method=OURS)
    what = f"2% flipped, {_NAMES[recipe]}: Δ to retrained, {_PAIRS[pairs]}"
    limit = f"at most {factor:g} × floor"
    distances, floor = metric(mine, f"distance.{pairs}.free"), Estimate.of(metric(mine, f"floor.{pairs}"))
    distance = Estimate.of(distances)
    if distance is None or floor is None:
        return Target(what, before, limit)
    # The retrained models are the same for all methods, and so is the floor without one of them.
    without = metric(those(rows, **_FLIPPED, recipe=recipe), f"floor.{pairs}.without")
    original = Estimate.of(metric(mine, f"original.distance.{pairs}.free"))
    times = jackknife(distances, floor.mean, without)
    beside = f"floor {number(floor.mean, 4)}; original {original.text() if original else '–'}"
    found = f"{distance.text()} = {times.text(2)} × floor ({beside})"
    return Target(what, before, limit, found, verdict(times, most=factor))


def _auroc(rows: Sequence[Row], recipe: str) -> Target:
    mine = those(rows, **_FLIPPED, recipe=recipe, method=OURS)
    below = Estimate.of([-value for value in difference(mine, "auroc.all", "free")])
    what = f"2% flipped, {_NAMES[recipe]}: test AUC below retrained by"
    before = "−.000" if recipe == "mf-bce" else "above it, and further away"
    if below is None:
        return Target(what, before, "at most .002")
    return Target(what, before, "at most .002", below.text(sign=True), verdict(below, most=0.002))


def _membership(rows: Sequence[Row], recipe: str) -> Target:
    mine = those(rows, **_FLIPPED, recipe=recipe, method=OURS)
    above = Estimate.of(difference(mine, "membership", "free"))
    what = f"2% flipped, {_NAMES[recipe]}: membership AUROC less the retrained model's"
    if above is None:
        return Target(what, "not measured", "within .01")
    own, retrained = (mean(metric(mine, name)) for name in ("membership", "free.membership"))
    found = f"{above.text(sign=True)} ({own:.3f} against {retrained:.3f})"
    return Target(what, "not measured", "within .01", found, verdict(above, -0.01, 0.01))


def _ratio(
    rows: Sequence[Row], where: dict[str, str], recipe: str, name: str, what: str, most: float, before: str
) -> Target:
    ratio = Estimate.of(metric(those(rows, **where, recipe=recipe, method=OURS), name))
    if ratio is None:
        return Target(what, before, f"at most {most:.2f}")
    found = f"{ratio.text(3)} (paired seeds: {ratio.n})"
    return Target(what, before, f"at most {most:.2f}", found, verdict(ratio, most=most))


def _swapped_cosine(rows: Sequence[Row], recipe: str, what: str) -> Target:
    name, before, least = "cosine.random.paired.swapped", "prototype .88, a gradient step .28", 0.90
    where = {**_ONE_PERCENT, "recipe": recipe, "method": OURS}
    single = Estimate.of(metric(those(rows, **where), name))
    if single is None:
        return Target(what, before, f"at least {least:.2f}")
    row = averaged(rows, **where)
    beside = f"; {number(row['metrics'][name])} averaged over {len(row['seeds'])}" if row else ""
    found = f"{single.text(3)} (paired seeds: {single.n}{beside})"
    return Target(what, before, f"at least {least:.2f}", found, verdict(single, least=least))


def _averaged_cosine(rows: Sequence[Row]) -> Target:
    name, before, least, seeds = "cosine.test.paired", ".82", 0.85, 8
    what = "1% random, paired, BPR, MF, test pairs: cosine of the change averaged over eight paired seeds"
    where = {**_ONE_PERCENT, "recipe": "mf-bpr", "method": OURS}
    row = averaged(rows, **where)
    cosine = row["metrics"][name] if row else None
    if row is None or cosine is None:
        return Target(what, before, f"at least {least:.2f}")
    single = Estimate.of(metric(those(rows, **where), name))
    found = f"{cosine:.3f} averaged over {len(row['seeds'])} seeds ({single.text(3) if single else '–'} for one)"
    if len(row["seeds"]) < seeds:
        return Target(what, before, f"at least {least:.2f}", found)
    return Target(what, before, f"at least {least:.2f}", found, verdict(Estimate(cosine, None, 1), least=least))


def _sequential(rows: Sequence[Row], recipe: str, pairs: str) -> Target:
    what = f"100 requests one after another against one, {recipe}, {_PAIRS[pairs]}: ρ over ρ, less 1"
    many, one = (
        {row["seed"]: row["metrics"].get(f"ratio.{pairs}.paired") for row in those(rows, **where)}
        for where in ({"suite": "sequential", "recipe": recipe, "method": name} for name in ("ifru-sequential", OURS))
    )
    both = [(many[seed], one[seed]) for seed in many if many[seed] is not None and one.get(seed)]
    apart = Estimate.of([several / single - 1 for several, single in both])
    if apart is None:
        return Target(what, "not measured", "within 10%")
    beside = " against ".join(f"{mean(ratios):.3f}" for ratios in zip(*both, strict=True))
    found = f"{apart.text(3, sign=True)} ({beside})"
    return Target(what, "not measured", "within 10%", found, verdict(apart, -0.1, 0.1))


def _seconds(rows: Sequence[Row], recipe: str) -> Target:
    what, before = f"2% flipped, {_NAMES[recipe]}: CPU seconds, set-up and all", "7 to 30"
    limit = "at most a fifth of 7 to 30: 1.4 to 6"
    mine = those(rows, **_FLIPPED, recipe=recipe, method=OURS)
    seconds = Estimate.of([row["seconds"]["cpu"] for row in mine])
    if seconds is None:
        return Target(what, before, limit)
    # A fifth of the shortest run is a fifth of every run; up to a fifth of the longest it depends on the run.
    said = "within the range" if 1.4 < seconds.mean <= 6 else verdict(seconds, most=1.4)
    return Target(what, before, limit, seconds.text(2), said)


def _share(rows: Sequence[Row], where: dict[str, str], recipe: str, forgotten: str) -> Target:
    what = f"{forgotten}, {_NAMES.get(recipe, recipe)}: CPU seconds over those of retraining"
    mine = [row for row in rows if row["recipe"] == recipe and where.items() <= row.items()]
    share = Estimate.of(speeds(mine, those(mine, method=OURS)))
    if share is None:
        return Target(what, "not measured", "under a tenth")
    return Target(what, "not measured", "under a tenth", share.text(3), verdict(share, most=math.nextafter(0.1, 0)))
