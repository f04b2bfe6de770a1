r"""Damped Newton steps on the completeness residual, whose curvature and damping the residual itself chooses.

.. math::

    r(\theta) = \nabla J(\theta; R, G') - \nabla J(\hat\theta; D, G), \qquad
    (C + \tau M)\, \Delta\theta = -r, \qquad M_v = \bar d\, \sqrt{n_v / n}

At :math:`\hat\theta` itself :math:`-r = b`, so that the first step is equation (2). One Krylov space serves all
dampings :math:`\tau` and grows as the smaller ones are tried; each candidate is judged by the true, non-linear
:math:`\|r\|`, never by held-out labels. Of those that do about equally well the largest damping is taken: the smallest
change that explains what is gone.

The root is Adam's: it divides a row's gradient by the root of its mean square over the batches, which for a row that is
in a share :math:`n_v / n` of the examples goes with :math:`\sqrt{n_v / n}`. Training that was stopped has moved a row
as if damped in this metric, and as a preconditioner it takes fewer products than :math:`n_v / n` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lightning_ifru.curvature import Curvature, GaussNewton, Hessian
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.looseness import WEAKER, Looseness, pair_moves
from lightning_ifru.parameters import Parameters, ravel, unravel
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.solvers import KrylovSpace, Solution, Status
from lightning_ifru.system import System, norm

if TYPE_CHECKING:
    from lightning_ifru.influence import IFRU

CurvatureName = Literal["gauss-newton", "hessian"]
Progress = Callable[[str], None]

CURVATURES: dict[CurvatureName, type[Curvature]] = {"gauss-newton": GaussNewton, "hessian": Hessian}
#: Dampings tried, in units of the mean curvature of a row.
DAMPINGS = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_FIRST_DAMPING = DAMPINGS.index(0.1)
#: The search goes on to a smaller damping while that gains at least 2%.
_DOWNHILL = 0.98
#: The largest damping is taken whose residual is worse than the least by at most this share of it and of what it gains.
_INDIFFERENT = 0.05
#: Relative standard error at which the mean curvature is known well enough: dampings are factors of three apart.
_SURE = 0.01
#: Steps go on while each leaves at most this share of the last residual.
_WORTHWHILE = 0.95


@dataclass(frozen=True)
class Step:
    """One accepted Newton step: its curvature, damping, how the solve went, and ``‖r‖`` and the risk after it."""

    curvature: CurvatureName
    damping: float
    status: Status
    cg_iterations: int
    residual: float
    risk: float


class NewtonSearch:
    r"""The search for a zero of the residual.

    Args:
        method: the hyper-parameters.
        system: what is solved.
        report: called with a short text at every product and trial.

    Attributes:
        products: products with the curvature so far.
        negative: linear systems so far that were seen not to be positive definite.
        looseness: what the first step leaves open about the forgotten pairs.

    Raises:
        ObjectiveError: the influence or the curvature has values that are not finite, or there is no curvature.
    """

    def __init__(self, method: IFRU, system: System, report: Progress) -> None:
        self.method, self.system, self.report = method, system, report
        self.dampings = DAMPINGS if method.damping is None else (method.damping,)
        self.products = self.negative = 0
        self.looseness = Looseness()
        # The mean curvature is probed where the first step is taken from.
        self._matrix: Curvature | None = None

    def run(self, residual: Tensor, stationarity: float) -> tuple[Parameters, tuple[Step, ...]]:
        """Step from the start, where the residual is ``residual [P]``, until no step is worthwhile."""
        kinds: tuple[CurvatureName, ...] = ("gauss-newton", "hessian")
        if self.method.curvature != "auto":
            kinds = (self.method.curvature,)
        elif stationarity > 1.0:
            kinds = ("gauss-newton",)
        size = self._norm(residual)
        for name, number in (("influence", size), ("training's gradient / influence", stationarity)):
            if not math.isfinite(number):
                raise ObjectiveError(_not_finite(f"the {name} has the norm {number}"))
        metric = self._metric()
        at = _FIRST_DAMPING if self.method.damping is None else 0
        theta, steps = self.system.start, list[Step]()
        asked, pulled = pair_moves(self.system, theta, residual / metric, self.system.gradient / metric)
        self.looseness = Looseness(asked=asked, pulled=pulled)
        complete = self.system.precision * size
        while len(steps) < self.method.max_steps and size > complete:
            found = (self._step(kind, theta, residual, metric, at) for kind in kinds)
            trials = [trial for trial in found if trial is not None]
            if not trials:
                break
            step, moved, at, reached, looseness = min(trials, key=lambda trial: trial[0].residual)
            if step.residual >= size:
                break
            self.looseness = looseness
            worthwhile = step.residual <= _WORTHWHILE * size
            theta, residual, size = moved, reached, step.residual
            steps.append(step)
            kinds = (step.curvature,)
            if not worthwhile:
                break
        return theta, tuple(steps)

    def _curvature(self, kind: CurvatureName, theta: Parameters) -> Callable[[Tensor], Tensor]:
        system = self.system
        matrix = self._matrix
        if matrix is None or type(matrix) is not CURVATURES[kind] or matrix.parameters is not theta:
            matrix = self._matrix = None  # not two at a time
            matrix = CURVATURES[kind](system.objective, theta, system.edge_index, system.examples)
            self._matrix = matrix

        def product(vector: Tensor) -> Tensor:
            self.products += 1
            self.report(f"{kind} product {self.products}")
            try:
                return matrix(vector * system.kept) * system.kept
            except NotImplementedError as error:
                first = str(error).strip().partition("\n")[0]
                raise ObjectiveError(
                    f"{system.objective.name} has an operation without a second derivative ({first}), so that there is "
                    "no Newton step; write it with others: an embedding and a sum for EmbeddingBag, squares for cdist."
                ) from error

        return product

    def _metric(self) -> Tensor:
        r"""Return the diagonal :math:`\bar d\, \sqrt{n_v / n}` of the damping, from Hutchinson's estimate, ``[P]``."""
        theta = self.system.start
        scale = expand_to_parameters(self.system.share.sqrt(), self.system.objective, theta)
        product = self._curvature("gauss-newton", theta)
        generator = torch.Generator().manual_seed(self.method.seed)
        means = dict[str, float]()
        for name in theta:
            # Probed one parameter at a time: what a small dense one has in common with a large table would drown it.
            block = {n: torch.full_like(t, float(n == name)) for n, t in theta.items()}
            kept = self.system.kept * ravel(block)
            found = torch.zeros(2, dtype=torch.float64, device=kept.device)
            probed = 0
            while probed < self.method.probes:
                probed += 1
                signs = torch.randint(2, scale.shape, generator=generator).to(scale) * 2 - 1
                probe = signs * kept * scale.rsqrt()
                each = probe * product(probe)
                found += torch.stack([each.sum(dtype=torch.float64), each.square().sum(dtype=torch.float64)])
                total, squares = self.system.objective.ranks.first(found).tolist()
                # A table of many rows is its own sample: the spread of its entries' shares says how sure their sum is.
                if squares**0.5 <= _SURE * total:
                    break
            means[name] = total / probed / max(1.0, float(kept.sum()))
        wrong = [name for name, mean in means.items() if not math.isfinite(mean)]
        if wrong:
            raise ObjectiveError(_not_finite(f"the mean curvature of '{wrong[0]}' is {means[wrong[0]]}"))
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
        self, kind: CurvatureName, theta: Parameters, residual: Tensor, metric: Tensor, at: int
    ) -> tuple[Step, Parameters, int, Tensor, Looseness] | None:
        """Walk the ladder of dampings from ``at`` towards the smallest residual."""
        space = KrylovSpace(
            self._curvature(kind, theta),
            -residual * self.system.kept,
            preconditioner=metric,
            tolerance=self.method.cg_tolerance,
            max_iterations=self.method.cg_iterations,
            agree=self.system.objective.ranks.first,
        )
        sizes: dict[int, float] = {}
        tried: dict[int, _Trial] = {}

        def size(index: int) -> float:
            if index not in sizes:
                solution = space.solve(self.dampings[index])
                tried[index] = self._try(theta, solution)
                sizes[index] = tried[index].size
                self.report(f"{kind} damping {self.dampings[index]:g}")
                # What is worse than indifferent is not taken, and its vectors are let go of.
                most = (1 + 2 * _INDIFFERENT) * min(sizes.values())
                for other in [other for other in tried if sizes[other] > most]:
                    del tried[other]
            return sizes[index]

        best = _walk(size, at, len(self.dampings), self._norm(residual))
        # Beside Gauss-Newton the Hessian is an offer, which a second derivative without a value takes back.
        if not space.finite and not (kind == "hessian" and self.method.curvature == "auto"):
            raise ObjectiveError(_not_finite(f"a product with the {kind} matrix has values"))
        if best not in tried or not math.isfinite(size(best)):  # let go of, where all are worse than standing still
            return None
        found = tried[best]
        solution = found.solution
        step = Step(kind, self.dampings[best], solution.status, solution.iterations, found.size, found.risk)
        looseness = self.looseness
        if theta is self.system.start:
            weaker = space.solve(WEAKER * self.dampings[best]).value
            moved, undecided = pair_moves(self.system, theta, solution.value, weaker - solution.value)
            looseness = replace(looseness, moved=moved, undecided=undecided)
        return step, found.parameters, best, found.residual, looseness

    def _try(self, theta: Parameters, solution: Solution) -> _Trial:
        """Take a solution's step; its size is infinite where the system was not positive definite."""
        nowhere = _Trial(solution, theta, self.system.leftover, math.inf, math.inf)
        if solution.status in (Status.NEGATIVE_CURVATURE, Status.BREAKDOWN):
            self.negative += solution.status is Status.NEGATIVE_CURVATURE
            return nowhere
        delta = unravel(solution.value * self.system.kept, theta)
        # Rows that are no unknowns stay as they are to the bit, signed zeros and all.
        moved = {name: torch.where(delta[name] != 0, theta[name] + delta[name], theta[name]) for name in theta}
        try:
            risk, reached = self.system.look(moved)
        except ObjectiveError:
            return nowhere
        size = self._norm(reached)
        return _Trial(solution, moved, reached, size, risk) if math.isfinite(size) else nowhere

    def _norm(self, vector: Tensor) -> float:
        # All ranks decide alike, by the first one's rounding.
        return self.system.objective.ranks.first(norm(vector))


@dataclass(frozen=True)
class _Trial:
    """A solution, the parameters it leads to, ``r`` there and its norm, and the risk."""

    solution: Solution
    parameters: Parameters
    residual: Tensor
    size: float
    risk: float


def _not_finite(found: str) -> str:
    return (
        f"{found}, where all must be finite numbers; nothing was changed: check the model for roots, logarithms and "
        "divisions at zero, whose derivatives have no value, and its weights for very large ones."
    )


def _walk(size: Callable[[int], float], start: int, length: int, current: float) -> int:
    """Walk from ``start`` into the dip of the sizes, then back to the largest damping that is as good.

    Larger indices are smaller dampings. ``current`` is the size that is to be fallen below.
    """
    best = start
    while best + 1 < length and size(best + 1) < _DOWNHILL * size(best):
        best += 1
    if best == start:
        while best > 0 and (size(best - 1) < size(best) or not size(best) < current):
            best -= 1
    least = size(best)
    while best > 0 and size(best - 1) <= least + _INDIFFERENT * min(least, current - least):
        best -= 1
        least = min(least, size(best))
    return best
