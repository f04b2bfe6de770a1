"""Scores of pairs of nodes from their representations, in bounded memory, and how well they tell two classes apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics.checks import check_finite

Decoder = Callable[[Tensor, Tensor], Tensor]

#: Pairs scored at a time, so that their rows stay in a processor's cache.
_PAIRS = 1 << 14


def dot_product(source: Tensor, destination: Tensor) -> Tensor:
    """Return the dot products ``[B]`` of rows ``[B, d]``.

    Example:
        >>> dot_product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([11.])
    """
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


def block_scores(decode: Decoder | None, h: Tensor, source: Tensor, destination: Tensor) -> Tensor:
    """Score every node of ``source [n]`` with every node of ``destination [M]``: ``[n, M]``.

    Without a decoder the scores are dot products, and one matrix product.

    Example:
        >>> block_scores(None, torch.tensor([[1.0], [3.0]]), torch.tensor([0]), torch.tensor([0, 1]))
        tensor([[1., 3.]])
    """
    if decode is None:
        return h.index_select(0, source) @ h.index_select(0, destination).T
    n, m = len(source), len(destination)
    return pair_scores(decode, h, source.repeat_interleave(m), destination.repeat(n)).view(n, m)


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    r"""Return the area under the ROC curve of ``scores [n]``, or ``None`` if one of the two classes is missing.

    .. math::

        \frac{1}{|P|\,|N|} \sum_{p \in P} \sum_{q \in N} [s_p > s_q] + \tfrac12 [s_p = s_q]

    Args:
        scores: anything that grows with the chance of the positive class, ``[n]``.
        positive: bool mask ``[n]``.

    Raises:
        UnlearningError: If a score is not finite, or shapes differ.

    Example:
        >>> auroc(torch.tensor([0.1, 0.9]), torch.tensor([False, True]))
        1.0
    """
    if scores.shape != positive.shape:
        raise UnlearningError(
            f"scores {list(scores.shape)} and positive {list(positive.shape)} differ in shape; say of every score "
            "whether it is of a positive one."
        )
    check_finite(scores=scores)
    if bool(positive.all()) or not bool(positive.any()):
        return None
    # torchmetrics takes the sigmoid of what is outside [0, 1], in which large scores become ties; their ranks do not.
    ranks = scores.double().unique(return_inverse=True)[1] / len(scores)
    return float(binary_auroc(ranks, positive.long()))
