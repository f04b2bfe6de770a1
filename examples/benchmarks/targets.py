"""What the numbers must reach, and whether they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from rows import Row
from summary import OURS, RETRAINING, Estimate, averaged, difference, metric, number, those

_NAMES = {
    "mf-bce": "MF",
    "lightgcn1-bce": "LightGCN-1",
    "lightgcn2-bce": "LightGCN-2",
    "mf-bpr": "MF",
    "lightgcn2-bpr-weak": "LightGCN-2, weakly regularised",
    "lightgcn2-bpr": "LightGCN-2, well regularised",
}
_PAIRS = {"test": "test pairs", "forgotten": "forgotten pairs", "random": "random pairs"}


@dataclass(frozen=True)
class Target:
    """A line of the table.

    Attributes:
        what: what is measured, and on what.
        before: what was known before.
        limit: what is to be reached, in words.
        found: what was found, in words; ``None`` if nothing was measured.
        reached: whether the mean is within the limit.
    """

    what: str
    before: str
    limit: str
    found: str | None = None
    reached: bool = False


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
    one_percent = {"suite": "deletions", "deletion": "interactions 1%"}
    for recipe in ("lightgcn2-bpr-weak", "lightgcn2-bpr"):
        where = {**one_percent, "recipe": recipe}
        what = f"1% random, paired, BPR, {_NAMES[recipe]}, random pairs, against the graph-swapped original"
        ratio, cosine = "prototype .35, a gradient step .59", "prototype .88, a gradient step .28"
        lines.append(_ratio(rows, where, "ratio.random.paired.swapped", f"{what}: ρ", 0.30, ratio))
        lines.append(_cosine(rows, where, "cosine.random.paired.swapped", f"{what}: cosine", 0.90, cosine))
    for recipe, limit, before in (
        ("mf-bpr", 0.25, "prototype .29, fine-tuning .58"),
        ("lightgcn2-bpr-weak", 0.35, "prototype .41, fine-tuning .82"),
        ("lightgcn2-bpr", 0.12, "prototype .15, fine-tuning .51"),
    ):
        what = f"1% random, paired, BPR, {_NAMES[recipe]}, forgotten pairs: ρ"
        lines.append(_ratio(rows, {**one_percent, "recipe": recipe}, "ratio.forgotten.paired", what, limit, before))
    what = "1% random, paired, BPR, MF, test pairs: cosine of the change averaged over eight paired seeds"
    lines.append(_cosine(rows, {**one_percent, "recipe": "mf-bpr"}, "cosine.test.paired", what, 0.85, ".82"))
    for recipe, limit, before in (
        ("mf-bpr", 0.80, ".86"),
        ("lightgcn2-bpr-weak", 0.80, ".85"),
        ("lightgcn2-bpr", 0.45, ".48"),
    ):
        what = f"2% of users erased, paired, BPR, {_NAMES[recipe]}, test pairs of other users: ρ"
        where = {"suite": "deletions", "deletion": "users 2%", "recipe": recipe}
        lines.append(_ratio(rows, where, "ratio.test.paired", what, limit, before))
    recipes = [recipe for recipe in _NAMES if those(rows, suite="sequential", recipe=recipe)] or ["lightgcn2-bpr"]
    lines += [_sequential(rows, recipe, pairs) for recipe in recipes for pairs in ("test", "forgotten")]
    return [*lines, *_speed(rows)]


def _distance(rows: Sequence[Row], recipe: str, pairs: str, factor: float, before: str) -> Target:
    mine = those(rows, suite="flipped", deletion="flipped 2%", recipe=recipe, method=OURS)
    what = f"2% flipped, {_NAMES[recipe]}: Δ to retrained, {_PAIRS[pairs]}"
    limit = f"at most {factor:g} × floor"
    distance, floor = (Estimate.of(metric(mine, f"{name}")) for name in (f"distance.{pairs}.free", f"floor.{pairs}"))
    if distance is None or floor is None:
        return Target(what, before, limit)
    original = Estimate.of(metric(mine, f"original.distance.{pairs}.free"))
    times = distance.mean / floor.mean
    beside = f"floor {number(floor.mean, 4)}; original {original.text() if original else '–'}"
    found = f"{distance.text()} = {times:.2f} × floor ({beside})"
    return Target(what, before, limit, found, times <= factor)


def _auroc(rows: Sequence[Row], recipe: str) -> Target:
    mine = those(rows, suite="flipped", deletion="flipped 2%", recipe=recipe, method=OURS)
    below = Estimate.of([-value for value in difference(mine, "auroc.all", "free")])
    what, before = f"2% flipped, {_NAMES[recipe]}: test AUC below retrained by", "MF −.000"
    if below is None:
        return Target(what, before, "at most .002")
    return Target(what, before, "at most .002", below.text(sign=True), below.mean <= 0.002)


def _membership(rows: Sequence[Row], recipe: str) -> Target:
    mine = those(rows, suite="flipped", deletion="flipped 2%", recipe=recipe, method=OURS)
    above = Estimate.of(difference(mine, "membership", "free"))
    what = f"2% flipped, {_NAMES[recipe]}: membership AUROC less the retrained model's"
    if above is None:
        return Target(what, "not measured", "within .01")
    own, paired = (mean(metric(mine, name)) for name in ("membership", "free.membership"))
    found = f"{above.text(sign=True)} ({own:.3f} against {paired:.3f})"
    return Target(what, "not measured", "within .01", found, abs(above.mean) <= 0.01)


def _ratio(rows: Sequence[Row], where: dict[str, str], name: str, what: str, limit: float, before: str) -> Target:
    ratio = Estimate.of(metric(those(rows, **where, method=OURS), name))
    if ratio is None:
        return Target(what, before, f"at most {limit:.2f}")
    found = f"{ratio.text(3)} (paired seeds: {ratio.n})"
    return Target(what, before, f"at most {limit:.2f}", found, ratio.mean <= limit)


def _cosine(rows: Sequence[Row], where: dict[str, str], name: str, what: str, limit: float, before: str) -> Target:
    row = averaged(rows, **where, method=OURS)
    cosine = row["metrics"][name] if row else None
    if row is None or cosine is None:
        return Target(what, before, f"at least {limit:.2f}")
    single = Estimate.of(metric(those(rows, **where, method=OURS), name))
    found = f"{cosine:.3f} averaged over {len(row['seeds'])} seeds ({single.text(3) if single else '–'} for one)"
    return Target(what, before, f"at least {limit:.2f}", found, cosine >= limit)


def _sequential(rows: Sequence[Row], recipe: str, pairs: str) -> Target:
    what = f"100 requests one after another against one, {recipe}, {_PAIRS[pairs]}: ρ over ρ, less 1"
    ratios = [
        {
            row["seed"]: row["metrics"][f"ratio.{pairs}.paired"]
            for row in those(rows, suite="sequential", recipe=recipe, method=name)
        }
        for name in ("ifru-sequential", OURS)
    ]
    apart = Estimate.of([ratios[0][seed] / ratios[1][seed] - 1 for seed in ratios[0] if seed in ratios[1]])
    if apart is None:
        return Target(what, "not measured", "within 10%")
    both = " against ".join(f"{mean(ratio.values()):.3f}" for ratio in ratios)
    return Target(what, "not measured", "within 10%", f"{apart.text(3, sign=True)} ({both})", abs(apart.mean) <= 0.1)


def _speed(rows: Sequence[Row]) -> list[Target]:
    mine = [row for row in those(rows, suite="flipped", method=OURS) if row["recipe"].startswith("lightgcn")]
    share = Estimate.of(speeds(rows, mine))
    seconds = Estimate.of([row["seconds"]["total"] for row in mine])
    official = Target("2% flipped, LightGCN: seconds, set-up and all", "7 to 30", "at most a fifth: 1.4 to 6")
    retrained = Target("LightGCN: seconds over those of retraining", "not measured", "under a tenth")
    if seconds is None or share is None:
        return [official, retrained]
    return [
        Target(official.what, official.before, official.limit, seconds.text(2), seconds.mean <= 1.4),
        Target(retrained.what, retrained.before, retrained.limit, share.text(3), share.mean < 0.1),
    ]


def speeds(rows: Sequence[Row], mine: Sequence[Row]) -> list[float]:
    """Return the seconds of rows over those of retraining (free, or else paired) from the same original."""
    whole: dict[tuple[str, str, int], float] = {}
    for name in RETRAINING:
        for row in those(rows, method=name):
            whole.setdefault(_original(row), row["seconds"]["total"])
    return [row["seconds"]["total"] / whole[_original(row)] for row in mine if _original(row) in whole]


def _original(row: Row) -> tuple[str, str, int]:
    return row["recipe"], row["deletion"], row["seed"]
