"""Recall@k and NDCG@k of recommending from all candidate items."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall

from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics.checks import check_finite
from lightning_ifru.metrics.scores import Decoder, block_scores

#: Users ranked at a time.
_USERS = 256


def ranking(
    decode: Decoder | None,
    h: Tensor,
    num_users: int,
    held_out: Interactions,
    seen: Interactions,
    candidates: Tensor,
    k: int = 20,
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
        held_out: the positives to be found.
        seen: the interactions the model was trained on.
        candidates: the items ``[M]`` to be ranked.
        k: the length of the lists.

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
    recall, ndcg = LinkPredRecall(k).to(h.device), LinkPredNDCG(k).to(h.device)
    column = torch.full((h.shape[0] - num_users,), -1, dtype=torch.long, device=h.device)
    column[candidates] = torch.arange(len(candidates), device=h.device)
    # Sorted by user, a block's interactions are one slice instead of a search through all.
    held_out, seen = held_out[held_out.user.argsort()], seen[seen.user.argsort()]
    for block in held_out.user.unique().split(_USERS):
        scores = block_scores(decode, h, block, candidates + num_users)
        check_finite(scores=scores)
        known, wanted = (_of_users(some, block) for some in (seen, held_out))
        known = known[(column[known.item] >= 0) & torch.isin(known.user, block)]
        scores[torch.searchsorted(block, known.user), column[known.item]] = -torch.inf
        top = candidates[scores.topk(min(k, len(candidates))).indices]
        truth = torch.stack([torch.searchsorted(block, wanted.user), wanted.item])
        for metric in (recall, ndcg):
            metric.update(top, truth)
    return {f"recall@{k}": float(recall.compute()), f"ndcg@{k}": float(ndcg.compute())}


def _of_users(interactions: Interactions, users: Tensor) -> Interactions:
    """The slice of interactions sorted by user that lies between the first and the last of sorted ``users``."""
    start, stop = torch.searchsorted(interactions.user, torch.stack([users[0], users[-1] + 1])).tolist()
    return interactions[torch.arange(start, stop, device=users.device)]
