"""One unlearning from the staged request to the changed model: plan, solve, measure, and only then commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from lightning_ifru.metrics import evaluate
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.newton import DAMPINGS, Progress
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters
from lightning_ifru.problem import Problem
from lightning_ifru.ranks import ALONE, Ranks
from lightning_ifru.reach import known_hops
from lightning_ifru.removal import Removal
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import digest_key
from lightning_ifru.training_checks import check_batches, check_training_step


@dataclass(frozen=True)
class Unlearning:
    """A staged request worked out against a model; nothing is changed until :meth:`commit`.

    Args:
        module: the trained model.
        data: the data with a staged request.
        method: the method.
        removal: what the request removes.
        objective, parameters, problem: what is solved.
        ranks: the processes that share it, all of which are at the same point.
    """

    module: IFRUMixin
    data: InteractionDataModule
    method: IFRU
    removal: Removal
    objective: Objective
    parameters: Parameters
    problem: Problem
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, module: IFRUMixin, data: InteractionDataModule, method: IFRU, ranks: Ranks = ALONE) -> Unlearning:
        """Work out the staged request of ``data`` against ``module``, on the module's device.

        Raises:
            RequestError: nothing is staged, or it cannot be forgotten.
            ObjectiveError: the module cannot be unlearned.
        """
        device = module.device
        removal, table = data.removal(), data.table
        before = data.graph().to(device)
        objective, parameters = module.objective(before, data.num_users, data.num_items)
        objective = replace(objective, ranks=ranks)
        check_batches(module, objective, data)
        if type(module).training_step is not IFRUMixin.training_step:
            check_training_step(module, data, objective, parameters, before)
        erased = torch.zeros(objective.num_nodes, dtype=torch.bool)
        erased[removal.users] = True
        # A sampler goes on to draw what is held out, so that the negatives act on its row.
        items = removal.items if data.labelled else removal.withdrawn
        erased[items + data.num_users] = True
        candidates = data.candidates
        problem = Problem(
            interactions=data.train.to(device),
            forget=removal.rows[table.rows("train")].to(device),
            before=before,
            after=data.graph(without=removal).to(device),
            erased=erased.to(device),
            candidates=candidates.to(device),
            candidates_after=candidates[~torch.isin(candidates, removal.withdrawn)].to(device),
            num_negatives=data.num_negatives,
            batch_size=data.batch_size,
        )
        work = cls(module, data, method, removal, objective, parameters, problem, ranks)
        _ = work.reach  # a false declaration is refused before anything is solved
        return work

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
        sides = self.method.sides(self.objective, self.problem)
        self.objective.check(self.parameters, self.problem.before, sides.retained)
        for _ in range(2):  # the first also warms up
            since = time.perf_counter()
            self.objective.gradient(self.parameters, self.problem.after, [sides.retained_after])
            gradient = time.perf_counter() - since
        products, trials = self.most
        # A curvature product costs about two gradients; each damping tried costs one.
        return self._report(
            dry_run=True,
            expected={"products": products, "seconds": gradient * (2 * products + trials)},
            seconds={"total": time.perf_counter() - clock},
        )

    def solve(self, progress: Progress | None = None) -> Update:
        """Return the corrected parameters.

        Raises:
            ObjectiveError: they are not finite.
        """
        update = self.method.update(
            self.objective, self.parameters, self.problem, start=self._reset_rows(), progress=progress
        )
        for name, tensor in update.parameters.items():
            if not bool(torch.isfinite(tensor).all()):
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
            seconds=seconds,
            **measured,
        )
        with torch.no_grad():
            named = dict(self.module.named_parameters())
            for name, tensor in update.parameters.items():
                named[name].copy_(tensor)
        self.data.commit(self.removal)
        self.module.release_graph()
        return self.ranks.first(report)

    def _reset_rows(self) -> Parameters:
        """The parameters with fresh rows for erased users and items."""
        nodes = self.problem.erased.nonzero().flatten().cpu()
        if not len(nodes):
            return self.parameters
        users = self.objective.num_users
        rows = {"user": nodes[nodes < users], "item": nodes[nodes >= users] - users, "node": nodes}
        start = dict(self.parameters)
        for name, kind in self.objective.node_parameters.items():
            if len(rows[kind]):
                start[name] = start[name].clone()
                fresh = self.module.initial_rows(name, rows[kind], seed=self.method.seed)
                start[name][rows[kind].to(start[name].device)] = fresh.to(start[name])
        return start

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
        hops, erased = self.reach, self.problem.erased
        return UnlearningReport(
            digest=request.digest(digest_key()),
            num_forgotten=int(self.removal.rows.sum()),
            forgotten_by_split=dict(self.removal.counts),
            num_users_erased=int(erased[: self.objective.num_users].sum()),
            num_items_erased=int(erased[self.objective.num_users :].sum()),
            affected_nodes=None if hops is None else int(self.problem.affected(self.objective, hops).sum()),
            **found,
        )


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while, with gradients on, and leave every submodule as it was."""
    training = {name: part.training for name, part in module.named_modules()}
    try:
        module.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for name, part in module.named_modules():
            part.training = training[name]
