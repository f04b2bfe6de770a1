"""What an unlearning did, as numbers, as a table and as a figure; never with an id of a person in it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lightning_ifru.finite import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class UnlearningReport:
    r"""What happened, or with ``dry_run`` what would happen.

    Attributes:
        digest: keyed digest (HMAC) of the request.
        num_forgotten: interactions forgotten, by split in ``forgotten_by_split``.
        num_users_erased, num_items_erased: users and items left without a training interaction, whose rows are reset.
        direct_norm, spillover_norm: norms of the two parts of the influence :math:`b`, equation (1).
        residual_before, residual_after: :math:`\|r\|`, zero when unlearning is complete.
        stationarity: :math:`\|\nabla J(\hat\theta)\| / \|b\|`; the larger it is, the less a small residual proves.
        curvature, damping: of the last accepted step.
        steps: the number of accepted steps; ``trajectory`` has each.
        cg_iterations: products with the curvature in all.
        unknowns: node rows solved for.
        rows_changed: node rows that changed, reset ones included.
        affected_nodes: nodes whose representation the change of the graph can reach; ``None`` if that is not known.
        seconds: by phase, and ``total``.
        metrics_before, metrics_after: ``auroc``, ``recall@20``, ``ndcg@20`` on the same surviving test pairs.
        dry_run: whether nothing was changed.
        expected: of a dry run: curvature ``products`` and ``seconds`` at most; most solves end far earlier.
        checkpoint: where the unlearned checkpoint was written.
        older_checkpoints: the other checkpoint files in the trainer's folders, and the one loaded: they still remember.
    """

    digest: str
    num_forgotten: int
    forgotten_by_split: dict[str, int]
    num_users_erased: int
    num_items_erased: int
    direct_norm: float | None = None
    spillover_norm: float | None = None
    residual_before: float | None = None
    residual_after: float | None = None
    stationarity: float | None = None
    curvature: str | None = None
    damping: float | None = None
    steps: int = 0
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    cg_iterations: int = 0
    unknowns: int = 0
    rows_changed: int = 0
    affected_nodes: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    metrics_before: dict[str, float | None] = field(default_factory=dict)
    metrics_after: dict[str, float | None] = field(default_factory=dict)
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
        flat = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        for group in ("seconds", "metrics_before", "metrics_after"):
            flat.update({f"{group}/{name}": value for name, value in values[group].items() if value is not None})
        return {f"unlearn/{name}": float(v) for name, v in flat.items() if not isinstance(v, bool)}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._summary()
        if self.metrics_before:
            yield self._metrics()

    def _summary(self) -> Table:
        table = Table(title="What would be forgotten" if self.dry_run else "What was forgotten", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        splits = ", ".join(f"{count:,} {name}" for name, count in self.forgotten_by_split.items())
        table.add_row("interactions", f"{self.num_forgotten:,} ({splits})")
        table.add_row("users / items erased", f"{self.num_users_erased:,} / {self.num_items_erased:,}")
        if self.affected_nodes is not None:
            table.add_row("nodes within reach of the graph's change", f"{self.affected_nodes:,}")
        if self.dry_run:
            table.add_row("curvature products, at most", f"{self.expected['products']:,.0f}")
            table.add_row("seconds, at most about", f"{self.expected['seconds']:.1f}")
            return table
        table.add_row("influence: direct / spillover", f"{_short(self.direct_norm)} / {_short(self.spillover_norm)}")
        fell = "" if self.residual_fell is None else f"  ({self.residual_fell:.1f}-fold down)"
        table.add_row("residual", f"{_short(self.residual_before)} → {_short(self.residual_after)}{fell}")
        table.add_row("gradient left by training / influence", _short(self.stationarity))
        method = f"{self.steps} × {self.curvature}, damping {_short(self.damping)}" if self.steps else "no step"
        table.add_row("steps", f"{method}, {self.cg_iterations} products")
        table.add_row("embedding rows changed", f"{self.rows_changed:,}")
        table.add_row("seconds", f"{self.seconds.get('total', math.nan):.1f}")
        return table

    def _metrics(self) -> Table:
        table = Table(title="Surviving test pairs")
        table.add_column("")
        for heading in ("before", "after", "change"):
            table.add_column(heading, justify="right")
        for name, before in self.metrics_before.items():
            after = self.metrics_after[name]
            row = ["–", "–", "–"]
            if before is not None and after is not None:
                row = [f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"]
            table.add_row(_METRIC_NAMES.get(name, name), *row)
        return table

    def figure(self) -> Figure:
        """Return a matplotlib figure: the residual by step, and the two parts of the influence."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        self.draw_residual(left)
        names, norms = ("direct", "spillover"), (self.direct_norm or 0.0, self.spillover_norm or 0.0)
        bars = right.bar(names, norms, color=("#4477aa", "#ee8866"), width=0.6)
        right.bar_label(bars, labels=[_short(norm) for norm in norms], padding=2)
        right.set(title="influence of what was forgotten", ylabel="gradient norm")
        right.margins(y=0.15)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        return figure

    def draw_residual(self, axes: Any) -> None:
        """Draw the residual by step into matplotlib ``axes``."""
        sizes = [self.residual_before or 0.0, *(step["residual"] for step in self.trajectory)]
        axes.plot(range(len(sizes)), sizes, "o-", color="#4477aa")
        axes.set(title="what is left to forget", xlabel="Newton step", ylabel="residual ‖r‖", ylim=(0, None))
        axes.set_xticks(range(len(sizes)))
        axes.grid(axis="y", alpha=0.3)

    def draw_metrics(self, axes: Any) -> None:
        """Draw the metrics before and after into matplotlib ``axes``, as bars side by side."""
        names = [name for name, value in self.metrics_before.items() if value is not None]
        for offset, metrics, label, colour in (
            (-0.2, self.metrics_before, "before", "#ee8866"),
            (0.2, self.metrics_after, "after", "#4477aa"),
        ):
            places = [place + offset for place in range(len(names))]
            bars = axes.bar(places, [metrics[name] for name in names], 0.38, label=label, color=colour)
            axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2, rotation=90)
        axes.set_xticks(range(len(names)), [_METRIC_NAMES.get(name, name) for name in names])
        axes.set(title="surviving test pairs")
        axes.margins(y=0.18)
        axes.legend(frameon=False, loc="upper right")


_METRIC_NAMES = {"auroc": "AUROC", "recall@20": "Recall@20", "ndcg@20": "NDCG@20"}


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
