"""What an unlearning says of itself: measured before anything moves, held against bounds, and put into a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.bounded import printable
from lightning_ifru.clock import ticks
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.degradation import check_metrics, check_risk
from lightning_ifru.effects import Scoring, score_shift, top_changes
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.hops import node_hops
from lightning_ifru.influence import Update
from lightning_ifru.interactions import Interactions
from lightning_ifru.keys import digest_key, key_name
from lightning_ifru.ledger import Entry
from lightning_ifru.metrics import evaluate as metrics_of
from lightning_ifru.metrics.checks import all_finite
from lightning_ifru.newton import Progress
from lightning_ifru.parameters import Parameters
from lightning_ifru.removal import Removal
from lightning_ifru.report import UnlearningReport
from lightning_ifru.unlearning import Unlearning
from lightning_ifru.verdict import ADVISED, COMPLETE, RETRAINED, WITHIN, Drift, Evidence, Tolerance, judge


@dataclass(frozen=True)
class Assessment:
    """An unlearning, and what it is held against; it changes nothing.

    Args:
        work: the unlearning.
        tolerance: the bounds.
        drift: what the requests before this one have left.
    """

    work: Unlearning
    tolerance: Tolerance = field(default_factory=Tolerance)
    drift: Drift = field(default_factory=Drift)

    def preview(self) -> UnlearningReport:
        """Return counts, what the graph's change can reach, and the expected cost."""
        clock = ticks()
        gradient_once = self.work.gradient()
        for _ in range(2):  # the first also warms up
            since = ticks()
            gradient_once()
            gradient = ticks() - since
        products, trials = self.work.most
        # A curvature product costs about two gradients; each damping tried costs one.
        return self._report(
            dry_run=True,
            expected={"products": products, "seconds": gradient * (2 * products + trials)},
            seconds={"total": ticks() - clock},
        )

    def report(
        self, update: Update, progress: Progress | None = None, *, evaluate: bool = True, kept: bool = True
    ) -> UnlearningReport:
        """Measure what an update would do, and judge it.

        Args:
            update: the result of :meth:`~lightning_ifru.unlearning.Unlearning.solve`.
            progress: called with a short text as the evaluation goes on.
            evaluate: whether to measure the model before and after.
            kept: whether the update is kept where retraining is advised, see :func:`~lightning_ifru.verdict.judge`.

        Raises:
            ObjectiveError: a representation is not finite.
            UnlearningError: a score is not finite.
            DegradationError: the loss or a metric would be worse than the tolerance allows.
        """
        work, since = self.work, ticks()
        check_risk(update.risk_before, update.risk_after, self.tolerance)
        measured: dict[str, Any] = {}
        if evaluate or work.path.model is None:  # a local solve looks at no more rows than it needs
            after = self._scoring(update.parameters, work.problem.after)
            _check_rows(after[1], work.objective.name)
            if evaluate:
                measured = self._measured(after, progress)
                found = measured["metrics_before"], measured["metrics_after"]
                test = self._survivors("test")
                positive = test.label > 0
                users, positives = len(test.user[positive].unique()), int(positive.sum())
                # Without negatives among them, as many are drawn as there are pairs.
                classes = positives, len(test) - positives if work.data.labelled else len(test)
                check_metrics(*found, len(test), users, classes, self.tolerance)
        seconds = {"evaluate": ticks() - since} if evaluate else {}
        verdict, drift = judge(self._evidence(update), self.drift, self.tolerance, kept=kept)
        return work.ranks.first(
            self._report(
                direct_norm=update.direct_norm,
                spillover_norm=update.spillover_norm,
                residual_before=update.residual_before,
                residual_after=update.residual_after,
                stationarity=update.stationarity,
                risk_before=update.risk_before,
                risk_after=update.risk_after,
                curvature=update.steps[-1].curvature if update.steps else None,
                damping=update.steps[-1].damping if update.steps else None,
                steps=len(update.steps),
                trajectory=[{**asdict(step), "status": step.status.value} for step in update.steps],
                cg_iterations=update.cg_iterations,
                negative_curvature=update.negative_curvature,
                unknowns=update.unknowns,
                rows_changed=update.rows_changed,
                influence_by_hop=update.by_hop,
                examples=update.extent.examples,
                sampled_rows=update.extent.sampled_rows,
                importance_left_out=update.extent.left_out,
                verdict=verdict.name,
                verdict_reasons=list(verdict.reasons),
                drift=asdict(drift),
                seconds=seconds,
                **measured,
            )
        )

    def _evidence(self, update: Update) -> Evidence:
        present = int(self.work.data.table.train_counts[0].sum())
        return Evidence.of(update, self.work.removal.counts["train"], present)

    def _measured(self, after: Scoring, progress: Progress | None) -> dict[str, Any]:
        """What can be said of the model before and after: metrics, recommendations, scores of the forgotten."""
        work = self.work
        problem, users = work.problem, work.objective.num_users
        test, seen = self._survivors("test"), self._survivors("train")
        before = self._scoring(work.parameters, problem.before)
        loss, candidates = work.objective.loss, problem.candidates_after
        belief = loss.probabilistic and not loss.needs_negatives

        def metrics(model: Scoring) -> dict[str, float | None]:
            labelled, seed = work.data.labelled, work.data.seed
            return metrics_of(*model, users, test, seen, candidates, labelled, seed, progress=progress)

        def changes() -> dict[str, list[int]]:
            hops = node_hops(work.objective, problem)[:users]
            return top_changes(before, after, hops, seen, candidates, work.method.seed)

        found: dict[str, Callable[[], Any]] = {
            "metrics_before": lambda: metrics(before),
            "metrics_after": lambda: metrics(after),
            "top_changes": changes,
            "score_shift": lambda: score_shift(before, after, problem.forgotten, problem.erased, users, belief=belief),
        }
        with torch.no_grad():
            return dict(zip(found, work.ranks.spread([*found.values()]), strict=True))

    def _survivors(self, split: str) -> Interactions:
        return self.work.data.table.select(split, without=self.work.removal).to(self.work.module.device)

    @torch.no_grad()
    def _scoring(self, parameters: Parameters, edge_index: Tensor) -> Scoring:
        objective = self.work.objective
        decoder = objective.decoder_part(parameters)

        def decode(src: Tensor, dst: Tensor) -> Tensor:
            return objective.decode(decoder, src, dst)

        return None if self.work.module.scores_dot_products else decode, objective.encode(parameters, edge_index)

    def _report(self, **found: Any) -> UnlearningReport:
        work = self.work
        users = int((work.erased < work.objective.num_users).sum())
        return UnlearningReport(
            **of_request(work.data, work.removal),
            num_users_erased=users,
            num_items_erased=len(work.erased) - users,
            affected_nodes=self._affected(),
            path="full" if work.path.model is None else "local",
            path_reason=work.path.reason,
            **found,
        )

    def _affected(self) -> int | None:
        """How many nodes' representation the graph's change can reach, unless nobody looks at all of the graph."""
        work = self.work
        if work.path.model is not None or work.reach is None:
            return None
        return int(work.problem.affected(work.objective, work.reach).sum())


