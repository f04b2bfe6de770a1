"""Influence through the loss alone, as if nobody's messages had changed: SCIF, and ours without spillover."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from recipes import Scorer, Trained

from lightning_ifru import IFRU, UnlearningRequest
from lightning_ifru.newton import NewtonSearch
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.system import System, norm
from methods.interface import Forgotten
from methods.staged import Staged


@dataclass(frozen=True)
class DirectInfluence:
    r"""Damped Newton steps on the direct part of the influence; the graph is swapped afterwards.

    .. math::  (C + \Lambda)\, \Delta\theta = b_{\mathrm{direct}} = \operatorname{mean}_D \nabla\ell(\hat\theta; G)
               - \operatorname{mean}_R \nabla\ell(\hat\theta; G)

    With ``endpoints_only`` the rows of the endpoints of what is forgotten are the only unknowns and the only ones whose
    residual counts. That, one step and Gauss-Newton is SCIF, given our rule for the damping, which it has none of.

    Args:
        name: in the tables.
        method: the hyper-parameters of the solver.
        endpoints_only: whether other rows stay as they are.

    Source: Li et al., *Selective and Collaborative Influence Function for Efficient Recommendation Unlearning*,
    arXiv 2304.10199. There the rows are those of users; here items', too, which have as much to forget.
    """

    name: str
    method: IFRU = field(default_factory=IFRU)
    endpoints_only: bool = False

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Solve without spillover."""
        staged = Staged(original, request, self.method)
        u = staged.unlearning
        objective = replace(u.objective, chunk_size=self.method.chunk_size)
        influence = self.method.influence(objective, u.parameters, u.problem, start=staged.start)
        nodes = ~u.problem.erased
        if self.endpoints_only:
            nodes &= u.problem.node_counts(objective, u.problem.forgotten) > 0
        free = expand_to_parameters(nodes, objective, u.parameters)
        # What is left of the influence without its spillover is the residual of this target at the start.
        b, target = (vector - influence.spillover for vector in (influence.total, influence.leftover))
        staged.lap("influence")
        sides = self.method.sides(objective, u.problem)
        system = System.of(objective, u.problem, sides, start=staged.start, leftover=target, free=free, nodes=nodes)
        search = NewtonSearch(self.method, system, lambda _: None)
        before = norm(b * free)
        stationarity = norm(influence.leftover * free) / before if before else torch.inf
        theta, steps = search.run(-b * free, stationarity) if before else (staged.start, ())
        staged.lap("solve")
        staged.put(theta)
        details = {
            "residual_before": before,
            "residual_after": steps[-1].residual if steps else before,
            "stationarity": stationarity,
            "curvature": steps[-1].curvature if steps else None,
            "damping": steps[-1].damping if steps else None,
            "steps": len(steps),
            "cg_iterations": search.products,
            "unknowns": int(nodes.sum()),
        }
        return staged.finish(details=details)
