"""The figures of the benchmarks, from rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure
from rows import Row
from summary import OURS, is_yardstick, metric, ordered, those

#: Okabe and Ito's colours, with a marker each, by what a method is without the number of its epochs.
_LOOKS = {
    OURS: ("#D55E00", "*"),
    "retraining-free": ("#000000", "s"),
    "finetuning": ("#E69F00", "o"),
    "finetuning-25-slow": ("#F0E442", "p"),
    "control-variate": ("#56B4E9", "^"),
    "scif": ("#009E73", "D"),
    "gradient-step": ("#CC79A7", "v"),
    "graph-swap": ("#999999", "h"),
    "reset-rows": ("#999999", "x"),
    "sisa": ("#0072B2", "P"),
    "receraser": ("#0072B2", "X"),
}
#: One of each kind, so that the bars can be told apart; the tables have all.
_BARS = (OURS, "control-variate-5", "finetuning-5", "gradient-step", "scif", "graph-swap")
#: What moved away further than this is cut off rather than allowed to flatten all others.
_HIGHEST = 1.6
#: Below is paired retraining itself, and the rounding of it.
_LOWEST = 1e-2
_PAIRS = ("forgotten", "test")


def _family(method: str) -> tuple[str, str]:
    """A method's name without a number of epochs at its end, and that number."""
    found = re.fullmatch(r"(.+?)(?:-(\d+))?", method)
    assert found is not None
    return found[1], found[2] or ""


def draw_seconds(rows: Sequence[Row]) -> Figure:
    """Return what is left to forget against seconds, for every method on 1% random interactions (or what there is)."""
    suite = [row for row in those(rows) if row["suite"] == "deletions"] or those(rows)
    wanted = "interactions 1%"
    deletion = wanted if any(row["deletion"] == wanted for row in suite) else suite[0]["deletion"]
    suite = [row for row in suite if row["deletion"] == deletion]
    recipes = ordered(row["recipe"] for row in suite)
    families: dict[str, list[str]] = {}
    for method in ordered(row["method"] for row in suite):
        families.setdefault(_family(method)[0], []).append(method)
    figure = Figure(figsize=(2.9 * len(recipes) + 1, 6.6), layout="constrained")
    grid = figure.subplots(2, len(recipes), sharex=True, sharey="row", squeeze=False)
    for recipe, column in zip(recipes, grid.T, strict=True):
        column[0].set_title(recipe, fontsize=10)
        column[1].set_xlabel("CPU seconds")
        for axes, pairs in zip(column, _PAIRS, strict=True):
            for family, methods in families.items():
                if family in _LOOKS:
                    _draw_family(axes, family, methods, those(suite, recipe=recipe), f"ratio.{pairs}.paired")
            axes.axhline(1, color="0.4", lw=0.8, ls="--")
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.25, which="both")
            axes.spines[["top", "right"]].set_visible(False)
    for axes, pairs in zip(grid[:, 0], _PAIRS, strict=True):
        axes.set_ylim(bottom=_LOWEST)
        axes.set_ylabel(f"ρ on {pairs} pairs")
    _legend(figure, grid, f"What is left to forget (1 did nothing)\nand what it costs: {deletion}, paired retraining")
    return figure


def _draw_family(axes: Any, family: str, methods: Sequence[str], rows: Sequence[Row], name: str) -> None:
    """Draw the methods that differ in their epochs as points of one line."""
    points = []
    for method in methods:
        mine = those(rows, method=method)
        if ratios := metric(mine, name):
            points.append((median(row["seconds"]["cpu"] for row in mine), mean(ratios), _family(method)[1]))
    points = sorted((point for point in points if point[1] >= _LOWEST), key=lambda point: int(point[2] or 0))
    if points:
        colour, marker = _LOOKS[family]
        seconds, ratios, epochs = zip(*points, strict=True)
        size = 14 if family == OURS else 6
        axes.plot(seconds, ratios, color=colour, marker=marker, ms=size, lw=1, label=family, zorder=3)
        for x, y, text in zip(seconds, ratios, epochs, strict=True):
            axes.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=7, color="0.25")


def draw_ratios(rows: Sequence[Row]) -> Figure:
    """Return bars of what is left to forget, for every clean deletion and model, of a method of each kind."""
    suite = [row for row in those(rows) if row["suite"] == "deletions"] or those(rows)
    recipes, deletions = ordered(row["recipe"] for row in suite), sorted({row["deletion"] for row in suite}, key=_size)
    run = ordered(row["method"] for row in suite)
    methods = [name for name in _BARS if name in run] or [name for name in run if not is_yardstick(name)]
    figure = Figure(figsize=(1.7 * len(deletions) + 5, 1.9 * len(recipes) + 1.2), layout="constrained")
    grid = figure.subplots(len(recipes), 2, sharex=True, sharey=True, squeeze=False)
    width = 0.84 / len(methods)
    for recipe, line in zip(recipes, grid, strict=True):
        for axes, pairs in zip(line, _PAIRS, strict=True):
            for k, method in enumerate(methods):
                for place, deletion in enumerate(deletions):
                    mine = those(suite, recipe=recipe, deletion=deletion, method=method)
                    if ratios := metric(mine, f"ratio.{pairs}.paired"):
                        x, height = place + (k + 0.5) * width - 0.42, mean(ratios)
                        colour = _LOOKS.get(_family(method)[0], ("#999999", ""))[0]
                        axes.bar(x, min(height, _HIGHEST), width, color=colour, label=method)
                        if height > _HIGHEST:
                            axes.text(x, _HIGHEST, f" {height:.1f}", fontsize=6, rotation=90, ha="center", va="bottom")
            axes.axhline(1, color="0.4", lw=0.8, ls="--")
            axes.set_ylim(0, 1.15 * _HIGHEST)
            axes.set_xticks(range(len(deletions)), deletions, rotation=20, fontsize=7, ha="right")
            axes.set_title(f"{recipe}: {pairs} pairs", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("ρ")
    _legend(figure, grid, "What is left to forget, against paired retraining\n(1 did nothing, 0 retrained)")
    return figure


def _size(deletion: str) -> tuple[str, float]:
    """The kind of a deletion and its number, by which ``10%`` comes after ``2%``."""
    kind, share = deletion.split()
    return kind, float(share.rstrip("%"))


def _legend(figure: Figure, grid: Any, title: str) -> None:
    """Name every look once, below, and say above what is seen."""
    named = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        named |= {label: handle for handle, label in zip(handles, labels, strict=True) if label not in named}
    columns = max(2, int(figure.get_figwidth() / 1.6))
    figure.legend(named.values(), named, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
