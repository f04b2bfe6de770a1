"""How well node representations recommend: AUROC on held-out labels, Recall@k and NDCG@k over all items."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.metrics import LinkPredNDCG, LinkPredRecall
from torchmetrics.functional.classification import binary_auroc

from lightning_ifru.interactions import Interactions

Decoder = Callable[[Tensor, Tensor], Tensor]

#: Pairs scored at a time, so that their rows stay in a processor's cache.
_PAIRS = 1 << 14
#: Users ranked at a time.
_USERS = 256


def dot_product(source: Tensor, destination: Tensor) -> Tensor:
    """Return the dot products ``[B]`` of rows ``[B, d]``."""
    return (source * destination).sum(-1)


def pair_scores(decode: Decoder, h: Tensor, user: Tensor, node: Tensor) -> Tensor:
    """Score pairs of nodes ``[n]`` from their representations ``h [num_nodes, d]``, in bounded memory.

    Example:
        >>> pair_scores(dot_product, torch.tensor([[1.0], [3.0]]), *torch.tensor([[0], [1]]))
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


def block_scores(decode: Decoder | None, h: Tensor, source: Tensor, destination: Tensor) -> Tensor:
    """Score every node of ``source [n]`` with every node of ``destination [M]``: ``[n, M]``.

    Without a decoder the scores are dot products, and one matrix product.

    Example:
        >>> block_scores(None, torch.tensor([[1.0], [3.0]]), torch.tensor([0]), torch.tensor([0, 1]))
        tensor([[1., 3.]])
    """
    if decode is None:
        return h[source] @ h[destination].T
    n, m = len(source), len(destination)
    return pair_scores(decode, h, source.repeat_interleave(m), destination.repeat(n)).view(n, m)


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


def evaluate(
    decode: Decoder | None,
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
    scores = pair_scores(decode or dot_product, h, user, item + num_users)
    return {
        "auroc": auroc(scores, positive),
        **ranking(decode, h, num_users, test[test.label > 0], seen, candidates),
    }
