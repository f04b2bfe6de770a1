"""How well node representations recommend: AUROC on held-out labels, Recall@k and NDCG@k over all items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall
from torchmetrics.functional.classification import binary_auroc

from lightning_ifru.interactions import Interactions

Decoder = Callable[[Tensor, Tensor], Tensor]

#: Pairs scored at a time.
_PAIRS = 1 << 14


def pair_scores(decode: Decoder, h: Tensor, user: Tensor, node: Tensor) -> Tensor:
    """Score pairs of nodes ``[n]`` from their representations ``h [num_nodes, d]``, in bounded memory.

    Example:
        >>> pair_scores(lambda s, t: (s * t).sum(-1), torch.tensor([[1.0], [3.0]]), *torch.tensor([[0], [1]]))
        tensor([3.])
    """
    pieces = zip(user.split(_PAIRS), node.split(_PAIRS), strict=True)
    scores = [decode(h.index_select(0, u), h.index_select(0, v)) for u, v in pieces]
    return torch.cat(scores) if scores else h.new_zeros(0)


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Return the area under the ROC curve of ``scores [n]``, or ``None`` if one of the two classes is missing.

    Example:
        >>> auroc(torch.tensor([0.1, 0.9]), torch.tensor([False, True]))
        1.0
    """
    if bool(positive.all()) or not bool(positive.any()):
        return None
    return float(binary_auroc(scores, positive.long()))


def ranking(
    decode: Decoder,
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
        decode: ``(source [B, d], destination [B, d]) -> scores [B]``.
        h: representations ``[num_nodes, d]``, users first.
        num_users: the offset of items among nodes.
        held_out: the positives to be found.
        seen: the interactions the model was trained on.
        candidates: the items ``[M]`` to be ranked.
        k: the length of the lists.
    """
    users = held_out.user.unique()
    if not len(users):
        return {f"recall@{k}": None, f"ndcg@{k}": None}
    recall, ndcg = LinkPredRecall(k), LinkPredNDCG(k)
    num_items = h.shape[0] - num_users
    column = torch.full((num_items,), -1, dtype=torch.long, device=h.device)
    column[candidates] = torch.arange(len(candidates), device=h.device)
    for block in users.split(max(1, _PAIRS // len(candidates))):
        row = torch.full((num_users,), -1, dtype=torch.long, device=h.device)
        row[block] = torch.arange(len(block), device=h.device)
        scores = pair_scores(
            decode, h, block.repeat_interleave(len(candidates)), candidates.repeat(len(block)) + num_users
        ).view(len(block), -1)
        known = (row[seen.user] >= 0) & (column[seen.item] >= 0)
        scores[row[seen.user[known]], column[seen.item[known]]] = -torch.inf
        top = candidates[scores.topk(min(k, len(candidates))).indices]
        wanted = row[held_out.user] >= 0
        truth = torch.stack([row[held_out.user[wanted]], held_out.item[wanted]])
        for metric in (recall, ndcg):
            metric.update(top, truth)
    return {f"recall@{k}": float(recall.compute()), f"ndcg@{k}": float(ndcg.compute())}


def evaluate(
    decode: Decoder,
    h: Tensor,
    num_users: int,
    test: Interactions,
    seen: Interactions,
    candidates: Tensor,
    labelled: bool,
    seed: int = 0,
) -> dict[str, float | None]:
    """Return ``auroc``, ``recall@20`` and ``ndcg@20`` on the test interactions.

    With implicit feedback the AUROC is that of test pairs against as many pairs of the same users with items drawn
    uniformly from ``candidates``, by ``seed``.
    """
    user, item, positive = test.user, test.item, test.label > 0
    if not labelled:
        generator = torch.Generator().manual_seed(seed)
        drawn = candidates[torch.randint(len(candidates), (len(test),), generator=generator).to(candidates.device)]
        user, item = user.repeat(2), torch.cat([item, drawn])
        positive = torch.cat([positive, torch.zeros_like(positive)])
    scores = pair_scores(decode, h, user, item + num_users)
    return {
        "auroc": auroc(scores, positive),
        **ranking(decode, h, num_users, test[test.label > 0], seen, candidates),
    }
