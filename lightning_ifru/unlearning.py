"""One unlearning from the staged request to the changed model: plan, solve, measure, and only then commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.effects import Scoring, score_shift, top_changes
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.hops import node_hops
from lightning_ifru.influence import IFRU, Update
from lightning_ifru.interactions import Interactions
from lightning_ifru.keys import digest_key
from lightning_ifru.local import LocalSolve
from lightning_ifru.local_problem import Departure
from lightning_ifru.locality import Path, WarmStates
from lightning_ifru.metrics import evaluate
from lightning_ifru.metrics.checks import all_finite
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.newton import DAMPINGS, Progress
from lightning_ifru.node_buffers import check_buffers, clear_rows
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters
from lightning_ifru.problem import Problem
from lightning_ifru.ranks import ALONE, Ranks
from lightning_ifru.reach import known_hops
from lightning_ifru.removal import Removal
from lightning_ifru.report import UnlearningReport
from lightning_ifru.splits import SPLITS
from lightning_ifru.training_checks import check_batches, check_training_step


@dataclass(frozen=True)
class Unlearning:
    """A staged request worked out against a model; nothing is changed until :meth:`commit`.

    Args:
        module: the trained model.
        data: the data with a staged request.
        method: the method.
        removal: what the request removes.
        objective, parameters: what is solved.
        path: whether it is solved over all data.
        states: what is kept of the model from one request to the next.
        ranks: the processes that share it, all of which are at the same point.
    """

    module: IFRUMixin
    data: InteractionDataModule
    method: IFRU
    removal: Removal
    objective: Objective
    parameters: Parameters
    path: Path
    states: WarmStates
    ranks: Ranks = ALONE

    @classmethod
    def of(
        cls,
        module: IFRUMixin,
        data: InteractionDataModule,
        method: IFRU,
        ranks: Ranks = ALONE,
        states: WarmStates | None = None,
    ) -> Unlearning:
        """Work out the staged request of ``data`` against ``module``, on the module's device.

        Args:
            module: the trained model.
            data: the data with a staged request.
            method: the method.
            ranks: the processes that share it.
            states: what is kept from one request to the next; by default nothing.

        Raises:
            RequestError: nothing is staged, or it cannot be forgotten.
            ObjectiveError: the module cannot be unlearned.
        """
        removal = data.removal()
        check_buffers(module, data, removal)
        own_step = type(module).training_step is not IFRUMixin.training_step
        # To build the graph anew can take longer than one person's erasure, and dot products are not tried on any.
        tried = own_step or not module.scores_dot_products
        before = data.graph().to(module.device) if tried else torch.empty(2, 0, dtype=torch.long, device=module.device)
        objective, parameters = module.objective(before, data.num_users, data.num_items)
        objective = replace(objective, ranks=ranks)
        check_batches(module, objective, data)
        if own_step:
            check_training_step(module, data, objective, parameters, before)
        rows = _trained(data, removal)
        ends = sum(len(column[rows].unique()) for column in (data.table.user, data.table.item))
        path = Path.of(method, module, objective, data.table, ends)
        work = cls(module, data, method, removal, objective, parameters, path, states or WarmStates(), ranks)
        _ = work.reach  # a false declaration is refused before anything is solved
        return work

    @cached_property
    def erased(self) -> Tensor:
        """The nodes without any interaction left, ascending."""
        # A sampler goes on to draw what is held out, so that the negatives act on its row.
        items = self.removal.items if self.data.labelled else self.removal.withdrawn
        return torch.cat([self.removal.users, items + self.data.num_users])

    @cached_property
    def problem(self) -> Problem:
        """The request over all data."""
        device, data, removal = self.module.device, self.data, self.removal
        erased = torch.zeros(self.objective.num_nodes, dtype=torch.bool)
        erased[self.erased] = True
        candidates = data.candidates
        return Problem(
            interactions=data.train.to(device),
            forget=removal.rows[data.table.rows("train")].to(device),
            before=data.graph().to(device),
            after=data.graph(without=removal).to(device),
            erased=erased.to(device),
            candidates=candidates.to(device),
            candidates_after=candidates[~torch.isin(candidates, removal.withdrawn)].to(device),
            num_negatives=data.num_negatives,
            batch_size=data.batch_size,
        )

    @cached_property
    def nearby(self) -> LocalSolve:
        """The request around what is forgotten.

        Raises:
            ObjectiveError: the model is none that this can be worked out for.
        """
        model, data = self.path.model, self.data
        assert model is not None  # or the path is the full one
        table = self.parameters[model.name]
        warm = self.states.state(
            model,
            table,
            data.table,
            lambda: data.graph().to(table.device),
            None if data.labelled else self.method.negatives,
            self.method.seed,
        )
        fresh = self._fresh_rows(model.name, self.erased)
        departure = Departure(_trained(data, self.removal), self.erased, self.removal.withdrawn, fresh)
        return LocalSolve(self.method, warm, departure)

    @property
    def most(self) -> tuple[int, int]:
        """Products with the curvature and dampings tried, at most; few solves need all of them."""
        # Both curvatures are tried in the first step at most.
        solves = self.method.max_steps + (self.method.curvature == "auto")
        products = self.method.probes * len(self.parameters) + solves * self.method.cg_iterations
        return products, solves * (len(DAMPINGS) if self.method.damping is None else 1)

    @cached_property
    def reach(self) -> int | None:
        """How many edges away a node's representation reaches, as the module declares or else by experiment.

        Raises:
            ObjectiveError: it declares less than the experiment finds.
        """
        objective, declared = self.objective, self.module.message_passing_hops
        # What the package's own models declare its tests hold them to.
        if declared is not None and type(self.module).__module__.startswith("lightning_ifru.models."):
            return declared
        return known_hops(objective, self.parameters, declared)

    def preview(self) -> UnlearningReport:
        """Return counts, what the graph's change can reach, and the expected cost; nothing is changed."""
        clock = time.perf_counter()
        gradient_once = self._gradient()
        for _ in range(2):  # the first also warms up
            since = time.perf_counter()
            gradient_once()
            gradient = time.perf_counter() - since
        products, trials = self.most
        # A curvature product costs about two gradients; each damping tried costs one.
        return self._report(
            dry_run=True,
            expected={"products": products, "seconds": gradient * (2 * products + trials)},
            seconds={"total": time.perf_counter() - clock},
        )

    def _gradient(self) -> Callable[[], object]:
        """Check the objective, and return a function that takes its gradient once."""
        if self.path.model is not None:
            system = self.nearby.system
            return lambda: system.residual(system.start)
        sides = self.method.sides(self.objective, self.problem)
        self.objective.check(self.parameters, self.problem.before, sides.retained)
        return lambda: self.objective.gradient(self.parameters, self.problem.after, [sides.retained_after])

    def solve(self, progress: Progress | None = None) -> Update:
        """Return the corrected parameters.

        Raises:
            ObjectiveError: they are not finite.
        """
        if self.path.model is not None:
            since = time.perf_counter()
            near = self.nearby
            warmed = {"warm_up": max(0.0, time.perf_counter() - since - near.seconds["influence"])}
            update = near.run(progress)
            update = replace(update, seconds=warmed | update.seconds)
        else:
            update = self.method.update(
                self.objective, self.parameters, self.problem, start=self._reset_rows(), progress=progress
            )
        for name, tensor in update.parameters.items():
            if not all_finite(tensor):
                raise ObjectiveError(
                    f"unlearning arrived at values of '{name}' that are not finite; nothing was changed: check the "
                    "model's weights, or force IFRU(curvature='gauss-newton', damping=1.0)."
                )
        return update

    def commit(self, update: Update, progress: Progress | None = None, *, evaluate: bool = True) -> UnlearningReport:
        """Put the corrected parameters into the model, take the forgotten out of the data, and report.

        Args:
            update: the result of :meth:`solve`.
            progress: called with a short text as the evaluation goes on.
            evaluate: whether to measure the model before and after.
        """
        # What the ranks have computed alike, unlike processors may have rounded differently.
        update = replace(update, parameters={name: self.ranks.first(t) for name, t in update.parameters.items()})
        since = time.perf_counter()
        measured = self._measured(update, progress) if evaluate else {}
        seconds = {"evaluate": time.perf_counter() - since} if evaluate else {}
        report = self._report(
            direct_norm=update.direct_norm,
            spillover_norm=update.spillover_norm,
            residual_before=update.residual_before,
            residual_after=update.residual_after,
            stationarity=update.stationarity,
            curvature=update.steps[-1].curvature if update.steps else None,
            damping=update.steps[-1].damping if update.steps else None,
            steps=len(update.steps),
            trajectory=[{**asdict(step), "status": step.status.value} for step in update.steps],
            cg_iterations=update.cg_iterations,
            unknowns=update.unknowns,
            rows_changed=update.rows_changed,
            influence_by_hop=update.by_hop,
            examples=update.extent.examples,
            sampled_rows=update.extent.sampled_rows,
            importance_left_out=update.extent.left_out,
            seconds=seconds,
            **measured,
        )
        with torch.no_grad():
            named = dict(self.module.named_parameters())
            for name, tensor in update.parameters.items():
                named[name].copy_(tensor)
        self.data.commit(self.removal)
        clear_rows(self.module, self.data, self.removal)
        if self.path.model is not None:
            self.nearby.commit()
        else:
            self.states.forget()  # which hold rows of the erased as they were
        self.module.release_graph()
        return self.ranks.first(report)

    def _reset_rows(self) -> Parameters:
        """The parameters with fresh rows for erased users and items."""
        users, nodes = self.objective.num_users, self.erased
        rows = {"user": nodes[nodes < users], "item": nodes[nodes >= users] - users, "node": nodes}
        start = dict(self.parameters)
        for name, kind in self.objective.node_parameters.items():
            if len(rows[kind]):
                start[name] = start[name].clone()
                start[name][rows[kind].to(start[name].device)] = self._fresh_rows(name, rows[kind])
        return start

    def _fresh_rows(self, name: str, rows: Tensor) -> Tensor:
        table = self.parameters[name]
        if not len(rows):
            return table[:0]
        return self.module.initial_rows(name, rows, seed=self.method.seed).to(table)

    def _survivors(self, split: str) -> Interactions:
        return self.data.table.select(split, without=self.removal).to(self.module.device)

    def _measured(self, update: Update, progress: Progress | None) -> dict[str, Any]:
        """What can be said of the model before and after: metrics, recommendations, scores of the forgotten."""
        problem, users = self.problem, self.objective.num_users
        test, seen = self._survivors("test"), self._survivors("train")
        with torch.no_grad():
            before = self._scoring(self.parameters, problem.before)
            after = self._scoring(update.parameters, problem.after)
            loss, candidates = self.objective.loss, problem.candidates_after
            belief = loss.probabilistic and not loss.needs_negatives

            def metrics(model: Scoring) -> dict[str, float | None]:
                labelled, seed = self.data.labelled, self.data.seed
                return evaluate(*model, users, test, seen, candidates, labelled, seed, progress=progress)

            def changes() -> dict[str, list[int]]:
                hops = node_hops(self.objective, problem)[:users]
                return top_changes(before, after, hops, seen, candidates, self.method.seed)

            found: dict[str, Callable[[], Any]] = {
                "metrics_before": lambda: metrics(before),
                "metrics_after": lambda: metrics(after),
                "top_changes": changes,
                "score_shift": lambda: score_shift(
                    before, after, problem.forgotten, problem.erased, users, belief=belief
                ),
            }
            return dict(zip(found, self.ranks.spread([*found.values()]), strict=True))

    def _scoring(self, parameters: Parameters, edge_index: Tensor) -> Scoring:
        decoder = self.objective.decoder_part(parameters)

        def decode(src: Tensor, dst: Tensor) -> Tensor:
            return self.objective.decode(decoder, src, dst)

        return None if self.module.scores_dot_products else decode, self.objective.encode(parameters, edge_index)

    def _report(self, **found: Any) -> UnlearningReport:
        request = self.data.pending
        assert request is not None  # the removal was planned from it
        users = int((self.erased < self.objective.num_users).sum())
        return UnlearningReport(
            digest=request.digest(digest_key()),
            num_forgotten=len(self.removal.positions),
            forgotten_by_split=dict(self.removal.counts),
            num_users_erased=users,
            num_items_erased=len(self.erased) - users,
            affected_nodes=self._affected(),
            path="full" if self.path.model is None else "local",
            path_reason=self.path.reason,
            **found,
        )

    def _affected(self) -> int | None:
        """How many nodes' representation the graph's change can reach, unless nobody looks at all of the graph."""
        if self.path.model is not None or self.reach is None:
            return None
        return int(self.problem.affected(self.objective, self.reach).sum())


def _trained(data: InteractionDataModule, removal: Removal) -> Tensor:
    """The training rows that go, ascending."""
    return removal.positions[data.table.split[removal.positions] == SPLITS.index("train")]
