"""What an unlearning did, as numbers, never with an id of a person in it.

Counts, norms and means are of all that was forgotten together, which may be one person's; no distribution is of fewer
than five people.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult

from lightning_ifru.finite import finite
from lightning_ifru.report_table import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class UnlearningReport:
    r"""What happened, or with ``dry_run`` what would happen.

    Attributes:
        digest: keyed digest (HMAC) of the request; empty in a dry run where there is no key.
        num_forgotten: interactions forgotten, by split in ``forgotten_by_split``.
        already_absent: entries of the request that had been forgotten before; where all were, ``num_forgotten`` is 0
            and nothing was changed.
        num_users_erased, num_items_erased: users and items left without a training interaction, whose rows are reset.
        direct_norm, spillover_norm: norms of the two parts of the influence :math:`b`, equation (1).
        residual_before, residual_after: :math:`\|r\|`, zero when unlearning is complete.
        stationarity: :math:`\|\nabla J(\hat\theta)\| / \|b\|`; the larger it is, the less a small residual proves.
        risk_before, risk_after: the training objective on what stays, on the graph that stays, where the steps start
            and where they end.
        curvature, damping: of the last accepted step.
        steps: the number of accepted steps; ``trajectory`` has each.
        cg_iterations: products with the curvature in all.
        negative_curvature: linear systems that were seen not to be positive definite; no step comes from one.
        unknowns: node rows solved for.
        rows_changed: node rows that changed, reset ones included.
        affected_nodes: nodes whose representation the change of the graph can reach; ``None`` if that is not known,
            and where the solve was local, which does not look at all of the graph.
        path: ``"full"``: solved over all data, or ``"local"``: around what is forgotten; ``path_reason`` says why.
            Norms and residuals of a local solve are those on its rows.
        examples: the examples that the steps were taken on.
        sampled_rows: of a local solve, rows of which a sample of their examples was looked at.
        importance_left_out: of a local solve, the share of the importance score that nodes found and not solved for
            have.
        influence_by_hop: the norm of :math:`b` on the rows of nodes ``"0"``, ``"1"``, ``"2"`` and ``"3+"`` edges of the
            old graph from the ends of what is forgotten (``"3+"`` also where no path leads), and on ``"dense"``
            parameters. Rows of the erased are no part of it.
        top_changes: of users at each of these distances, the numbers of those of whom 0, 1, ... 20 of the 20 items
            recommended to them are others than before; erased users and withdrawn items are left out on both sides.
            Where there are more than 1,000 users, a random 1,000 are looked at; distances with fewer than five of them
            are left out.
        score_shift: the mean score that forgotten training pairs had before and have after and, where they are of five
            users at least, its distribution, see :func:`~lightning_ifru.effects.score_shift`.
        seconds: by phase: ``prepare``, ``warm_up`` (of a local solve, the first in a process looks at all data once),
            ``influence`` and ``solve``, the ``check`` that all is finite, ``evaluate`` if
            that was asked for, ``apply``, and ``checkpoint`` with the ledger; and their sum ``total``.
        metrics_before, metrics_after: ``auroc``, ``recall@20``, ``ndcg@20`` on the same surviving test pairs.
        verdict: whether the correction is to be trusted: ``"complete"``, ``"complete within tolerance"`` or ``"retrain
            advised"``, see :class:`~lightning_ifru.verdict.Tolerance`; ``"retrained"`` where that was done, and
            ``None`` of a dry run. Of a request that was forgotten before it is what the ledger has, if that was the
            last one, and ``None`` otherwise. ``verdict_reasons`` say why, a sentence each.
        drift: what this request and those before it have left, which the next one's verdict goes on from, see
            :class:`~lightning_ifru.verdict.Drift`.
        dry_run: whether nothing was changed.
        expected: of a dry run: curvature ``products`` and ``seconds`` at most; most solves end far earlier.
        checkpoint: where the unlearned checkpoint was written.
        older_checkpoints: of the other checkpoint files in the trainer's folders, and the one loaded, those that still
            remember: whose ledger lacks something that this one's has.
    """

    digest: str
    num_forgotten: int
    forgotten_by_split: dict[str, int]
    num_users_erased: int
    num_items_erased: int
    already_absent: int = 0
    direct_norm: float | None = None
    spillover_norm: float | None = None
    residual_before: float | None = None
    residual_after: float | None = None
    stationarity: float | None = None
    risk_before: float | None = None
    risk_after: float | None = None
    curvature: str | None = None
    damping: float | None = None
    steps: int = 0
    trajectory: list[dict[str, Any]] = field(default_factory=list, repr=False)
    cg_iterations: int = 0
    negative_curvature: int = 0
    unknowns: int = 0
    rows_changed: int = 0
    affected_nodes: int | None = None
    path: str = "full"
    path_reason: str = ""
    examples: int = 0
    sampled_rows: int = 0
    importance_left_out: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    influence_by_hop: dict[str, float] = field(default_factory=dict, repr=False)
    top_changes: dict[str, list[int]] = field(default_factory=dict, repr=False)
    score_shift: dict[str, Any] = field(default_factory=dict, repr=False)
    metrics_before: dict[str, float | None] = field(default_factory=dict)
    metrics_after: dict[str, float | None] = field(default_factory=dict)
    verdict: str | None = None
    verdict_reasons: list[str] = field(default_factory=list)
    drift: dict[str, float] = field(default_factory=dict, repr=False)
    dry_run: bool = False
    expected: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    older_checkpoints: list[str] = field(default_factory=list)

    @property
    def residual_fell(self) -> float | None:
        """How many times smaller the residual became."""
        if not self.residual_before or self.residual_after is None:
            return None
        return self.residual_before / self.residual_after if self.residual_after else math.inf

    @property
    def evaluated(self) -> bool:
        """Whether the model was measured before and after; see :class:`IFRUCallback`."""
        return bool(self.metrics_before)

    @property
    def items_changed(self) -> float | None:
        """How many of the items recommended to a user are others than before, on average."""
        users = sum(map(sum, self.top_changes.values()))
        changed = sum(k * number for counts in self.top_changes.values() for k, number in enumerate(counts))
        return changed / users if users else None

    def to_json(self, indent: int | None = 2) -> str:
        """Return all attributes as JSON; numbers that are not finite as ``null``.

        Example:
            >>> report = UnlearningReport("ab12", 3, {"train": 3}, 0, 0, stationarity=float("inf"))
            >>> json.loads(report.to_json())["stationarity"] is None
            True
        """
        return json.dumps(finite(asdict(self)), indent=indent)

    def scalars(self) -> dict[str, float]:
        """Return the numbers for a logger, flat, under ``unlearn/``.

        Example:
            >>> UnlearningReport("ab12", 3, {}, 1, 0, residual_after=0.5).scalars()["unlearn/residual_after"]
            0.5
        """
        values = finite(asdict(self))
        flat = {name: value for name, value in values.items() if not isinstance(value, dict)}
        flat["items_changed"] = self.items_changed
        for group in ("drift", "influence_by_hop", "score_shift", "seconds", "metrics_before", "metrics_after"):
            flat.update({f"{group}/{name}": value for name, value in values[group].items()})
        return {f"unlearn/{name}": float(v) for name, v in flat.items() if type(v) in (int, float)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from tables(self)

    def __str__(self) -> str:
        """Return the tables of :func:`rich.print` as plain text."""
        console = Console(file=io.StringIO(), width=80, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _repr_html_(self) -> str:
        """Return the tables and the figure for a notebook."""
        from lightning_ifru.report_page import fragment

        return fragment(self)

    def figure(self) -> Figure:
        """Return a matplotlib figure: influence by distance, residual by step, recommendations and scores changed."""
        from lightning_ifru.report_figures import report_figure

        return report_figure(self)

    def draw_residual(self, axes: Any) -> None:
        """Draw the residual by step into matplotlib ``axes``."""
        from lightning_ifru.report_figures import draw_residual

        draw_residual(self, axes)

    def draw_metrics(self, axes: Any) -> None:
        """Draw the metrics before and after into matplotlib ``axes``, as bars side by side."""
        from lightning_ifru.report_figures import draw_metrics

        draw_metrics(self, axes)
