r"""How often training has a node in a batch: the weight of a penalty that counts the nodes of every batch once.

PyG's ``LightGCN.recommendation_loss`` adds :math:`\frac{\lambda}{B} \sum_{v \in \text{batch}} \|e_v\|^2` to a batch of
:math:`B` examples, a node that occurs several times counting once. As a term of the risk it is the expectation over
batches, in which a node weighs

.. math::

    p_v = \frac{1}{B} \left[ 1 - \binom{n - n_v}{B} \binom{n}{B}^{-1} \left(1 - \frac{1}{M}\right)^{B K} \right]

with :math:`n_v` of the :math:`n` examples, and for an item among the :math:`M` candidates of :math:`K` negatives for
each example. So the weight depends on what is forgotten. It is the *inclusion probability* of sampling theory, over
:math:`B`, for full batches: an epoch's last one, which may be smaller, is taken for one of them.
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
    # The binomials' ratio is a product over a node's examples, whose logarithms lose no digit to cancellation.
    left = num_examples - torch.arange(int(counts.max()), dtype=torch.float64, device=counts.device)
    log_absent = torch.log1p(-(size / left).clamp(max=1)).cumsum(0)
    log_absent = torch.cat([log_absent.new_zeros(1), log_absent])[counts]
    if candidates is not None:
        log_missed = torch.log1p(log_absent.new_tensor(-1 / candidates.numel()))
        log_absent[candidates] += size * num_negatives * log_missed
    return -torch.expm1(log_absent) / size
