"""A report's numbers as rows of text, which a terminal and a page show alike, and as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lightning_ifru.report import UnlearningReport

METRIC_NAMES = {"auroc": "AUROC", "recall@20": "Recall@20", "ndcg@20": "NDCG@20"}
METRIC_HEADINGS = ("", "before", "after", "change")


def title(report: UnlearningReport) -> str:
    """Return what the summary is called."""
    return "What would be forgotten" if report.dry_run else "What was forgotten"


def summary(report: UnlearningReport) -> Iterator[tuple[str, str]]:
    """Yield what is said and the number, for what happened or would happen."""
    if report.already_absent:
        yield "entries forgotten before", f"{report.already_absent:,}"
    if report.already_absent and not report.num_forgotten:
        yield "interactions", "none: nothing was changed"
        return
    splits = ", ".join(f"{count:,} {name}" for name, count in report.forgotten_by_split.items())
    yield "interactions", f"{report.num_forgotten:,}"
    yield "of which", splits
    yield "users / items erased", f"{report.num_users_erased:,} / {report.num_items_erased:,}"
    if report.affected_nodes is not None:
        yield "nodes the graph's change can reach", f"{report.affected_nodes:,}"
    if report.path == "local":
        yield "solved", "around what is forgotten"
    if report.dry_run:
        yield "curvature products, at most", f"{report.expected['products']:,.0f}"
        yield "seconds, at most about", f"{report.expected['seconds']:.1f}"
        return
    if report.verdict == "retrained":
        yield "steps", "none: trained anew"
        yield (
            "seconds in all / training",
            f"{report.seconds.get('total', math.nan):.1f} / {report.seconds['retrain']:.1f}",
        )
        return
    yield "influence: direct / spillover", f"{short(report.direct_norm)} / {short(report.spillover_norm)}"
    fell = "" if report.residual_fell is None else f"  ({report.residual_fell:.1f}-fold down)"
    yield "residual", f"{short(report.residual_before)} → {short(report.residual_after)}{fell}"
    yield "training's gradient / influence", short(report.stationarity)
    method = f"{report.steps} × {report.curvature}, damping {short(report.damping)}" if report.steps else "no step"
    yield "steps", method
    if report.path == "local":
        yield "rows solved for / examples", f"{report.unknowns:,} / {report.examples:,}"
        yield "importance left out", f"{report.importance_left_out:.0%}"
    yield "products with the curvature", f"{report.cg_iterations:,}"
    yield "embedding rows changed", f"{report.rows_changed:,}"
    if not report.evaluated:
        yield "metrics, recommendations and scores", "not evaluated"
    if report.items_changed is not None:
        length = len(next(iter(report.top_changes.values()))) - 1
        yield f"items changed in a user's top {length}", f"{report.items_changed:.1f} on average"
    if report.score_shift:
        means = (short(report.score_shift[name]) for name in ("mean_before", "mean_after"))
        yield f"{score_name(report)} of forgotten pairs", " → ".join(means)
    spent = f"{report.seconds.get('total', math.nan):.1f} / {report.seconds.get('solve', math.nan):.1f}"
    yield "seconds in all / solving", spent


def metrics(report: UnlearningReport) -> Iterator[tuple[str, str, str, str]]:
    """Yield each metric's name, its values before and after, and the change; dashes where it is not defined."""
    for name, before in report.metrics_before.items():
        after = report.metrics_after[name]
        numbers = ("–", "–", "–")
        if before is not None and after is not None:
            numbers = (f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
        yield METRIC_NAMES.get(name, name), *numbers


def tables(report: UnlearningReport) -> Iterator[Table]:
    """Yield the tables for a terminal."""
    table = Table(title=title(report), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in summary(report):
        table.add_row(*map(Text, row))  # whatever has brackets is no markup
    yield table
    if report.verdict_reasons:
        table = Table(title=f"Verdict: {report.verdict}", show_header=False)
        for reason in report.verdict_reasons:
            table.add_row(Text(reason))
        yield table
    if report.metrics_before:
        table = Table(title="Surviving test pairs")
        for heading in METRIC_HEADINGS:
            table.add_column(heading, justify="right" if heading else "left")
        for numbers in metrics(report):
            table.add_row(*map(Text, numbers))
        yield table


def score_name(report: UnlearningReport) -> str:
    """Return what the scores of the forgotten pairs are: beliefs in their labels, or of no unit."""
    return "belief in labels" if report.score_shift["belief"] else "score"


def short(value: float | None) -> str:
    """Return a number with three digits, and a dash for none."""
    return "–" if value is None else f"{value:.3g}"
