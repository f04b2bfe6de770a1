"""How much of an attack's figure is chance, where the pairs of one person are not independent of each other."""

from __future__ import annotations

import torch
from torch import Tensor

#: How often people are drawn anew.
RESAMPLES = 1000
#: Numbers held at a time.
_NUMBERS = 1 << 22


def attack_resamples(
    members: Tensor, nonmembers: Tensor, user: Tensor, seed: int, resamples: int = RESAMPLES
) -> Tensor:
    r"""Return the attack's AUROC for people drawn anew, with replacement, each with all of their pairs.

    With :math:`w_u` how often person :math:`u` was drawn,

    .. math::

        \frac{\sum_{p, q} w_{u(p)} w_{u(q)} \left([s_p > s_q] + \tfrac12 [s_p = s_q]\right)}
        {\left(\sum_p w_{u(p)}\right)^2}

    The same seed draws the same people, so that two models can be compared draw by draw.

    Args:
        members: logits ``[n]`` of the forgotten pairs.
        nonmembers: logits ``[n]`` of pairs never seen, each of the same user as the forgotten one in its place.
        user: whose they are, ``[n]``.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        A float64 tensor ``[resamples]``.

    Source: Field and Welsh, *Bootstrapping clustered data*, JRSS B 69 (2007), 369-390.

    Example:
        >>> members, nonmembers = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])
        >>> sorted(set(attack_resamples(members, nonmembers, torch.tensor([7, 8]), seed=0).tolist()))
        [0.0, 0.75, 1.0]
    """
    people, owner = user.cpu().unique(return_inverse=True)
    low, order = nonmembers.detach().cpu().double().sort()
    high = members.detach().cpu().double()
    below, upto = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
    generator = torch.Generator().manual_seed(seed)
    areas = []
    for count in _pieces(resamples, max(1, _NUMBERS // max(len(owner), len(people)))):
        drawn = torch.randint(len(people), (count, len(people)), generator=generator)
        times = torch.zeros(count, len(people), dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        weight = times[:, owner]
        passed = torch.nn.functional.pad(weight[:, order].cumsum(1), (1, 0))
        won = (weight * (passed[:, below] + passed[:, upto])).sum(1) / 2
        areas.append(won / weight.sum(1).square())
    return torch.cat(areas)


def _pieces(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]
