r"""How far the forgotten pairs' scores depend on what the residual does not decide.

Where training was stopped far from a minimum, many changes of the weights solve equation (2) about equally well, and
retraining takes one of them. Two numbers say how far they differ where it matters, in the probabilities
:math:`\sigma(s)` of the forgotten pairs, to first order, with :math:`J_F` their derivative in the parameters:

.. math::

    U = \frac{\operatorname{mean} |J_F (\Delta_{\tau / 10} - \Delta_\tau)|}{\operatorname{mean} |J_F \Delta_\tau|},
    \qquad
    P = \frac{\operatorname{mean} |J_F M^{-1} g|}{\operatorname{mean} |J_F M^{-1} b|}

:math:`U` compares the first step with that of a tenth of its damping: where they disagree, the damping and not the data
has decided. :math:`P` compares the pull :math:`g = \nabla J(\hat\theta; D, G)` that training has left with that of the
forgotten, both in the damping's metric :math:`M`: it is by so much that further training would move the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_ifru.derivatives import Derivative
from lightning_ifru.parameters import Parameters, unravel

if TYPE_CHECKING:
    from lightning_ifru.system import System

#: What the damping of the first step is multiplied by.
WEAKER = 0.1
#: Pairs looked at, at most; of more it is every second, third and so on.
_PAIRS = 4096


@dataclass(frozen=True)
class Looseness:
    """Mean changes of the forgotten pairs' probabilities, to first order.

    Attributes:
        moved: by the first step.
        undecided: by what a tenth of its damping would change of it.
        asked: by the influence, in the metric of the damping.
        pulled: by the gradient that training has left, in the same metric.
    """

    moved: float = 0.0
    undecided: float = 0.0
    asked: float = 0.0
    pulled: float = 0.0


def pair_moves(system: System, theta: Parameters, *vectors: Tensor) -> list[float]:
    """Return by how much each change ``[P]`` of the parameters moves the pairs' probabilities, to first order.

    Args:
        system: whose pairs they are.
        theta: the parameters to change.
        vectors: the changes; of rows that are no unknowns nothing counts.

    Example:
        >>> from lightning_ifru.losses import resolve_loss
        >>> from lightning_ifru.system import System
        >>> from lightning_ifru.objective import Objective
        >>> objective = Objective(
        ...     encode=lambda p, _: p["w"], decode=lambda p, s, t: (s * t).sum(-1), loss=resolve_loss("bce"),
        ...     regularization=None, num_users=1, num_items=1, node_parameters={"w": "node"})
        >>> w, one = torch.tensor([[0.0], [1.0]]), torch.ones(2)
        >>> system = System(objective, None, [], {"w": w}, 0 * one, one, one, one, one, torch.tensor([[0], [1]]))
        >>> pair_moves(system, {"w": w}, torch.tensor([2.0, 5.0]))  # a quarter of the score's change
        [0.5]
    """
    source, destination = system.pairs[:, :: -(-system.pairs.shape[1] // _PAIRS) or 1]
    if not len(source):
        return [0.0 for _ in vectors]
    objective, derivative = system.objective, Derivative()

    def probabilities(parameters: Parameters) -> Tensor:
        h = objective.encode(parameters, system.edge_index)
        return objective.decode(parameters, h.index_select(0, source), h.index_select(0, destination)).sigmoid()

    changes = (
        derivative(probabilities, (theta,), (unravel(vector * system.kept, theta),))[1].abs().mean()
        for vector in vectors
    )
    moves: list[float] = objective.ranks.first(torch.stack([*changes])).tolist()
    return moves
