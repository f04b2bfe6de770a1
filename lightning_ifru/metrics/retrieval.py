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
    """Return Recall@k and NDCG@k of ranking all candidate items for the users with held-out positives.

    Items of ``seen`` are left out of a user's list.

    Args:
        decode: ``(source [B, d], destination [B, d]) -> scores [B]``; ``None`` for dot products.
        h: representations ``[num_nodes, d]``, users first.
        num_users: the offset of items among nodes.
        held_out: the positives to be found.
        seen: the interactions the model was trained on.
        candidates: the items ``[M]`` to be ranked.
        k: the length of the lists.

    Raises:
        UnlearningError: If a score is not finite.
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
