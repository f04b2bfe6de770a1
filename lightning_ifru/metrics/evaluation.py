"""The numbers of a report: how well node representations predict held-out labels and recommend."""

from __future__ import annotations

from collections.abc import Callable

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
    progress: Callable[[str], None] | None = None,
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
        progress: called with a short text for every block of users ranked.

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
    pairs = test if labelled else with_negatives(test, candidates, seed)
    scores = pair_scores(decode or dot_product, h, pairs.user, pairs.item + num_users)
    return {
        "auroc": auroc(scores, pairs.label > 0),
        **ranking(decode, h, num_users, test[test.label > 0], seen, candidates, progress=progress),
    }


def with_negatives(test: Interactions, candidates: Tensor, seed: int = 0) -> Interactions:
    """Return the pairs ``[n]`` and after them as many of the same users with label 0 and items drawn uniformly.

    Args:
        test: the pairs.
        candidates: the items ``[M]`` to draw from; what a user has chosen may be drawn, too.
        seed: of the draw.

    Example:
        >>> test = Interactions(torch.tensor([5, 6]), torch.tensor([0, 1]), torch.ones(2))
        >>> both = with_negatives(test, candidates=torch.tensor([3]))
        >>> both.user, both.item, both.label
        (tensor([5, 6, 5, 6]), tensor([0, 1, 3, 3]), tensor([1., 1., 0., 0.]))
    """
    drawn = torch.randint(len(candidates), (len(test),), generator=torch.Generator().manual_seed(seed))
    return Interactions(
        test.user.repeat(2),
        torch.cat([test.item, candidates[drawn.to(candidates.device)]]),
        torch.cat([test.label, torch.zeros_like(test.label)]),
    )
