"""The numbers of a report: how well node representations predict held-out labels and recommend."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ifru.interactions import Interactions
from lightning_ifru.metrics.retrieval import ranking
from lightning_ifru.metrics.scores import Decoder, auroc, dot_product, pair_scores


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

    Args:
        decode: ``(source [B, d], destination [B, d]) -> scores [B]``; ``None`` for dot products.
        h: representations ``[num_nodes, d]``, users first.
        num_users: the offset of items among nodes.
        test: the interactions to be predicted; those with a label above 0 are positive.
        seen: the interactions the model was trained on.
        candidates: the items ``[M]`` that can be recommended.
        labelled: whether ``test`` has negatives of its own.
        seed: of the negatives drawn otherwise.

    Returns:
        The three numbers by name, ``None`` where there is nothing to take one on.

    Raises:
        UnlearningError: If a score is not finite.

    Example:
        >>> test = Interactions(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
        >>> seen = test[torch.tensor([False, False])]
        >>> h = torch.tensor([[1.0], [1.0], [2.0]])  # one user and two items
        >>> evaluate(None, h, 1, test, seen, candidates=torch.arange(2), labelled=True)
        {'auroc': 1.0, 'recall@20': 1.0, 'ndcg@20': 1.0}
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
