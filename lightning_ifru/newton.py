r"""Damped Newton steps on the completeness residual, whose curvature and damping the residual itself chooses.

.. math::

    r(\theta) = \nabla J(\theta; R, G') - \nabla J(\hat\theta; D, G), \qquad
    (C + \tau M)\, \Delta\theta = -r, \qquad M_v = \bar d\, n_v / n

At :math:`\hat\theta` itself :math:`-r = b`, so that the first step is equation (2). One Krylov space serves all
dampings :math:`\tau`; each candidate is judged by the true, non-linear :math:`\|r\|`, never by held-out labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_ifru.curvature import Curvature, GaussNewton, Hessian
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, ravel, unravel
from lightning_ifru.problem import Problem, Sides
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.solvers import Solution, Status, conjugate_gradient

CurvatureName = Literal["gauss-newton", "hessian"]
Progress = Callable[[str], None]

CURVATURES: dict[CurvatureName, type[Curvature]] = {"gauss-newton": GaussNewton, "hessian": Hessian}
#: Dampings tried, in units of the mean curvature of a row.
DAMPINGS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_FIRST_DAMPING = DAMPINGS.index(0.1)
#: A smaller damping is taken if it leaves a residual within this factor of the least.
_INDIFFERENT = 1.05
#: Steps go on while each leaves at most this share of the residual ...
_WORTHWHILE = 0.95
#: ... and more than this share of the first one is left.
_COMPLETE = 1e-3


@dataclass(frozen=True)
class Step:
    """One accepted Newton step: its curvature, damping, how the solve went, and ``‖r‖`` after it."""

    curvature: CurvatureName
    damping: float
    status: Status
    cg_iterations: int
    residual: float


@dataclass
class NewtonSearch:
    r"""The search for a zero of the residual.

    Args:
        objective, problem, sides: what is solved.
        leftover: :math:`\nabla J(\hat\theta; D, G)`, ``[P]``.
        free: 1 where a parameter takes part in the residual, 0 in rows of erased nodes, ``[P]``.
        nodes: the nodes whose rows are unknowns, a bool mask ``[num_nodes]``.
        curvature, damping, max_steps, cg_iterations, cg_tolerance, probes, seed: as of ``IFRU``.
        report: called with a short text at every product and trial.
    """

    objective: Objective
    problem: Problem
    sides: Sides
    leftover: Tensor
    free: Tensor
    nodes: Tensor
    curvature: Literal["auto", "gauss-newton", "hessian"]
    damping: float | None
    max_steps: int
    cg_iterations: int
    cg_tolerance: float
    probes: int
    seed: int
    report: Progress
    products: int = field(default=0, init=False)

    def run(self, start: Parameters, residual: Tensor, stationarity: float) -> tuple[Parameters, tuple[Step, ...]]:
        """Step from ``start``, where the residual is ``residual [P]``, until no step is worthwhile."""
        self.dampings = DAMPINGS if self.damping is None else (self.damping,)
        self.kept = expand_to_parameters(self.nodes, self.objective, start)
        self.metric = self._metric(start)
        kinds: tuple[CurvatureName, ...] = ("gauss-newton", "hessian")
        if self.curvature != "auto":
            kinds = (self.curvature,)
        elif stationarity > 1.0:
            kinds = ("gauss-newton",)
        at = _FIRST_DAMPING if self.damping is None else 0
        theta, steps = start, list[Step]()
        size = norm(residual)
        complete = _COMPLETE * size
        while len(steps) < self.max_steps and size > complete:
            trials = [trial for kind in kinds if (trial := self._step(kind, theta, residual, at)) is not None]
            if not trials:
                break
            step, moved, found, reached = min(trials, key=lambda trial: trial[0].residual)
            if step.residual >= size:
                break
            worthwhile = step.residual <= _WORTHWHILE * size
            theta, residual, size, at = moved, reached, step.residual, found
            steps.append(step)
            kinds = (step.curvature,)
            if not worthwhile:
                break
        return theta, tuple(steps)

    def _curvature(self, kind: CurvatureName, theta: Parameters) -> Callable[[Tensor], Tensor]:
        matrix = CURVATURES[kind](self.objective, theta, self.problem.after, [self.sides.retained_after])

        def product(vector: Tensor) -> Tensor:
            self.products += 1
            self.report(f"{kind} product {self.products}")
            return matrix(vector * self.kept) * self.kept

        return product

    def _metric(self, theta: Parameters) -> Tensor:
        r"""Return the diagonal :math:`\bar d\, n_v / n` of the damping, from Hutchinson's estimate, ``[P]``."""
        counts = self.problem.node_counts(self.objective, self.problem.retained)
        share = counts.clamp(min=1) / len(self.problem.retained)
        scale = expand_to_parameters(share, self.objective, theta)
        product = self._curvature("gauss-newton", theta)
        generator = torch.Generator().manual_seed(self.seed)
        sums = dict.fromkeys(theta, 0.0)
        for _ in range(self.probes):
            signs = torch.randint(2, scale.shape, generator=generator).to(scale) * 2 - 1
            probe = signs * self.kept * scale.rsqrt()
            for name, tensor in unravel(probe * product(probe), theta).items():
                sums[name] += float(tensor.sum())
        sizes = {name: max(1.0, float(t.sum())) for name, t in unravel(self.kept, theta).items()}
        means = {name: total / sizes[name] / self.probes for name, total in sums.items()}
        largest = max(means.values())
        if not largest > 0.0:
            raise ObjectiveError(
                f"the mean curvature of the objective is {largest:.3g}; wanted a positive number: the loss does not "
                "depend on the parameters, or it has saturated at them."
            )
        # A parameter on which the risk does not depend gets a tiny damping instead of none, so that none divides by 0.
        mean = {n: torch.full_like(t, max(means[n], 1e-6 * largest)) for n, t in theta.items()}
        return scale * ravel(mean)

    def _step(
        self, kind: CurvatureName, theta: Parameters, residual: Tensor, at: int
    ) -> tuple[Step, Parameters, int, Tensor] | None:
        """Solve for all dampings at once, then walk the ladder from ``at`` towards the smallest residual."""
        solutions = conjugate_gradient(
            self._curvature(kind, theta),
            -residual * self.kept,
            shifts=self.dampings,
            preconditioner=self.metric,
            tolerance=self.cg_tolerance,
            max_iterations=self.cg_iterations,
        )
        tried: dict[int, tuple[float, Parameters, Tensor]] = {}

        def size(index: int) -> float:
            if index not in tried:
                tried[index] = self._try(theta, solutions[index])
                self.report(f"{kind} damping {self.dampings[index]:g}")
            return tried[index][0]

        best = _walk(size, at, len(solutions))
        if not math.isfinite(size(best)):
            return None
        norm, moved, reached = tried[best]
        solution = solutions[best]
        step = Step(kind, self.dampings[best], solution.status, solution.iterations, norm)
        return step, moved, best, reached

    def _try(self, theta: Parameters, solution: Solution) -> tuple[float, Parameters, Tensor]:
        """Return ``‖r‖`` after a solution's step; infinite where the system was not positive definite."""
        if solution.status in (Status.NEGATIVE_CURVATURE, Status.BREAKDOWN):
            return math.inf, theta, self.leftover
        delta = unravel(solution.value * self.kept, theta)
        # Rows that are no unknowns stay as they are to the bit, signed zeros and all.
        moved = {name: torch.where(delta[name] != 0, theta[name] + delta[name], theta[name]) for name in theta}
        try:
            gradient = self.objective.gradient(moved, self.problem.after, [self.sides.retained_after])
        except ObjectiveError:
            return math.inf, theta, self.leftover
        reached = (ravel(gradient) - self.leftover) * self.free
        return norm(reached), moved, reached


def _walk(size: Callable[[int], float], start: int, length: int) -> int:
    """Walk from ``start`` downhill, preferring larger indices (smaller dampings) within indifference."""
    best = least = start
    index = start + 1
    while index < length and math.isfinite(size(index)) and size(index) <= _INDIFFERENT * size(least):
        best = index
        least = min(least, index, key=size)
        index += 1
    if best != start:
        return best
    index = start - 1
    while index >= 0 and (size(index) * _INDIFFERENT < size(best) or not math.isfinite(size(best))):
        best = index
        index -= 1
    return best


def norm(vector: Tensor) -> float:
    """Return the Euclidean norm, summed in double precision."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
