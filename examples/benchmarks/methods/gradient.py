"""One step along the influence, without curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from recipes import Scorer, Trained

from lightning_ifru import UnlearningRequest
from lightning_ifru.curvature import GaussNewton
from lightning_ifru.parameters import ravel, unravel
from lightning_ifru.pruning import expand_to_parameters
from methods.interface import Forgotten
from methods.staged import Staged


@dataclass(frozen=True)
class GradientStep:
    r"""One scaled gradient step, with Cauchy's length: no labels, and a single product with the curvature.

    .. math::  \Delta\theta = \eta\, b, \qquad \eta = \frac{b^\top b}{b^\top C b}

    minimises the quadratic model :math:`\tfrac12 \Delta\theta^\top C\, \Delta\theta - b^\top \Delta\theta` along
    :math:`b`, :math:`C` being the Gauss-Newton matrix on the retained data and graph.

    Args:
        name: in the tables.

    Source: Nocedal and Wright, *Numerical Optimization*, section 4.1.
    """

    name: str

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Step."""
        staged = Staged(original, request)
        u, start = staged.unlearning, staged.start
        influence = u.method.influence(u.objective, u.parameters, u.problem, start=start)
        b = influence.total * expand_to_parameters(~u.problem.erased, u.objective, u.parameters)
        staged.lap("influence")
        sides = u.method.sides(u.objective, u.problem)
        curvature = GaussNewton(u.objective, start, u.problem.after, [sides.retained_after])
        length = float(torch.dot(b, b) / torch.dot(b, curvature(b))) if b.any() else 0.0
        staged.lap("solve")
        staged.put(unravel(ravel(start) + length * b, start))
        return staged.finish(details={"length": length, "residual_before": float(b.norm())})
