"""Lists of recommended items, and Recall@k and NDCG@k of recommending from all candidates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall

from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics.checks import check_finite
from lightning_ifru.metrics.scores import Decoder, block_scores

#: Scores ranked at a time, so that they stay in a processor's cache: four times as many take twice as long each.
_SCORES = 1 << 21


def top_items(
    score: Callable[[Tensor], Tensor],
    users: Tensor,
    seen: Interactions,
    candidates: Tensor,
    k: int = 20,
    progress: Callable[[str], None] | None = None,
) -> Tensor:
    """Return the ``k`` candidates with the highest scores for each user, without those that the user has seen.

    Args:
        score: ``users [B] -> scores [B, M]`` of all candidates, a tensor that may be written to.
        users: sorted, without repetition, ``[n]``.
        seen: the interactions whose items are not recommended to their users again. A user with fewer than ``k``
            candidates left gets them all and then some of these.
        candidates: the items ``[M]`` that can be recommended.
        k: the length of the lists, ``M`` at most.
        progress: called with a short text for every block of users.

    Returns:
        Items ``[n, min(k, M)]``, best first.

    Raises:
        UnlearningError: If a score is not finite.

    Example:
        >>> seen = Interactions(torch.tensor([0]), torch.tensor([2]), torch.ones(1))
        >>> scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])  # of two users for three items
        >>> top_items(lambda users: scores[users], torch.arange(2), seen, candidates=torch.arange(3), k=2)
        tensor([[1, 0],
                [2, 1]])
    """
    k = min(k, len(candidates))
    if not (k and len(users)):
        return candidates.new_empty(len(users), k)
    column = torch.full((int(torch.cat([candidates, seen.item]).max()) + 1,), -1, device=candidates.device)
    column[candidates] = torch.arange(len(candidates), device=candidates.device)
    # Sorted by user, a block's interactions are one slice instead of a search through all.
    if bool((seen.user[1:] < seen.user[:-1]).any()):
        seen = seen[seen.user.argsort()]
    lists, done = [], 0
    for block in users.split(max(1, _SCORES // len(candidates))):
        scores = score(block)
        check_finite(scores=scores)
        known = _of_users(seen, block)
        known = known[(column[known.item] >= 0) & torch.isin(known.user, block)]
        scores[torch.searchsorted(block, known.user), column[known.item]] = -torch.inf
        lists.append(candidates[scores.topk(k).indices])
        done += len(block)
        if progress is not None:
            progress(f"{done:,} of {len(users):,} users")
    return torch.cat(lists)


def unseen_counts(seen: Interactions, candidates: Tensor, num_users: int) -> Tensor:
    """Return how many candidates each user has not seen, ``[num_users]``.

    Args:
        seen: the interactions, however often a pair occurs in them.
        candidates: different items ``[M]``.
        num_users: the number of users.

    Example:
        >>> seen = Interactions(torch.tensor([0, 0, 0]), torch.tensor([2, 2, 7]), torch.ones(3))
        >>> unseen_counts(seen, candidates=torch.arange(3), num_users=2)
        tensor([2, 3])
    """
    known = seen[torch.isin(seen.item, candidates)].distinct()
    return len(candidates) - torch.bincount(known.user, minlength=num_users)


def ranking(
    decode: Decoder | None,
    h: Tensor,
    num_users: int,
    held_out: Interactions,
    seen: Interactions,
    candidates: Tensor,
    k: int = 20,
    progress: Callable[[str], None] | None = None,
) -> dict[str, float | None]:
    r"""Return Recall@k and NDCG@k of ranking all candidate items for the users with held-out positives.

    .. math::

        \mathrm{Recall@}k = \frac{1}{|U|} \sum_u \frac{|T_u \cap H_u|}{|H_u|}, \qquad
        \mathrm{NDCG@}k = \frac{1}{|U|} \sum_u
            \frac{\sum_{r \le k} [T_{ur} \in H_u] / \log_2 (r + 1)}{\sum_{r \le \min(k, |H_u|)} 1 / \log_2 (r + 1)}

    with a user's held-out items :math:`H_u` and list :math:`T_u`, from which the items of ``seen`` are left out.

    Args:
        decode: ``(source [B, d], destination [B, d]) -> scores [B]``; ``None`` for dot products.
        h: representations ``[num_nodes, d]``, users first.
        num_users: the offset of items among nodes.
        held_out: the positives to be found; a pair that occurs more than once counts once.
        seen: the interactions the model was trained on.
        candidates: the items ``[M]`` to be ranked.
        k: the length of the lists.
        progress: called with a short text for every block of users.

    Returns:
        ``"recall@k"`` and ``"ndcg@k"``, ``None`` if nothing is held out.

    Raises:
        UnlearningError: If a score is not finite.

    Source: ``torch_geometric.metrics``, ``LinkPredRecall`` and ``LinkPredNDCG``.

    Example:
        >>> held_out, seen = (Interactions(torch.tensor([0]), torch.tensor([i]), torch.ones(1)) for i in (1, 0))
        >>> h = torch.tensor([[1.0], [3.0], [2.0], [1.0]])  # one user, and three items of which the best was seen
        >>> ranking(None, h, 1, held_out, seen, candidates=torch.arange(3), k=1)
        {'recall@1': 1.0, 'ndcg@1': 1.0}
    """
    if not len(held_out):
        return {f"recall@{k}": None, f"ndcg@{k}": None}
    held_out = held_out.distinct()
    users = held_out.user.unique()

    def score(block: Tensor) -> Tensor:
        return block_scores(decode, h, block, candidates + num_users)

    top = top_items(score, users, seen, candidates, k, progress)
    truth = torch.stack([torch.searchsorted(users, held_out.user), held_out.item])
    figures: dict[str, float | None] = {}
    for name, metric in ((f"recall@{k}", LinkPredRecall(k)), (f"ndcg@{k}", LinkPredNDCG(k))):
        metric.to(h.device).update(top, truth)
        figures[name] = float(metric.compute())
    return figures


def _of_users(interactions: Interactions, users: Tensor) -> Interactions:
    """The slice of interactions sorted by user that lies between the first and the last of sorted ``users``."""
    start, stop = torch.searchsorted(interactions.user, torch.stack([users[0], users[-1] + 1])).tolist()
    columns = (interactions.user, interactions.item, interactions.label)
    return Interactions(*(column[start:stop] for column in columns))
