r"""How often training has a node in a batch: the weight of a penalty that counts the nodes of every batch once.

PyG's ``LightGCN.recommendation_loss`` adds :math:`\frac{\lambda}{B} \sum_{v \in \text{batch}} \|e_v\|^2` to a batch of
:math:`B` examples, a node that occurs several times counting once. As a term of the risk it is the expectation over
batches, in which a node weighs

.. math::

    p_v = \frac{1}{B} \left[ 1 - \binom{n - n_v}{B} \binom{n}{B}^{-1} \left(1 - \frac{1}{M}\right)^{B K} \right]

with :math:`n_v` of the :math:`n` examples, and for an item among the :math:`M` candidates of :math:`K` negatives for
each example. So the weight depends on what is forgotten.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batch_presence(
    counts: Tensor, num_examples: int, batch_size: int, candidates: Tensor | None = None, num_negatives: int = 1
) -> Tensor:
    r"""Return :math:`p_v` for every node, float64 ``[num_nodes]``.

    Args:
        counts: examples of every node, ``[num_nodes]``.
        num_examples: the number ``n`` of examples.
        batch_size: examples of a batch; all of them, if there are fewer.
        candidates: the nodes ``[M]`` that negatives are drawn from, uniformly; ``None``: there are no negatives.
        num_negatives: negatives for each example.

    Example:
        Of two examples one is in the batch, and its negative is one of two items:

        >>> batch_presence(torch.tensor([1, 1, 2, 0]), 2, 1, candidates=torch.tensor([2, 3]))
        tensor([0.5000, 0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """
    size = min(batch_size, num_examples)
    n, b = torch.tensor(float(num_examples), dtype=torch.float64), torch.tensor(float(size), dtype=torch.float64)
    others = n.to(counts.device) - counts.to(torch.float64)
    # Of few others some are in every batch; the logarithm of their binomial is minus infinity.
    left_out = _log_choose(others, b.to(counts.device)) - _log_choose(n, b).to(counts.device)
    absent = torch.where(others >= size, left_out.exp(), 0.0)
    if candidates is not None:
        absent[candidates] *= (1 - 1 / candidates.numel()) ** (size * num_negatives)
    return (1 - absent) / size


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
