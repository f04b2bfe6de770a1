r"""What Newton steps are taken on: the risk of what stays, where they start, and the gradient to be arrived at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ifru.examples import Examples
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, ravel
from lightning_ifru.problem import Problem, Sides
from lightning_ifru.pruning import expand_to_parameters

#: A residual is as good as none at this share of the first one ...
EXACT = 1e-3
#: ... and at this where negatives were drawn: another draw moves the influence itself by about as much ...
DRAWN = 0.05


@dataclass(frozen=True)
class System:
    r"""What Newton steps are taken on.

    Attributes:
        objective, edge_index, examples: the risk :math:`J(\cdot; R, G')`.
        start: the parameters to step from.
        leftover: the gradient :math:`\nabla J(\hat\theta; D, G)` that is to be arrived at, ``[P]``.
        free: 1 where a parameter takes part in the residual, 0 in rows of erased nodes, ``[P]``.
        kept: 1 where a parameter is an unknown, ``[P]``.
        share: the share :math:`n_v / n` of all examples that each node has, ``[num_nodes]``.
        gradient: the gradient :math:`\nabla J(\hat\theta; D, G)` that training has left, ``[P]``.
        pairs: the nodes of the forgotten pairs, ``[2, n]``.
        precision: the share of the first residual that is as good as none.
    """

    objective: Objective
    edge_index: Tensor
    examples: Sequence[Examples]
    start: Parameters
    leftover: Tensor
    free: Tensor
    kept: Tensor
    share: Tensor
    gradient: Tensor
    pairs: Tensor
    precision: float = EXACT

    @classmethod
    def of(
        cls,
        objective: Objective,
        problem: Problem,
        sides: Sides,
        *,
        start: Parameters,
        leftover: Tensor,
        free: Tensor,
        nodes: Tensor,
    ) -> System:
        """Describe all of a problem, the rows of ``nodes`` (a bool mask ``[num_nodes]``) being the unknowns."""
        counts = problem.node_counts(objective, problem.retained)
        return cls(
            objective=objective,
            edge_index=problem.after,
            examples=[sides.retained_after],
            start=start,
            leftover=leftover,
            free=free,
            kept=expand_to_parameters(nodes, objective, start),
            share=counts.clamp(min=1) / len(problem.retained),
            gradient=leftover,
            pairs=torch.stack([problem.forgotten.user, problem.forgotten.item + objective.num_users]),
            precision=DRAWN if objective.loss.needs_negatives else EXACT,
        )

    def look(self, theta: Parameters) -> tuple[float, Tensor]:
        r"""Return the risk :math:`J(\theta; R, G')` and :math:`r(\theta)`, ``[P]``."""
        risk, gradient = self.objective.value_and_gradient(theta, self.edge_index, self.examples)
        return risk, (ravel(gradient) - self.leftover) * self.free

    def residual(self, theta: Parameters) -> Tensor:
        r"""Return :math:`r(\theta)`, ``[P]``."""
        return self.look(theta)[1]


def norm(vector: Tensor) -> float:
    """Return the Euclidean norm, summed in double precision."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
