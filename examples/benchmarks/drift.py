"""When the verdict of an unlearning turns, by ``python examples/benchmarks/drift.py``: 100 requests, many trainings.

Models, losses, two weight decays and two data sets give 48 trainings, of 40 epochs on the way of a cosine of 60,
so that none has quite arrived. Each forgets a fifth of a percent of its positive training interactions with every
request, 100 times. After 1, 10, 25, 50 and 100 requests a model is retrained in pair
without what has been forgotten so far; the *ratio* is the mean distance of the unlearned model's probabilities from its
on the forgotten pairs, over that of the original. Points are left out where retraining moves these pairs by less than
0.01 on average: nothing is there to be forgotten. So are trainings whose penalty has made all scores alike.

The thresholds were chosen on one half of the trainings and are tested on the other. A training belongs to the first if
the positions of its model, loss, decay and data set in the lists below add up to an even number. Both have been
looked at since; so others follow, from which nothing was chosen: the settings of either half, from another seed each,
on other users of MovieLens and another planted world.

Wanted: the verdict is "retrain advised" at or before the first point at which the ratio exceeds 0.5; and it never is in
nine of ten trainings whose ratio stays under 0.3.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import operator
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import sections
import torch
from every_model import Case, Data, ratings, scores
from recipes import fit

from lightning_ifru import IFRU, IFRUMixin, UnlearningRequest
from lightning_ifru.assessment import Assessment
from lightning_ifru.metrics import completeness_ratio, score_distance
from lightning_ifru.unlearning import Unlearning
from lightning_ifru.verdict import Drift, Tolerance

MODELS = ("MF", "LightGCN-1", "LightGCN-2", "NGCF-2", "NeuMF", "GraphSAGE")
LOSSES = ("bce", "bpr")
#: By loss: regularised well, and hardly.
DECAYS = ({"bce": 1e-3, "bpr": 5e-4}, {"bce": 1e-4, "bpr": 1e-4})
WORLDS = ("movielens", "planted")
#: The first with all settings, of each other those of one half.
SEEDS = (0, 1, 2)
#: What trainings are there for.
CHOSEN, TESTED, FRESH = PARTS = ("chosen on", "tested on", "fresh")
USERS, FILMS = 80, 100
EPOCHS, REQUESTS, POINTS = 40, 100, (1, 10, 25, 50, 100)
#: A distance between probabilities that is nothing, the same as an audit's.
NEGLIGIBLE = 0.01
TOO_MUCH, LITTLE, SPARED = 0.5, 0.3, 0.9
IDENTITY = ("model", "loss", "weight_decay", "world", "part", "seed")


@functools.cache
def movielens(seed: int = 0) -> pd.DataFrame:
    """Return the ratings of the most rated films by the most active users; of each next seed by the next as active."""
    frame = ratings(USERS * (seed + 1), FILMS)
    return frame[~frame.userId.isin(ratings(USERS * seed, FILMS).userId)]


@functools.cache
def planted(seed: int = 0, users: int = 100, items: int = 80, density: float = 0.5) -> pd.DataFrame:
    """Return ratings of rank 3 with noise."""
    rng = np.random.default_rng(seed)
    taste, trait = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    seen = rng.random((users, items)) < density
    user, item = np.nonzero(seen)
    rating = np.clip(np.rint(3.5 + (taste @ trait.T)[seen] + 0.5 * rng.normal(size=len(user))), 1, 5)
    return pd.DataFrame({"userId": user, "movieId": item, "rating": rating})


@dataclass(frozen=True)
class Training(Case):
    """A model, its loss, its training and its data."""

    world: str = "movielens"
    part: str = CHOSEN

    def data(self) -> Data:
        """Read the data anew: labels, or for pairwise losses the ratings of at least 4 as implicit."""
        frame = movielens(self.seed) if self.world == "movielens" else planted(self.seed)
        labelled = {"rating": "rating", "threshold": 4.0} if self.loss == "bce" else {}
        frame = frame if labelled else frame[frame.rating >= 4]
        return Data(dict(frame.items()), user="userId", item="movieId", **labelled, batch_size=512, seed=self.seed)

    def train(self, without: UnlearningRequest | None = None) -> tuple[IFRUMixin, Data]:
        """Train from the seed; with a request on what it leaves, which is paired retraining."""
        lightning.seed_everything(self.seed, verbose=False)
        data = self.data()
        module = self.module(data)
        if without is not None:
            data.forget(without)
            data.commit(data.removal())
        fit(module, data, EPOCHS)
        return module.eval(), data

    def requests(self, data: Data, count: int) -> list[UnlearningRequest]:
        """Return requests for a fifth of a percent of the positive training interactions each."""
        train = data.train
        positive = (train.label >= 1).nonzero().flatten()
        order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(self.seed))
        each = max(1, len(positive) // 500)
        pairs = [(data.user_ids[train.user[k]], data.item_ids[train.item[k]]) for k in positive[order].tolist()]
        return [UnlearningRequest(interactions=pairs[k * each : (k + 1) * each]) for k in range(count)]


def trainings() -> Iterator[Training]:
    """Yield all trainings with the part that each belongs to."""
    for seed, places in product(SEEDS, [*product(*(range(len(some)) for some in (MODELS, LOSSES, DECAYS, WORLDS)))]):
        model, loss, decay, world = places
        name, half = LOSSES[loss], sum(places) % 2
        if not seed or half == seed % 2:
            part = FRESH if seed else PARTS[half]
            yield Training(MODELS[model], name, DECAYS[decay][name], seed, WORLDS[world], part)


def follow(training: Training, requests: int = REQUESTS, points: Sequence[int] = POINTS) -> dict[str, Any]:
    """Forget one request after another; return the verdict's numbers after each, and the ratio at some points."""
    original, data = training.train()
    wanted = training.requests(data, requests)
    plans = [data.table.plan(request).rows for request in wanted]
    ends = [(data.table.user[rows], data.table.item[rows]) for rows in plans]
    row = {name: getattr(training, name) for name in IDENTITY}
    if float(scores(training, original, data, (data.test.user, data.test.item)).std()) < 0.05:
        return row | {"collapsed": True}

    def upto(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        users, items = zip(*ends[:count], strict=True)
        return torch.cat(users), torch.cat(items)

    before = scores(training, original, data, upto(requests))
    drift, drifts, verdicts, found = Drift(), list[dict[str, Any]](), list[str | None](), list[dict[str, Any]]()
    for count, request in enumerate(wanted, start=1):
        data.forget(request)
        work = Unlearning.of(original, data, IFRU())
        update = work.solve()
        report = Assessment(work, drift=drift).report(update, evaluate=False)
        work.commit(update)
        drift = Drift(**report.drift)
        drifts.append(report.drift | {"risk": update.risk_after / update.risk_before})
        verdicts.append(report.verdict)
        if count in points:
            whole = functools.reduce(operator.or_, wanted[:count])
            now = scores(training, original, data, upto(count))
            retrained = scores(training, *training.train(whole), upto(count))
            then = before[: len(now)]
            ratio, moved = completeness_ratio(now, then, retrained), score_distance(retrained, then)
            found.append({"requests": count, "ratio": float(ratio), "moved": float(moved)})
    return row | {"drifts": drifts, "verdicts": verdicts, "points": found}


@dataclass(frozen=True)
class Outcome:
    """What became of one training.

    Attributes:
        name, part: of the training.
        exceeded: after which requests the ratio was first above 0.5, if ever.
        little: whether it stayed under 0.3.
        turned: with which request retraining was first advised, if ever.
        ratios: by number of requests, and beside each the doubt.
    """

    name: str
    part: str
    exceeded: int | None
    little: bool
    turned: int | None
    ratios: dict[int, tuple[float, float]]

    @property
    def missed(self) -> bool:
        """Whether the ratio was above 0.5 before retraining was advised."""
        return self.exceeded is not None and (self.turned is None or self.turned > self.exceeded)

    @property
    def alarmed(self) -> bool:
        """Whether retraining was advised though the ratio stayed under 0.3."""
        return self.little and self.turned is not None


def outcome(row: dict[str, Any], doubt: float) -> Outcome | None:
    """Return what became of the training of a row of :func:`follow`, with a threshold of the doubt.

    ``None`` where there is nothing to be forgotten.
    """
    points = [point for point in row.get("points", []) if point["moved"] >= NEGLIGIBLE]
    if not points:
        return None
    drifts = [Drift.of({"drift": one}) for one in row["drifts"]]
    stuck = [later.stuck > earlier.stuck for earlier, later in pairwise([Drift(), *drifts])]
    turned = [k for k, (one, none) in enumerate(zip(drifts, stuck, strict=True), 1) if none or one.doubt > doubt]
    return Outcome(
        name=f"{row['model']}, {row['loss']}, {row['weight_decay']:g}, {row['world']}",
        part=row["part"],
        exceeded=next((point["requests"] for point in points if point["ratio"] > TOO_MUCH), None),
        little=all(point["ratio"] < LITTLE for point in points),
        turned=turned[0] if turned else None,
        ratios={point["requests"]: (point["ratio"], drifts[point["requests"] - 1].doubt) for point in points},
    )


def choose(rows: list[dict[str, Any]]) -> float:
    """Return the threshold of the doubt for some trainings.

    Of the hundredths with which at most one in ten of the trainings under 0.3 is alarmed, those with the fewest missed,
    and of these the one in the middle.
    """
    missed: dict[float, int] = {}
    for doubt in (k / 100 for k in range(1, 100)):
        found = [one for row in rows if (one := outcome(row, doubt))]
        if sum(one.alarmed for one in found) <= (1 - SPARED) * sum(one.little for one in found):
            missed[doubt] = sum(one.missed for one in found)
    best = [doubt for doubt, count in missed.items() if count == min(missed.values())]
    return best[len(best) // 2]


def summary(rows: list[dict[str, Any]], doubt: float) -> str:
    """Return what was wanted and what was found, for both halves and the fresh ones."""
    lines = []
    for part in _parts(rows):
        found = [one for row in rows if row["part"] == part and (one := outcome(row, doubt))]
        above = [one for one in found if one.exceeded is not None]
        little = [one for one in found if one.little]
        missed, spared = sum(one.missed for one in above), sum(not one.alarmed for one in little)
        lines += [
            f"{part}: {len(found)} trainings, doubt up to {doubt:g}",
            f"  above 0.5: {len(above)}, turned in time: {len(above) - missed} (wanted: all)",
            f"  under 0.3: {len(little)}, not turned: {spared} (wanted: nine of ten)",
            *(
                f"  missed: {one.name}, above from {one.exceeded} on, turned: {one.turned}"
                for one in above
                if one.missed
            ),
            *(f"  alarmed: {one.name}, turned with {one.turned}" for one in little if one.alarmed),
        ]
    return "\n".join(lines)


def halves(rows: list[dict[str, Any]], doubt: float) -> str:
    """Return a Markdown table of what was wanted and found, by part."""
    lines = [
        f"| doubt up to {doubt:g} | trainings | ratio above 0.5, turned in time | ratio under 0.3, not turned |",
        "|---|--:|--:|--:|",
    ]
    for part in _parts(rows):
        found = [one for row in rows if row["part"] == part and (one := outcome(row, doubt))]
        above, little = [one for one in found if one.exceeded], [one for one in found if one.little]
        lines.append(
            f"| {part} | {len(found)} | {sum(not one.missed for one in above)} of {len(above)} | "
            f"{sum(not one.alarmed for one in little)} of {len(little)} |"
        )
    return "\n".join(lines)


def _parts(rows: list[dict[str, Any]]) -> list[str]:
    return [part for part in PARTS if any(row["part"] == part for row in rows)]


def table(rows: list[dict[str, Any]], doubt: float) -> str:
    """Return a Markdown table of all trainings: the ratio, and in brackets the doubt, by number of requests."""
    lines = [f"| training | part | {' | '.join(map(str, POINTS))} | turned |", f"|---|---|{'--:|' * len(POINTS)}--:|"]
    for row in rows:
        one = outcome(row, doubt)
        if one is None:
            name = f"{row['model']}, {row['loss']}, {row['weight_decay']:g}, {row['world']}"
            lines.append(f"| {name} | {row['part']} |{' |' * len(POINTS)} nothing to forget |")
            continue
        cells = [f"{one.ratios[k][0]:.2f} ({one.ratios[k][1]:.2f})" if k in one.ratios else "–" for k in POINTS]
        lines.append(f"| {one.name} | {one.part} | {' | '.join(cells)} | {one.turned or '–'} |")
    return "\n".join(lines)


def main() -> None:
    """Follow all trainings that are not among the rows yet, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("benchmarks-rows/drift.jsonl"), help="where rows are kept")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/verdict.md"), help="the document to fill")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    options.rows.touch()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    known = {tuple(row[name] for name in IDENTITY) for row in rows}
    left = [one for one in trainings() if tuple(getattr(one, name) for name in IDENTITY) not in known]
    with ProcessPoolExecutor(options.workers) as pool, options.rows.open("a") as kept:
        for row in pool.map(_quietly, left):
            rows.append(row)
            kept.write(json.dumps(row) + "\n")
            kept.flush()
            sys.stderr.write(table([row], Tolerance().doubt).splitlines()[-1] + "\n")
    found = choose([row for row in rows if row["part"] == CHOSEN])
    doubt = Tolerance().doubt
    sys.stdout.write(f"chosen by the rule: {found:g}\n{summary(rows, doubt)}\n")
    made = {"table": table(rows, doubt), "summary": halves(rows, doubt)}
    options.output.write_text(
        sections.fill(options.output.read_text(encoding="utf-8"), "drift", made), encoding="utf-8"
    )


def _quietly(training: Training) -> dict[str, Any]:
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return follow(training)


if __name__ == "__main__":
    main()
