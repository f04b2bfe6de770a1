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
