"""The figures of an audit's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from lightning_ifru.audit_verdict import MEMBERSHIP_TOLERANCE, measured
from lightning_ifru.figures import AFTER, BEFORE

if TYPE_CHECKING:
    from lightning_ifru.audit_report import AuditReport

_COLOURS = {"original": BEFORE, "new graph only": "#ddaa33", "unlearned": AFTER}
_RETRAINED = "#228833"
_TITLES = {"test": "pairs held back for testing", "forgotten": "forgotten pairs"}


def attack_figure(report: AuditReport) -> Figure:
    """Return how often the attack succeeds against each model, with the range that counts as retrained."""
    figure, axes = _panel(len(report.models))
    known = [measured(figures, "membership_auroc") for figures in report.retrained]
    if known:
        low, high = min(known) - MEMBERSHIP_TOLERANCE, max(known) + MEMBERSHIP_TOLERANCE
        axes.axvspan(100 * low, 100 * high, color=_RETRAINED, alpha=0.15, linewidth=0)
    for place, (name, figures) in enumerate(report.models):
        value = measured(figures, "membership_auroc")
        colour = _COLOURS.get(name, _RETRAINED)
        if name in report.attack.intervals:
            low, high = (100 * end for end in report.attack.intervals[name])
            axes.hlines(place, low, high, color=colour, linewidth=1.2)
        axes.plot(100 * value, place, "o", markersize=7, color=colour)
        axes.annotate(
            f"{100 * value:.1f}", (100 * value, place), (0, 5), textcoords="offset points", ha="center", fontsize=9
        )
    axes.axvline(50, color="#666666", linestyle=":", linewidth=1)
    axes.set_xlabel("the attacker is right, of 100 cases (dotted: guessing)")
    axes.margins(x=0.08)
    return _named(figure, axes, report)


def belief_figure(report: AuditReport) -> Figure:
    """Return each model's mean belief in the forgotten pairs."""
    figure, axes = _panel(len(report.models))
    values = [measured(figures, "forgotten_probability") for _, figures in report.models]
    colours = [_COLOURS.get(name, _RETRAINED) for name, _ in report.models]
    bars = axes.barh(range(len(values)), values, 0.6, color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(xlim=(0, 1.08), xlabel="belief in the forgotten pairs, on average")
    return _named(figure, axes, report)


def closeness_figure(report: AuditReport) -> Figure:
    """Return how far models are from retrained ones, on the forgotten and on test pairs."""
    figure = Figure(figsize=(8.0, 2.5), layout="constrained")
    panels = figure.subplots(1, len(report.closeness), squeeze=False)[0]
    names = {"original": "original", "graph_swapped": "new graph only", "unlearned": "unlearned"}
    for axes, (pairs, close) in zip(panels, report.closeness.items(), strict=True):
        values = [close.distance[key] for key in names]
        bars = axes.bar(range(3), values, 0.6, color=[_COLOURS[name] for name in names.values()])
        axes.bar_label(bars, fmt="%.3f", padding=2)
        if close.noise_floor is not None:
            axes.axhline(close.noise_floor, color=_RETRAINED, linestyle="--", linewidth=1.2)
        axes.set_xticks(range(3), ["original", "new graph\nonly", "unlearned"])
        axes.set(title=_TITLES[pairs], ylabel="distance")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _panel(rows: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.0, 0.7 + 0.3 * rows), layout="constrained")
    return figure, figure.subplots()


def _named(figure: Figure, axes: Any, report: AuditReport) -> Figure:
    """Name the rows after the models, the first one on top."""
    names = [name for name, _ in report.models]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
