"""The figures of a report, each drawn into axes of matplotlib; a report that lacks the numbers says so there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from lightning_ifru.figures import AFTER, BEFORE
from lightning_ifru.report_table import METRIC_NAMES, score_name, short

if TYPE_CHECKING:
    from lightning_ifru.report import UnlearningReport


def report_figure(report: UnlearningReport) -> Figure:
    """Return what was to be forgotten and what is left of it, above whom it has changed and how much."""
    figure = Figure(figsize=(9.0, 6.4), layout=ConstrainedLayoutEngine(wspace=0.08, hspace=0.08))
    panels = figure.subplots(2, 2)
    for draw, axes in zip(
        (draw_influence, draw_residual, draw_top_changes, draw_score_shift), panels.flat, strict=True
    ):
        draw(report, axes)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_influence(report: UnlearningReport, axes: Any) -> None:
    """Draw the norm of the influence by distance from what is forgotten."""
    axes.set(title="influence of what was forgotten")
    norms = report.influence_by_hop
    if not any(norms.values()):
        _say(axes, "nothing was solved" if report.residual_before is None else "none on the model")
        return
    bars = _bars(axes, list(norms.values()), [short(norm) for norm in norms.values()])
    if "dense" in norms:
        bars[-1].set_color(BEFORE)
    axes.set_xticks(range(len(norms)), [_HOPS[name] for name in norms])
    axes.set(xlabel=_DISTANCE, ylabel="gradient norm ‖b‖")
    axes.ticklabel_format(axis="y", scilimits=_SCIENTIFIC)


def draw_residual(report: UnlearningReport, axes: Any) -> None:
    """Draw the residual by step."""
    axes.set(title="what is left to forget")
    if report.residual_before is None:
        _say(axes, "nothing was solved")
        return
    sizes = [report.residual_before, *(step["residual"] for step in report.trajectory)]
    axes.plot(range(len(sizes)), sizes, "o-", color=AFTER)
    axes.set(xlabel="Newton step", ylabel="residual ‖r‖", ylim=(0, None))
    axes.set_xticks(range(len(sizes)))
    axes.ticklabel_format(axis="y", scilimits=_SCIENTIFIC)
    axes.grid(axis="y", alpha=0.3)


def draw_top_changes(report: UnlearningReport, axes: Any) -> None:
    """Draw the mean share of recommended items that changed, by the users' distance from what is forgotten."""
    axes.set(title="recommendations that changed")
    counted = report.top_changes
    if not counted:
        _say(axes, "too few users to say" if report.evaluated else "not evaluated")
        return
    length = len(next(iter(counted.values()))) - 1
    users = [sum(counts) for counts in counted.values()]
    shares = [
        100 * sum(k * number for k, number in enumerate(counts)) / (number_of_users * length)
        for counts, number_of_users in zip(counted.values(), users, strict=True)
    ]
    _bars(axes, shares, [f"{share:.3g}%" for share in shares])
    names = [f"{_HOPS[name]}\n({count:,} users)" for name, count in zip(counted, users, strict=True)]
    axes.set_xticks(range(len(counted)), names)
    axes.set(xlabel=_DISTANCE, ylabel=f"share of a user's top {length}")
    axes.yaxis.set_major_formatter(PercentFormatter())


def draw_score_shift(report: UnlearningReport, axes: Any) -> None:
    """Draw the distribution of the forgotten pairs' scores before and after, or their means where there is none."""
    shift = report.score_shift
    anew = " (rows drawn anew)" if shift.get("reset") else ""
    axes.set(title=f"forgotten pairs{anew}")
    if not shift:
        _say(axes, "too few to say" if report.evaluated else "not evaluated")
        return
    if "edges" not in shift:
        means = [shift["mean_before"], shift["mean_after"]]
        _bars(axes, means, [short(mean) for mean in means])[0].set_color(BEFORE)
        axes.set_xticks((0, 1), ("before", "after"))
        axes.set(xlabel="of fewer than five users, hence no distribution", ylabel=f"mean {score_name(report)}")
        return
    for moment, colour in (("before", BEFORE), ("after", AFTER)):
        axes.stairs(shift[moment], shift["edges"], fill=True, alpha=0.65, color=colour, label=moment)
        axes.axvline(shift[f"mean_{moment}"], color=colour, linestyle="--", linewidth=1)
    axes.set(xlabel=score_name(report), ylabel="pairs")
    axes.margins(x=0.0)
    axes.legend(frameon=False)


def draw_metrics(report: UnlearningReport, axes: Any) -> None:
    """Draw the metrics before and after, as bars side by side."""
    axes.set(title="surviving test pairs")
    if not report.evaluated:
        _say(axes, "not evaluated")
        return
    names = [name for name, value in report.metrics_before.items() if value is not None]
    for offset, metrics, label, colour in (
        (-0.2, report.metrics_before, "before", BEFORE),
        (0.2, report.metrics_after, "after", AFTER),
    ):
        places = [place + offset for place in range(len(names))]
        bars = axes.bar(places, [metrics[name] for name in names], 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2, rotation=90)
    axes.set_xticks(range(len(names)), [METRIC_NAMES.get(name, name) for name in names])
    axes.margins(y=0.18)
    axes.legend(frameon=False, loc="upper right")


_HOPS = {"0": "0", "1": "1", "2": "2", "3+": "further", "dense": "dense weights"}
_DISTANCE = "hops from what was forgotten"
_SCIENTIFIC = (-2, 4)


def _bars(axes: Any, heights: Sequence[float], labels: Sequence[str]) -> Any:
    bars = axes.bar(range(len(heights)), heights, 0.6, color=AFTER)
    axes.bar_label(bars, labels=labels, padding=2)
    axes.margins(y=0.15)
    # One or two bars are no wider than four.
    room = max(0.5, 2.0 - len(heights) / 2)
    axes.set_xlim(-room, len(heights) - 1 + room)
    return bars


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#666666", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
