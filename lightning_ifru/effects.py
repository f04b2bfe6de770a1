"""What an unlearning did to recommendations and to the forgotten pairs, in bins that tell of nobody in particular."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.hops import HOPS
from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics import Decoder, block_scores, dot_product, pair_scores, top_items
from lightning_ifru.metrics.retrieval import unseen_counts

#: Of fewer than these, bins would tell of each.
FEWEST = 5
#: Users whose recommendations are compared, at most.
_USERS = 1000
_BINS = 25
#: A model as it scores: its decoder, ``None`` for dot products, and its representations ``[num_nodes, d]``.
Scoring = tuple[Decoder | None, Tensor]


def top_changes(
    before: Scoring,
    after: Scoring,
    hops: Tensor,
    seen: Interactions,
    candidates: Tensor,
    seed: int = 0,
    k: int = 20,
) -> dict[str, list[int]]:
    """Count users by how many of the ``k`` items recommended to them are others than before.

    Args:
        before: the model before.
        after: the model after.
        hops: every user's distance from what is forgotten, positions in ``HOPS``, ``[num_users]``.
        seen: the interactions that stay. Only users with one of them are looked at, and of those with ``k`` candidates
            left a random 1,000 at most.
        candidates: the items ``[M]`` that can be recommended, before and after.
        seed: of the choice of users.
        k: the length of the lists.

    Returns:
        For each distance in ``HOPS`` at which there are five users at least, the numbers of users of whom 0, 1, ...
        ``k`` items have changed.

    Raises:
        UnlearningError: a score is not finite.

    Example:
        Five users who first prefer item 0 and then item 1:

        >>> h = torch.ones(7, 1)
        >>> before, after = torch.cat([h[:5], h[:1] + 1, h[:1]]), torch.cat([h[:6], h[:1] + 1])
        >>> nobody = Interactions(torch.arange(5), torch.full((5,), 2), torch.ones(5))
        >>> top_changes((None, before), (None, after), torch.zeros(5, dtype=int), nobody, torch.arange(2), k=1)
        {'0': [0, 5]}
    """
    num_users = len(hops)
    users = torch.bincount(seen.user, minlength=num_users) > 0
    users &= unseen_counts(seen, candidates, num_users) >= k
    chosen = users.nonzero().flatten()
    if len(chosen) > _USERS:
        some = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:_USERS]
        chosen = chosen[some.to(chosen.device)].sort().values
    if not len(chosen):
        return {}

    def lists(model: Scoring) -> Tensor:
        decode, h = model
        return top_items(lambda u: block_scores(decode, h, u, candidates + num_users), chosen, seen, candidates, k)

    old, new = lists(before), lists(after)
    changed = k - (old.unsqueeze(2) == new.unsqueeze(1)).sum((1, 2))
    counts = {name: changed[hops[chosen] == kind] for kind, name in enumerate(HOPS)}
    return {name: _counts(part, k + 1) for name, part in counts.items() if len(part) >= FEWEST}


def score_shift(
    before: Scoring, after: Scoring, pairs: Interactions, erased: Tensor, num_users: int, *, belief: bool
) -> dict[str, Any]:
    r"""Count pairs by their score before and after.

    Looked at are the pairs of which neither user nor item was erased; where these are fewer than five, all pairs, and
    ``reset`` is then true: rows that were drawn anew move their pairs' scores whatever has been solved. Pairs of fewer
    than five users are told of by their means alone.

    Args:
        before: the model before.
        after: the model after.
        pairs: the interactions, ``n`` of them.
        erased: the nodes whose rows were drawn anew, a bool mask ``[num_nodes]``.
        num_users: the offset of items among nodes.
        belief: whether the label is a probability :math:`y` that the sigmoid of a score predicts; the score of a pair
            is then :math:`1 - |y - \sigma(s)|`, the belief in its label.

    Returns:
        ``edges`` of the bins, from 0 to 1 or three standard deviations around the mean, the counts ``before`` and
        ``after``, of which the outer bins take in what lies beyond, the means ``mean_before`` and ``mean_after``, and
        ``belief`` and ``reset``; without edges and counts where users are fewer than five, and nothing at all for fewer
        than five different pairs.

    Example:
        >>> pairs = Interactions(torch.arange(5), torch.zeros(5, dtype=int), torch.ones(5))
        >>> before, after = torch.tensor([[1.0]] * 5 + [[9.0]]), torch.tensor([[1.0]] * 5 + [[0.0]])
        >>> found = score_shift((None, before), (None, after), pairs, torch.zeros(6, dtype=bool), 5, belief=True)
        >>> found["before"][-1], found["after"][12], found["mean_after"]
        (5, 5, 0.5)
    """
    ends = erased[pairs.user] | erased[pairs.item + num_users]
    reset = len(pairs[~ends].distinct()) < FEWEST
    if not reset:
        pairs = pairs[~ends]
    if len(pairs.distinct()) < FEWEST:
        return {}

    def score(model: Scoring) -> Tensor:
        decode, h = model
        scores = pair_scores(decode or dot_product, h, pairs.user, pairs.item + num_users).double()
        return 1 - (pairs.label - scores.sigmoid()).abs() if belief else scores

    old, new = score(before), score(after)
    found = {"mean_before": float(old.mean()), "mean_after": float(new.mean()), "belief": belief, "reset": reset}
    if len(pairs.user.unique()) < FEWEST:
        return found
    low, high = 0.0, 1.0
    if not belief:
        both = torch.cat([old, new])
        middle, spread = float(both.mean()), 3 * float(both.std()) or 1.0
        low, high = middle - spread, middle + spread
    width = (high - low) / _BINS
    places = (((scores - low) / width).floor().long().clamp(0, _BINS - 1) for scores in (old, new))
    counts = [_counts(place, _BINS) for place in places]
    return {
        "edges": [low + width * place for place in range(_BINS + 1)],
        "before": counts[0],
        "after": counts[1],
        **found,
    }


def _counts(places: Tensor, bins: int) -> list[int]:
    counted: Sequence[int] = torch.bincount(places, minlength=bins).tolist()
    return list(counted)
