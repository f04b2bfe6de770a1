"""The figure of the speed: time against the size of the request, and against that of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rows import Row
from speed_targets import ONE_STEP, OWN, PYG, SOLVING, Summary, last, middle, seconds
from summary import ordered

#: Okabe and Ito's colours: of this package's forgetting, of its linear algebra alone, and of training.
_TOTAL, _SOLVING, _OWN, _PYG = "#D55E00", "#0072B2", "#000000", "#999999"


def draw_speed(rows: Sequence[Row]) -> Figure:
    """Return seconds against interactions to forget (the latest run of speed) and against those of generated data."""
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", ylabel="seconds")
        axes.margins(x=0.15)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    _by_request(left, last(rows, "speed"))
    _by_data(right, last(rows, "scaling"))
    return figure


def _by_request(axes: Any, rows: Sequence[Row]) -> None:
    summary, points = Summary(list(rows)), []
    for size in ordered(row["request"] for row in rows if row["measure"] == "unlearn"):
        if size.endswith(ONE_STEP):  # another method's
            continue
        warm = True if size == "1 user" else None
        named = middle(seconds(rows, ("named",), warm=warm, measure="unlearn", request=size))
        total, solving = (summary.request(size, names, warm=warm) for names in (("total",), SOLVING))
        if total is not None:
            points.append((named, total, solving, f"{size}, warm" if warm else size))
    if points:
        x, totals, solving, names = zip(*points, strict=True)
        axes.plot(x, totals, color=_TOTAL, marker="o", label="end to end")
        axes.plot(x, solving, color=_SOLVING, marker="s", label="gradients and solve")
        for place, total, name in zip(x, totals, names, strict=True):
            axes.annotate(name, (place, total), (0, 7), textcoords="offset points", fontsize=8, ha="center")
    for of, colour, text in ((OWN, _OWN, "an epoch of this package"), (PYG, _PYG, "an epoch of PyG's example")):
        if (epoch := summary.epoch(of)) is not None:
            axes.axhline(epoch, color=colour, lw=1, ls="--", label=text)
    name = rows[0]["data"]["name"] if rows else "not run yet"
    axes.set(xlabel="training interactions to forget", title=f"Time against request size ({name})")
    axes.title.set_fontsize(10)
    _legend(axes)


def _by_data(axes: Any, rows: Sequence[Row]) -> None:
    sizes = [Summary(list(rows)).at(factor) for factor in sorted({row["factor"] for row in rows})]
    x = [at.rows[0]["data"]["interactions"] for at in sizes]
    lines = (
        ("1%, end to end", _TOTAL, "^", [at.request("1%") for at in sizes]),
        ("one user, warm, end to end", _TOTAL, "o", [at.request("1 user", warm=True) for at in sizes]),
        (
            "one user, warm, gradients and solve",
            _SOLVING,
            "s",
            [at.request("1 user", SOLVING, warm=True) for at in sizes],
        ),
        ("an epoch of this package", _OWN, "", [at.epoch(OWN) for at in sizes]),
    )
    for label, colour, marker, y in lines:
        if y and all(value is not None for value in y):
            axes.plot(
                x, y, color=colour, marker=marker, ls="-" if marker else "--", lw=1.5 if marker else 1, label=label
            )
    if x:
        axes.set_xticks(x, [f"{size:,}" for size in x])
        axes.xaxis.minorticks_off()
    title = "Time against dataset size (generated, same mean degree)"
    axes.set(xlabel="training interactions there are", title=title)
    axes.title.set_fontsize(10)
    _legend(axes)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
