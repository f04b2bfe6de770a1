r"""The method: joint influence of the forget set, and damped Newton steps that follow it.

With :math:`\hat\theta` trained on :math:`D` and its graph :math:`G`, and :math:`R = D \setminus F` with its graph
:math:`G'`,

.. math::

    b = \nabla J(\hat\theta; D, G) - \nabla J(\hat\theta; R, G')                    \tag{1}

    \Delta\theta = (C + \Lambda)^{-1} b                                             \tag{2}

Source: Zhang et al., *Recommendation Unlearning via Influence Function*, arXiv 2307.02147.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_ifru.clock import ticks
from lightning_ifru.errors import UnlearningError
from lightning_ifru.examples import Examples
from lightning_ifru.hops import influence_by_hop
from lightning_ifru.looseness import Looseness
from lightning_ifru.memory import check_memory, demand
from lightning_ifru.newton import CURVATURES, NewtonSearch, Progress, Step
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, ravel
from lightning_ifru.problem import Problem, Sides
from lightning_ifru.pruning import expand_to_parameters, important_nodes
from lightning_ifru.system import System, norm


@dataclass(frozen=True)
class Influence:
    r"""Equation (1), as vectors ``[P]``.

    Attributes:
        total: :math:`b`.
        direct: its part through the loss: the mean over ``D`` less the mean over ``R``, both on ``G``.
        spillover: its part through the message passing of everybody else: the mean over ``R`` on ``G`` less on ``G'``.
        leftover: :math:`\nabla J(\hat\theta; D, G)`, the gradient that training left behind.
    """

    total: Tensor
    direct: Tensor
    spillover: Tensor
    leftover: Tensor


@dataclass(frozen=True)
class Extent:
    """How far a solve has looked.

    Attributes:
        path: ``"full"``, over all data, or ``"local"``, around what is forgotten.
        examples: the examples that the steps were taken on.
        sampled_rows: rows of which a sample of their examples was looked at; 0 without sampling.
        left_out: the share of the importance score that nodes found and not solved for have.
    """

    path: Literal["full", "local"]
    examples: int
    sampled_rows: int = 0
    left_out: float = 0.0


@dataclass(frozen=True)
class Update:
    r"""What the method arrived at.

    Attributes:
        parameters: the corrected parameters.
        direct_norm, spillover_norm: norms of the parts of equation (1).
        residual_before, residual_after: :math:`\|r(\theta)\|` at the start and at the end.
        stationarity: :math:`\|\nabla J(\hat\theta)\| / \|b\|`.
        by_hop: :math:`\|b\|` by distance from what is forgotten, see :func:`~lightning_ifru.hops.influence_by_hop`.
        risk_before, risk_after: :math:`J(\cdot; R, G')` at the start and at the end.
        steps: the accepted steps.
        cg_iterations: products with the curvature in all, those of rejected steps included.
        negative_curvature: linear systems that were seen not to be positive definite; no step comes from one.
        looseness: what the first step leaves open about the forgotten pairs.
        unknowns: the number of node rows solved for.
        rows_changed: the number of node rows that differ from the original ones, reset rows included.
        seconds: the time of ``influence`` and ``solve``.
        extent: how far the solve has looked.

    All norms are over the parameters that take part, without the rows of erased nodes.
    """

    parameters: Parameters
    direct_norm: float
    spillover_norm: float
    residual_before: float
    residual_after: float
    stationarity: float
    by_hop: dict[str, float]
    risk_before: float
    risk_after: float
    steps: tuple[Step, ...]
    cg_iterations: int
    negative_curvature: int
    looseness: Looseness
    unknowns: int
    rows_changed: int
    seconds: dict[str, float]
    extent: Extent


@dataclass(frozen=True)
class IFRU:
    r"""Recommendation unlearning by influence functions: equations (1) and (2), usable without Lightning.

    The update solves for :math:`r(\theta) = \nabla J(\theta; R, G') - \nabla J(\hat\theta; D, G) = 0`, the state in
    which the retained data pull on the corrected model exactly as hard as all data pulled on the original. The
    residual :math:`\|r\|` needs neither labels of held-out data nor a retrained model; it alone chooses the damping
    :math:`\Lambda`, and a step is kept only if the residual falls.

    Args:
        curvature: ``"gauss-newton"``, ``"hessian"``, or ``"auto"``: Gauss-Newton where training was stopped far from a
            minimum (:math:`\|\nabla J(\hat\theta)\| > \|b\|`), else whichever leaves the smaller residual.
        damping: :math:`\tau` in :math:`\Lambda = \tau\, \bar d\, \sqrt{n_v / n}` for the row of a node with ``n_v`` of
            ``n`` interactions, :math:`\bar d` the mean curvature of its parameter; ``None``: chosen by the residual.
        max_steps: Newton steps at most.
        cg_iterations: products with the curvature for each linear solve, at most.
        cg_tolerance: relative residual at which a linear solve has converged.
        negatives: negatives drawn once for each retained positive, for pairwise losses; for listwise ones as many sets,
            each of training's number, as have that many.
        keep_ratio: the share of node rows to solve for, by importance; 1 is the exact solve.
        hops: message-passing rounds of the importance score; nothing beyond is solved for if ``keep_ratio < 1``, or
            by a local solve.
        locality: ``"full"``: every solve looks at all data; ``"local"``: at the rows around what is forgotten and their
            examples, which takes a model that declares its layers, see
            :attr:`~lightning_ifru.mixin.IFRUMixin.layer_weights`; ``"auto"``: locally where that is a small part of
            the data.
        max_rows: node rows to solve for locally, beside the ends of what is forgotten.
        examples_per_row: examples to look at for each of them, a sample where it has more; a positive counts once with
            each of its negatives.
        probes: random probes for the mean curvature :math:`\bar d`, at most.
        chunk_size: pairs that go through decoder and loss at a time, where the decoder is no dot product.
        seed: of the negatives and the probes.

    Raises:
        UnlearningError: a hyper-parameter out of its range.

    Example:
        Three users rate one item; the model is its mean rating. Without the third user the mean is 1.5:

        >>> from lightning_ifru.interactions import Interactions
        >>> from lightning_ifru.losses import resolve_loss
        >>> objective = Objective(
        ...     encode=lambda p, edge_index: torch.cat([torch.ones(3, 1), p["mean"]]),
        ...     decode=lambda p, source, destination: (source * destination).sum(-1),
        ...     loss=resolve_loss("mse"), regularization=lambda p: 0 * p["mean"].sum(), num_users=3, num_items=1)
        >>> no_edges, item = torch.empty(2, 0, dtype=torch.long), torch.tensor([0])
        >>> problem = Problem(
        ...     Interactions(torch.arange(3), item.repeat(3), torch.tensor([1.0, 2.0, 6.0])),
        ...     forget=torch.tensor([False, False, True]), before=no_edges, after=no_edges,
        ...     erased=torch.zeros(4, dtype=torch.bool), candidates=item, candidates_after=item)
        >>> IFRU(damping=0.0).update(objective, {"mean": torch.tensor([[3.0]])}, problem).parameters["mean"]
        tensor([[1.5000]])
    """

    curvature: Literal["auto", "gauss-newton", "hessian"] = "auto"
    damping: float | None = None
    max_steps: int = 5
    cg_iterations: int = 20
    cg_tolerance: float = 0.1
    negatives: int = 4
    keep_ratio: float = 1.0
    hops: int = 2
    locality: Literal["auto", "full", "local"] = "auto"
    max_rows: int = 256
    examples_per_row: int = 64
    probes: int = 4
    chunk_size: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = {
            "curvature": (self.curvature in ("auto", *CURVATURES), "'auto', 'gauss-newton' or 'hessian'"),
            "locality": (self.locality in ("auto", "full", "local"), "'auto', 'full' or 'local'"),
            "damping": (
                self.damping is None or (_is_number(self.damping) and 0 <= self.damping < math.inf),
                "None or a number of at least 0",
            ),
            "cg_tolerance": (_is_number(self.cg_tolerance) and 0 < self.cg_tolerance < 1, "a number between 0 and 1"),
            "keep_ratio": (_is_number(self.keep_ratio) and 0 < self.keep_ratio <= 1, "a number above 0 and at most 1"),
        }
        least = {"hops": 0, "seed": 0, "max_steps": 1, "cg_iterations": 1, "negatives": 1, "probes": 1, "chunk_size": 1}
        least |= {"max_rows": 0, "examples_per_row": 1}
        for name, low in least.items():
            value = getattr(self, name)
            wanted[name] = (type(value) is int and value >= low, f"an integer of at least {low}")
        for field in fields(self):
            valid, domain = wanted[field.name]
            if not valid:
                raise UnlearningError(f"IFRU got {field.name}={getattr(self, field.name)!r}; wanted {domain}.")

    def sides(self, objective: Objective, problem: Problem) -> Sides:
        """Return the two sides of ``problem`` with this method's negatives."""
        return Sides.of(problem, objective, self.negatives, self.seed)

    def influence(
        self, objective: Objective, parameters: Parameters, problem: Problem, start: Parameters | None = None
    ) -> Influence:
        """Return equation (1) and its parts.

        Args:
            objective: the risk that training minimised.
            parameters: the trained parameters.
            problem: what is forgotten and what stays.
            start: the parameters at which the side of ``R`` is taken, if rows of erased nodes have been reset.
        """
        objective = replace(objective, chunk_size=self.chunk_size)
        start = parameters if start is None else start
        return self._influence(objective, parameters, problem, self.sides(objective, problem), start)

    def _influence(
        self, objective: Objective, parameters: Parameters, problem: Problem, sides: Sides, start: Parameters
    ) -> Influence:
        def mean(at: Parameters, edge_index: Tensor, *examples: Examples) -> Tensor:
            return ravel(objective.gradient(at, edge_index, examples, regularize=False))

        retained = mean(parameters, problem.before, sides.retained)
        # What an item's leaving does to the sampler of negatives acts through the loss: it belongs to the direct part.
        resampled = retained
        if sides.retained_after.negative is not sides.retained.negative:
            resampled = mean(parameters, problem.before, sides.retained_after)
        forgotten = mean(parameters, problem.before, *sides.forgotten) if sides.share else torch.zeros_like(retained)
        after = mean(start, problem.after, sides.retained_after)
        zeros = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        omega = [
            ravel(zeros | objective.penalty_gradient(at, [examples]))
            for at, examples in ((parameters, sides.retained), (start, sides.retained_after))
        ]
        whole = retained + sides.share * (forgotten - retained)
        # In this order nothing forgotten gives zeros to the bit.
        total = (whole - after) + (omega[0] - omega[1])
        return Influence(total, whole - resampled, resampled - after, whole + omega[0])

    def update(
        self,
        objective: Objective,
        parameters: Parameters,
        problem: Problem,
        *,
        start: Parameters | None = None,
        progress: Progress | None = None,
    ) -> Update:
        """Solve equation (2) in one or more steps.

        Args:
            objective: the risk that training minimised.
            parameters: the trained parameters; they are not changed.
            problem: what is forgotten and what stays.
            start: the parameters with the rows of erased nodes reset; these rows are no unknowns.
            progress: called with a short text at every product and trial.

        Raises:
            UnlearningError: a local solve is forced, which takes more than a problem; or memory will not suffice.
            ObjectiveError: the objective is stochastic, not finite, or without curvature.
        """
        if self.locality == "local":
            raise UnlearningError(
                "IFRU.update got locality='local' and looks at all data; wanted 'auto' or 'full': local solves are "
                "those of Trainer.unlearn, which keeps what they need from one request to the next."
            )
        start = parameters if start is None else start
        clock = ticks()
        objective = replace(objective, chunk_size=self.chunk_size)
        negatives = max(self.negatives, problem.num_negatives) if objective.loss.needs_negatives else 0
        wanted = demand(objective, parameters, int((~problem.forget).sum()), negatives, self.cg_iterations)
        check_memory(wanted, objective, problem.forget.device)
        sides = self.sides(objective, problem)
        objective.check(parameters, problem.before, sides.retained)
        report = progress or (lambda _: None)
        report("influence")
        influence = self._influence(objective, parameters, problem, sides, start)
        free = expand_to_parameters(~problem.erased, objective, parameters)
        b = influence.total * free
        size = objective.ranks.first(norm(b))
        seconds = {"influence": ticks() - clock}
        clock = ticks()
        nodes = objective.ranks.first(important_nodes(objective, problem, self.keep_ratio, self.hops) & ~problem.erased)
        leftover = influence.leftover
        system = System.of(objective, problem, sides, start=start, leftover=leftover, free=free, nodes=nodes)
        search = NewtonSearch(self, system, report)
        stationarity = objective.ranks.first(norm(influence.leftover * free) / size if size else math.inf)
        theta, steps = search.run(-b, stationarity) if size else (start, ())
        risk = objective.ranks.first(system.look(start)[0])
        seconds["solve"] = ticks() - clock
        return Update(
            parameters=theta,
            direct_norm=norm(influence.direct * free),
            spillover_norm=norm(influence.spillover * free),
            residual_before=size,
            residual_after=steps[-1].residual if steps else size,
            stationarity=stationarity,
            by_hop=influence_by_hop(b, objective, parameters, problem),
            risk_before=risk,
            risk_after=steps[-1].risk if steps else risk,
            steps=steps,
            cg_iterations=search.products,
            negative_curvature=search.negative,
            looseness=search.looseness,
            unknowns=int(nodes.sum()),
            rows_changed=_rows_changed(objective, parameters, theta),
            seconds=seconds,
            extent=Extent("full", len(sides.retained_after)),
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _rows_changed(objective: Objective, before: Parameters, after: Parameters) -> int:
    changed = torch.zeros(objective.num_nodes, dtype=torch.bool, device=next(iter(after.values())).device)
    offsets = {"user": (0, objective.num_users), "item": (objective.num_users, None), "node": (0, None)}
    for name, kind in objective.node_parameters.items():
        low, high = offsets[kind]
        changed[low:high] |= (before[name] != after[name]).reshape(len(after[name]), -1).any(dim=1)
    return int(changed.sum())
