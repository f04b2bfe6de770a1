"""The figures of the benchmarks, from rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from matplotlib.figure import Figure
from rows import Row
from summary import OURS, RETRAINING, metric, ordered, those

#: Okabe and Ito's colours, with a marker each: what a method is made of, by the start of its name.
_FAMILIES = {
    "retraining": ("#000000", "s"),
    "finetuning": ("#E69F00", "o"),
    "control-variate": ("#56B4E9", "^"),
    "scif": ("#009E73", "D"),
    "gradient-step": ("#CC79A7", "v"),
    "sisa": ("#F0E442", "P"),
    "receraser": ("#0072B2", "X"),
    "ifru": ("#D55E00", "*"),
}
_OTHER = ("#999999", "h")


def _look(method: str) -> tuple[str, str]:
    return next((look for start, look in _FAMILIES.items() if method.startswith(start)), _OTHER)


def draw_seconds(rows: Sequence[Row]) -> Figure:
    """Return what is left to forget against seconds, for every method on 1% random interactions (or what there is)."""
    suite = [row for row in rows if row["suite"] == "deletions" and row["seed"] is not None] or those(rows)
    wanted = "interactions 1%"
    deletion = wanted if any(row["deletion"] == wanted for row in suite) else suite[0]["deletion"]
    suite = [row for row in suite if row["deletion"] == deletion]
    recipes = ordered(row["recipe"] for row in suite)
    methods = ordered(row["method"] for row in suite)
    figure = Figure(figsize=(3.4 * len(recipes) + 2.2, 6.4), layout="constrained")
    grid = figure.subplots(2, len(recipes), sharex=True, sharey="row", squeeze=False)
    for column, recipe in enumerate(recipes):
        for axes, pairs in zip(grid[:, column], ("forgotten", "test"), strict=True):
            for method in methods:
                mine = those(suite, recipe=recipe, method=method)
                ratios = metric(mine, f"ratio.{pairs}.paired")
                if ratios:
                    colour, marker = _look(method)
                    seconds = median(row["seconds"]["total"] for row in mine)
                    size = 160 if method == OURS else 45
                    axes.scatter(seconds, mean(ratios), s=size, c=colour, marker=marker, label=method, zorder=3)
                    axes.annotate(method, (seconds, mean(ratios)), (5, 4), textcoords="offset points", fontsize=6)
            axes.axhline(1, color="0.6", lw=0.8, ls="--")
            axes.set_xscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        grid[0, column].set_title(recipe)
        grid[1, column].set_xlabel("seconds (log)")
    for axes, pairs in zip(grid[:, 0], ("forgotten", "test"), strict=True):
        axes.set_ylabel(f"ρ on {pairs} pairs\n(0 retrained, 1 did nothing)")
    figure.suptitle(f"What is left to forget, and what it costs: {deletion}, against paired retraining")
    return figure


def draw_ratios(rows: Sequence[Row]) -> Figure:
    """Return bars of what is left to forget, for every clean deletion and model, of the methods that train least."""
    suite = [row for row in those(rows) if row["suite"] == "deletions"] or those(rows)
    recipes, deletions = (ordered(row[part] for row in suite) for part in ("recipe", "deletion"))
    run = ordered(row["method"] for row in suite)
    methods = [name for name in _BARS if name in run] or [name for name in run if name not in RETRAINING]
    figure = Figure(figsize=(1.6 * len(deletions) + 5, 2.1 * len(recipes) + 1), layout="constrained")
    grid = figure.subplots(len(recipes), 2, sharex=True, squeeze=False)
    width = 0.84 / len(methods)
    for recipe, line in zip(recipes, grid, strict=True):
        for axes, pairs in zip(line, ("forgotten", "test"), strict=True):
            for k, method in enumerate(methods):
                found = [
                    (place, metric(those(suite, recipe=recipe, deletion=name, method=method), f"ratio.{pairs}.paired"))
                    for place, name in enumerate(deletions)
                ]
                bars = [(place + (k + 0.5) * width - 0.42, mean(ratios)) for place, ratios in found if ratios]
                places, heights = zip(*bars, strict=True) if bars else ((), ())
                axes.bar(places, heights, width, color=_look(method)[0], label=method)
            axes.axhline(1, color="0.3", lw=0.8, ls="--")
            # What moved far away is cut off rather than allowed to flatten all others; the tables have it.
            axes.set_ylim(0, min(axes.get_ylim()[1], 2.0))
            axes.set_xticks(range(len(deletions)), deletions, rotation=20, fontsize=7)
            axes.set_title(f"{recipe}: {pairs} pairs", fontsize=9)
            axes.set_ylabel("ρ", rotation=0)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(methods), frameon=False, fontsize=8)
    figure.suptitle("What is left of the original's distance to the retrained model (1 did nothing, 0 retrained)")
    return figure


#: One of each kind, so that the bars can be told apart; the tables have all.
_BARS = (OURS, "control-variate-5", "finetuning-5", "gradient-step", "scif", "graph-swap")
