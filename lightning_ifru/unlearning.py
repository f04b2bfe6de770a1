"""One unlearning from the staged request to the changed model: plan, solve, and later commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_ifru.clock import ticks
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.influence import IFRU, Update
from lightning_ifru.kept_graphs import check_buffers
from lightning_ifru.leftovers import check_leftovers
from lightning_ifru.local import LocalSolve
from lightning_ifru.local_problem import Departure
from lightning_ifru.locality import Path, WarmStates
from lightning_ifru.metrics.checks import all_finite
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.newton import DAMPINGS, Progress
from lightning_ifru.node_buffers import clear_rows
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters
from lightning_ifru.problem import Problem
from lightning_ifru.ranks import ALONE, Ranks
from lightning_ifru.reach import known_hops
from lightning_ifru.removal import Removal
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
        check_leftovers(module, data)
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

    def gradient(self) -> Callable[[], object]:
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
            since = ticks()
            near = self.nearby
            warmed = {"warm_up": max(0.0, ticks() - since - near.seconds["influence"])}
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
        # What the ranks have computed alike, unlike processors may have rounded differently.
        return replace(update, parameters={name: self.ranks.first(t) for name, t in update.parameters.items()})

    def commit(self, update: Update) -> None:
        """Put the corrected parameters into the model, and take the forgotten out of the data.

        Args:
            update: the result of :meth:`solve`.
        """
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


def _trained(data: InteractionDataModule, removal: Removal) -> Tensor:
    """The training rows that go, ascending."""
    return removal.positions[data.table.split[removal.positions] == SPLITS.index("train")]