def of_request(data: InteractionDataModule, removal: Removal) -> dict[str, Any]:
    """Return what a report says of the staged request alone."""
    request = data.pending
    assert request is not None  # the removal was planned from it
    return {
        "digest": request.digest(digest_key()),
        "num_forgotten": len(removal.positions),
        "forgotten_by_split": dict(removal.counts),
        "already_absent": removal.absent,
    }


def retrained(report: UnlearningReport) -> UnlearningReport:
    """Return the report on a model that was trained anew, of which no number of the unlearning tells anything."""
    kept = ("digest", "num_forgotten", "forgotten_by_split", "num_users_erased", "num_items_erased", "already_absent")
    return UnlearningReport(
        **{name: getattr(report, name) for name in kept},
        verdict=RETRAINED,
        verdict_reasons=["The model was trained anew without the forgotten.", *report.verdict_reasons],
        drift=asdict(Drift()),
    )


def recalled(report: UnlearningReport, entry: Entry | None) -> UnlearningReport:
    """Return the report on a request that was forgotten before, with the verdict of its entry in the ledger.

    Args:
        report: says nothing of it yet.
        entry: that the model's past requests have ended with; of another request, or under another key, it is no help.

    Example:
        >>> from lightning_ifru.keys import throwaway_key
        >>> with throwaway_key():
        ...     entry = {"digest": "ab", "key": key_name(digest_key()), "verdict": ADVISED, "drift": {"requests": 1}}
        ...     again = recalled(UnlearningReport("ab", 0, {}, 0, 0), entry)
        >>> again.verdict, again.verdict_reasons, again.drift["requests"]
        ('retrain advised', [], 1)
    """
    if entry is None or (entry.get("digest"), entry.get("key")) != (report.digest, key_name(digest_key())):
        return report
    verdict, reasons = entry.get("verdict"), entry.get("verdict_reasons")
    if verdict not in (COMPLETE, WITHIN, ADVISED, RETRAINED):  # an older version wrote the entry
        return report
    reasons = [printable(one) for one in reasons if isinstance(one, str)] if isinstance(reasons, list) else []
    return replace(report, verdict=verdict, verdict_reasons=reasons, drift=asdict(Drift.of(entry)))


def _check_rows(h: Tensor, name: str) -> None:
    if not all_finite(h):
        bad = int((~h.isfinite()).flatten(1).any(dim=1).sum())
        raise ObjectiveError(
            f"encode of {name} gives {bad} of {len(h)} users and items numbers that are not finite once the forgotten "
            "have left the graph; nothing was changed: look for divisions by the number of neighbours, which can be 0."
        )
