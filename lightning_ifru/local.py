r"""Equation (2) on the rows around what is forgotten: the same Newton steps on a system of their own.

The unknowns are the rows of a :class:`~lightning_ifru.local_problem.LocalProblem`; all others are constants, in the
representations that the examples are compared with and in the encoder. With :math:`J_T` the risk of the examples at
hand, the steps look for

.. math::  \nabla J_T(\theta) - \nabla J_T(\hat\theta) = b_T

so that the sample of examples bends the step and never moves where it goes: nothing forgotten gives no step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lightning_ifru.clock import ticks
from lightning_ifru.graph import LinearMap
from lightning_ifru.hops import HOPS
from lightning_ifru.influence import IFRU, Extent, Update
from lightning_ifru.local_problem import Budget, Departure, LocalProblem
from lightning_ifru.newton import NewtonSearch, Progress
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters
from lightning_ifru.system import DRAWN, EXACT, System, norm
from lightning_ifru.warm import WarmState

#: A residual is as good as none at this share of the first where hubs are sampled: the influence is as far off.
SAMPLED = 0.02

#: Examples that one thread takes as fast as several.
_SMALL = 1 << 16


class LocalSolve:
    """A request worked out on the rows around it.

    Args:
        method: the method, with its budgets.
        warm: the layers of the model; they are not changed before :meth:`commit`.
        departure: what goes.

    Attributes:
        system: what the steps are taken on.
        seconds: the time of ``influence``.
    """

    def __init__(self, method: IFRU, warm: WarmState, departure: Departure) -> None:
        clock = ticks()
        rows = min(method.max_rows, math.ceil(method.keep_ratio * warm.near.num_nodes))
        budget = Budget(rows, method.examples_per_row, method.hops)
        self._method, self._warm = method, warm
        with _few_threads(len(departure.rows) + rows, method):
            self._problem = LocalProblem(warm, departure, budget, method.seed)
            self._influence, self._direct = self._problem.influence()
            self._rows = self._problem.start
            self.system = self._described()
        self.seconds = {"influence": ticks() - clock}

    def run(self, progress: Progress | None = None) -> Update:
        """Solve the system.

        Args:
            progress: called with a short text at every product and trial.

        Raises:
            ObjectiveError: the objective is not finite, or without curvature.
        """
        clock = ticks()
        problem, warm, b = self._problem, self._warm, self._influence
        size = norm(b)
        stationarity = warm.gradient_norm() / size if size else math.inf
        search = NewtonSearch(self._method, self.system, progress or (lambda _: None))
        with _few_threads(len(problem.nodes), self._method):
            theta, steps = search.run(-b.flatten(), stationarity) if size else (self.system.start, ())
        seconds = {**self.seconds, "solve": ticks() - clock}
        name, before = warm.model.name, warm.embeddings[0]
        self._rows = theta[name]
        return Update(
            parameters={name: before.index_copy(0, problem.here, self._rows)},
            direct_norm=norm(self._direct),
            spillover_norm=norm(b - self._direct),
            residual_before=size,
            residual_after=steps[-1].residual if steps else size,
            stationarity=stationarity,
            by_hop=self._by_hop(b),
            risk_before=self._risk,
            risk_after=steps[-1].risk if steps else self._risk,
            steps=steps,
            cg_iterations=search.products,
            negative_curvature=search.negative,
            looseness=search.looseness,
            unknowns=int(problem.unknown.sum()),
            rows_changed=int((self._rows != before[problem.here]).any(dim=1).sum()),
            seconds=seconds,
            extent=Extent("local", len(problem.examples), problem.capped, 1 - problem.importance),
        )

    def commit(self) -> None:
        """Tell the layers that the update has been applied and that what goes has gone."""
        with _few_threads(len(self._problem.nodes), self._method):
            self._problem.commit(self._rows)

    def _described(self) -> System:
        problem, b = self._problem, self._influence
        objective, start = self._objective(), {self._warm.model.name: problem.start}
        nothing = torch.empty(2, 0, dtype=torch.long)  # the encoder has a graph of its own
        self._risk, gradients = objective.value_and_gradient(start, nothing, [problem.examples])
        (gradient,) = gradients.values()
        unknown = problem.unknown.to(b).unsqueeze(1).expand_as(b).reshape(-1)
        return System(
            objective=objective,
            edge_index=nothing,
            examples=[problem.examples],
            start=start,
            leftover=(gradient + b).flatten(),
            free=unknown,
            kept=unknown,
            share=(problem.counts.clamp(min=1) / problem.num_after).to(b.device),
            gradient=problem.gradient.flatten(),
            pairs=problem.pairs,
            precision=DRAWN if objective.loss.needs_negatives else SAMPLED if problem.capped else EXACT,
        )

    def _objective(self) -> Objective:
        problem, warm = self._problem, self._warm
        name, weights = warm.model.name, warm.model.weights

        def up(x: Tensor) -> Tensor:
            rows = x.new_zeros(len(problem.h), x.shape[1])
            return rows.index_copy_(0, problem.at, problem.graph.encode(x, weights, after=True))

        def down(x: Tensor) -> Tensor:
            return problem.graph.encode(x.index_select(0, problem.at), weights, after=True)

        encoder = LinearMap(up, down, offset=problem.h)

        def encode(parameters: Parameters, _: Tensor) -> Tensor:
            return encoder(parameters[name] - problem.start)

        # Affine, since all other rows are constants in it: not its own derivative.
        return replace(problem.patch.objective, encode=encode, linear=False, node_parameters={name: "node"})

    def _by_hop(self, b: Tensor) -> dict[str, float]:
        hops = self._problem.hops(len(HOPS) - 1)
        squares = b.square().sum(1, dtype=torch.float64)
        return {
            name: float(squares[hops == hop].sum().sqrt()) for hop, name in enumerate(HOPS) if bool((hops == hop).any())
        }


@contextmanager
def _few_threads(rows: int, method: IFRU) -> Iterator[None]:
    """Use one thread for what fits its cache, with at most so many rows and their examples.

    Hundreds of operations of a fraction of a millisecond each wait longer for all threads to meet than they gain by
    them, and many times longer where another process is busy on the same cores.
    """
    threads = torch.get_num_threads()
    try:
        if rows * method.examples_per_row <= _SMALL:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
