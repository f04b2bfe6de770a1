"""What a model that has forgotten is measured by: one view of every model, and the numbers that compare views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from recipes import Scorer
from torch import Tensor

from lightning_ifru import InteractionDataModule, UnlearningError
from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics import (
    LinkPredNDCG,
    LinkPredRecall,
    affected_auroc,
    change_cosine,
    completeness_ratio,
    embedding_distance,
    matched_nonmembers,
    membership_auroc,
    noise_floor,
    parameter_distance,
    score_distance,
    top_items,
    topk_overlap,
)
from lightning_ifru.metrics.checks import check_finite
from lightning_ifru.removal import Removal

K = 20
RANDOM_PAIRS = 20_000

Metrics = dict[str, float | list[float] | None]


@dataclass(frozen=True)
class View:
    """What one model says to all that a :class:`Probe` asks.

    Attributes:
        scores: logits of every group of pairs.
        quality: ``auroc.all``, ``auroc.or``, ``auroc.and``, ``recall@20``, ``ndcg@20``, ``membership``.
        top: the recommended items ``[users, 20]`` of users with something to be found in the test.
        h: representations without the rows of the erased, or ``None``.
        parameters: the same of the parameters.
    """

    scores: dict[str, Tensor]
    quality: dict[str, float | None]
    top: Tensor
    h: Tensor | None
    parameters: dict[str, Tensor] | None


@dataclass(frozen=True)
class Probe:
    """What every model is asked about one deletion.

    Attributes:
        groups: users and items of pairs: ``test``, the test pairs that survive (where users are erased, those of the
            others); ``forgotten``, the forgotten training pairs; ``random``, drawn from the users and items that stay.
        test: the pairs of the AUROC with their labels; with implicit feedback as many again with items drawn uniformly.
        touched: whether a forgotten training interaction is the user's, and the item's, for each of ``test``.
        members, nonmembers: the pairs of the attack: the forgotten positive ones, and others like them.
        found: the positive test pairs that survive; ``seen``, ``candidates``: what is not, and what is to be ranked.
        kept: the nodes that are not erased, a bool mask.
    """

    groups: dict[str, tuple[Tensor, Tensor]]
    test: Interactions
    touched: tuple[Tensor, Tensor]
    members: tuple[Tensor, Tensor]
    nonmembers: tuple[Tensor, Tensor]
    found: Interactions
    seen: Interactions
    candidates: Tensor
    kept: Tensor

    @classmethod
    def of(cls, data: InteractionDataModule, removal: Removal, seed: int) -> Probe:
        """Return what to ask about a removal from ``data``, in which nothing is forgotten yet."""
        table, generator = data.table, torch.Generator().manual_seed(seed)
        gone = removal.rows & table.rows("train")
        forgotten = Interactions(table.user[gone], table.item[gone], table.label[gone])
        survivors, seen = (table.select(split, without=removal) for split in ("test", "train"))
        candidates = data.candidates[~torch.isin(data.candidates, removal.withdrawn)]
        users = seen.user.unique()
        users, items = users[~torch.isin(users, removal.users)], candidates[~torch.isin(candidates, removal.items)]
        random = tuple(some[torch.randint(len(some), (RANDOM_PAIRS,), generator=generator)] for some in (users, items))
        test = survivors
        if not data.labelled:
            drawn = candidates[torch.randint(len(candidates), (len(test),), generator=generator)]
            label = torch.cat([test.label, torch.zeros(len(test))])
            test = Interactions(test.user.repeat(2), torch.cat([test.item, drawn]), label)
        members = forgotten[forgotten.label > 0]
        kept = torch.ones(data.num_users + data.num_items, dtype=torch.bool)
        kept[torch.cat([removal.users, removal.items + data.num_users])] = False
        return cls(
            groups={
                "test": (survivors.user, survivors.item),
                "forgotten": (forgotten.user, forgotten.item),
                "random": (random[0], random[1]),
            },
            test=test,
            touched=(torch.isin(test.user, forgotten.user), torch.isin(test.item, forgotten.item)),
            members=(members.user, members.item),
            nonmembers=_nonmembers(data, members, seed),
            found=survivors[survivors.label > 0],
            seen=seen,
            candidates=candidates,
            kept=kept,
        )

    def view(self, scorer: Scorer) -> View:
        """Ask a model."""
        auroc = affected_auroc(scorer.pairs(self.test.user, self.test.item), self.test.label > 0, *self.touched)
        quality = {f"auroc.{name}": value for name, value in auroc.items()}
        quality["membership"] = _or_none(membership_auroc, *(scorer.pairs(*p) for p in (self.members, self.nonmembers)))
        users = self.found.user.unique()
        top = top_items(lambda block: scorer.block(block)[:, self.candidates], users, self.seen, self.candidates, K)
        truth = torch.stack([torch.searchsorted(users, self.found.user), self.found.item])
        for name, metric in (("recall", LinkPredRecall(K)), ("ndcg", LinkPredNDCG(K))):
            metric.update(top, truth)
            quality[f"{name}@{K}"] = float(metric.compute())
        scores = {name: scorer.pairs(*pairs) for name, pairs in self.groups.items()}
        # From here on, what a metric refuses is a number that does not exist, and no diverged model.
        check_finite(**scores)
        return View(
            scores=scores,
            quality=quality,
            top=top,
            h=None if scorer.h is None else scorer.h[self.kept],
            parameters=None
            if scorer.parameters is None
            else {n: p[self.kept] if len(p) == len(self.kept) else p for n, p in scorer.parameters.items()},
        )


def measure(unlearned: View, original: View, swapped: View | None, paired: View, free: Sequence[View] = ()) -> Metrics:
    """Compare a model that has forgotten with the original, with the retrained, and these with each other.

    Args:
        unlearned: the model that has forgotten.
        original: the model that was to forget.
        swapped: the original's parameters on the graph without the forgotten, if that is a model.
        paired: the model retrained from the original's seed.
        free: models retrained from other seeds.

    Returns:
        Flat: ``WHAT.PAIRS.REFERENCE`` for ``distance``, ``ratio``, ``cosine`` and the reference ``paired``; the same
        for the original's and the swapped model's distance (``original.distance``, ...); ``.swapped`` at the end where
        the swapped model is taken for the original; ``.free`` as lists with one value per retrained model, and
        ``floor.PAIRS``, with the floors without each of them as ``floor.PAIRS.without`` where there are three at least.
        ``None`` where a number does not exist: without change there is no direction.
    """
    found: Metrics = dict(unlearned.quality)
    found |= {f"original.{name}": value for name, value in original.quality.items()}
    found |= {f"paired.{name}": value for name, value in paired.quality.items()}
    for name in paired.quality:
        found[f"free.{name}"] = [value for view in free if (value := view.quality[name]) is not None]
    for pairs, target in paired.scores.items():
        u, o = unlearned.scores[pairs], original.scores[pairs]
        s = swapped.scores[pairs] if swapped else None
        for who, scores in (("", u), ("original.", o), ("swapped.", s)):
            if scores is None:
                continue
            found[f"{who}distance.{pairs}.paired"] = _or_none(score_distance, scores, target)
            found[f"{who}distance.{pairs}.free"] = [float(score_distance(scores, f.scores[pairs])) for f in free]
        found[f"ratio.{pairs}.paired"] = _or_none(completeness_ratio, u, o, target)
        found[f"ratio.{pairs}.paired.swapped"] = _or_none(completeness_ratio, u, s, target) if swapped else None
        found[f"ratio.{pairs}.free"] = [float(completeness_ratio(u, o, f.scores[pairs])) for f in free]
        found[f"cosine.{pairs}.paired"] = _or_none(change_cosine, u, o, target)
        found[f"cosine.{pairs}.paired.swapped"] = _or_none(change_cosine, u, s, target) if swapped else None
        again = [f.scores[pairs] for f in free]
        found[f"floor.{pairs}"] = _or_none(noise_floor, torch.stack(again)) if free else None
        found[f"floor.{pairs}.without"] = [
            float(noise_floor(torch.stack(again[:k] + again[k + 1 :])))
            for k in range(len(free) if len(free) > 2 else 0)
        ]
    found["overlap.paired"] = float(topk_overlap(unlearned.top, paired.top))
    found["original.overlap.paired"] = float(topk_overlap(original.top, paired.top))
    found["overlap.free"] = [float(topk_overlap(unlearned.top, view.top)) for view in free]
    for name, distance, part in (
        ("embedding", embedding_distance, "h"),
        ("parameter", parameter_distance, "parameters"),
    ):
        for who, view in (("", unlearned), ("original.", original)):
            have, want = getattr(view, part), getattr(paired, part)
            comparable = have is not None and want is not None
            found[f"{who}{name}.paired"] = _or_none(distance, have, want) if comparable else None
    return found


def seed_cosines(scores: Sequence[dict[str, Tensor]]) -> Metrics:
    """Return the cosines of changes averaged over paired seeds, from one dictionary of scores per seed.

    Args:
        scores: ``unlearned.PAIRS``, ``original.PAIRS``, ``swapped.PAIRS``, ``paired.PAIRS`` -> logits ``[n]``.
    """
    found: Metrics = {}
    stacked = {name: torch.stack([one[name] for one in scores]) for name in scores[0]}
    for name, unlearned in stacked.items():
        who, pairs = name.split(".")
        if who == "unlearned":
            for origin, end in (("original", ""), ("swapped", ".swapped")):
                start, paired = stacked[f"{origin}.{pairs}"], stacked[f"paired.{pairs}"]
                found[f"cosine.{pairs}.paired{end}"] = _or_none(change_cosine, unlearned, start, paired)
    return found


def _nonmembers(data: InteractionDataModule, members: Interactions, seed: int) -> tuple[Tensor, Tensor]:
    table = data.table
    popularity = torch.bincount(data.train.item, minlength=data.num_items)
    seen = table.user[table.alive], table.item[table.alive]
    return matched_nonmembers(
        members.user, members.item, *seen, data.num_users, data.num_items, popularity=popularity, seed=seed
    )


def _or_none(metric: Callable[..., Tensor], *args: object) -> float | None:
    """A metric's value, or ``None`` where the metric says that there is none."""
    try:
        return float(metric(*args))
    except UnlearningError:
        return None
