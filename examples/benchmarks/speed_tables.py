"""Makes the speed tables of ``docs/benchmarks.md``: ``python examples/benchmarks/speed_tables.py speed-rows``.

Only what stands between ``<!-- speed: NAME -->`` and ``<!-- end -->`` is written. The figure is written beside the
document. Of every suite the latest run counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import sections
from rows import Row, read_rows
from speed_figure import draw_speed
from speed_targets import OWN, PYG, SETTING_UP, SOLVING, Summary, last, middle, over, seconds, targets
from summary import ordered

#: Phases as they follow each other, with what a table calls them.
_PHASES = {
    "parse": "reading the request",
    "around": "looking it up, Lightning",
    "prepare": "set-up",
    "warm_up": "what later requests find",
    "influence": "gradients",
    "solve": "steps",
    "check": "resetting, checking",
    "apply": "applying",
    "checkpoint": "checkpoint",
}


def about(rows: Sequence[Row]) -> str:
    """Return what was run, when, and on what."""
    lines = []
    for suite in ordered(row["suite"] for row in rows):
        mine = last(rows, suite)
        row = mine[-1]
        h, data, trained = row["hardware"], row["data"], row["trained"]
        made = f"{trained['steps']} steps" if trained["steps"] else f"{trained['epochs']} epochs"
        peaks = max(row["imported_mb"] for row in mine)
        times = f"{row['repeats']} repetition{'s' if row['repeats'] != 1 else ''}"
        models = " and ".join(ordered(row["model"] for row in mine))
        # Not the sizes of all, where there are several.
        on = data["name"] if suite != "scaling" else "generated data"
        changes = " with changes" if row["dirty"] else ""
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        lines.append(
            f"*{suite}*: {row['run'][:10]}, {on}, {models} of dimension {row['recipe']['embedding_dim']} trained "
            f"for {made}, {times}, {h['cpu']} ({h['cores']} cores), {h['threads']} threads; the "
            f"imported libraries hold {peaks:.0f} MB. Commit `{str(row['commit'])[:9]}`{changes}; Python "
            f"{row['python']}, {versions}."
        )
    return "\n\n".join(lines)


def target_table(rows: Sequence[Row]) -> str:
    """Return the table of what the speed must reach; medians decide."""
    lines = ["| what | to reach | found | |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {t.what} | {t.limit} | {t.found or '–'} | {t.verdict} |" for t in targets(rows))])


def comparison_table(rows: Sequence[Row]) -> str:
    """Return what forgetting is compared with, and its building blocks."""
    mine = last(rows, "speed")
    summary = Summary(mine)
    lines = []
    for of in (OWN, PYG):
        run = next((row["runs"][0] for row in mine if row["measure"] == "epoch" and row["of"] == of), None)
        if run is not None:
            how = "whole" if run["steps_timed"] == run["steps"] else f"{run['steps_timed']} of {run['steps']} steps"
            lines.append((f"an epoch of {of} ({how}, batches of {mine[0]['recipe']['batch_size']})", summary.epoch(of)))
    names = {"gradient": "a full-batch gradient of the risk", "product": "a curvature product"}
    names["build"] = "what its operator computes once"
    lines += [(text, summary.operator(name)) for name, text in names.items()]
    cells = [[text, f"{value:.3f}"] for text, value in lines if value is not None]
    noise = summary.operator("noise")
    said = f"\n\nAnother draw of the negatives moves the influence of 1% by {noise:.1%} of its norm." if noise else ""
    return _table(["what", "seconds"], cells) + said if cells else ""


def request_table(rows: Sequence[Row], suite: str) -> str:
    """Return the seconds of requests of every size, end to end and by phase."""
    mine = last(rows, suite)
    summary, cells = Summary(mine), []
    for size in ordered(row["request"] for row in mine if row["measure"] == "unlearn"):
        for warm in (False, True) if size == "1 user" else (None,):
            some = [row for row in mine if row["measure"] == "unlearn" and row["request"] == size]
            total = summary.request(size, warm=warm)
            if total is None:
                continue
            times = [over(100 * epoch if (epoch := summary.epoch(of)) else None, total) for of in (OWN, PYG)]
            cells.append(
                [
                    size + {None: "", False: ", first in the process", True: ", later ones"}[warm],
                    f"{middle(seconds(some, ('named',), warm=warm)):.0f}",
                    " or ".join(ordered(run["path"] for row in some for run in row["runs"])),
                    f"**{total:.3f}**",
                    *(f"{summary.request(size, (phase,), warm=warm):.3f}" for phase in _PHASES),
                    *(f"{middle(seconds(some, (count,), warm=warm)):g}" for count in ("products", "steps")),
                    f"{max(row['peak_memory_mb'] for row in some):.0f}",
                    *("–" if value is None else f"{value:,.0f}" for value in times),
                ]
            )
    titles = [
        "to forget",
        "interactions",
        "solve",
        "end to end, s",
        *_PHASES.values(),
        "products",
        "accepted steps",
        "peak memory, MB",
    ]
    return _table([*titles, "times faster than 100 own epochs", "than 100 of PyG's"], cells) if cells else ""


def scaling_table(rows: Sequence[Row]) -> str:
    """Return the seconds of one user, of 1% and of an epoch for generated data of several sizes."""
    mine, cells = last(rows, "scaling"), []
    for factor in sorted({row["factor"] for row in mine}):
        at = Summary(mine).at(factor)
        data = at.rows[0]["data"]
        found = [
            at.request("1 user", SOLVING, warm=True),
            at.request("1 user", SETTING_UP, warm=True),
            at.request("1 user", warm=True),
            at.request("1 user", warm=False),
            at.request("1%"),
            at.epoch(OWN),
        ]
        shape = [f"{data[name]:,}" for name in ("users", "items", "interactions")]
        cells.append([*shape, *("–" if value is None else f"{value:.3f}" for value in found)])
    one = ["gradients and solve", "set-up", "end to end", "end to end, first in the process"]
    titles = [*(f"one user: {text}" for text in one), "1%: end to end", "an epoch"]
    return _table(["users", "items", "interactions", *titles], cells) if cells else ""


#: For those who do not see it.
_FIGURE = "Seconds against the size of the request and against that of the data"


def _table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, rule, *cells])


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "about": about,
    "targets": target_table,
    "comparison": comparison_table,
    "requests": lambda rows: request_table(rows, "speed"),
    "figure": lambda rows: f"![{_FIGURE}](benchmarks-speed.png)" if rows else "",
    "scaling": scaling_table,
    "large": lambda rows: request_table(rows, "large"),
}


def fill(document: str, rows: Sequence[Row]) -> str:
    """Return a document with all speed sections made anew."""
    return sections.fill(document, "speed", {name: make(rows) or "Not run yet." for name, make in SECTIONS.items()})


def main(arguments: list[str] | None = None) -> None:
    """Fill the document and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder of runs of speed.py")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="%(default)s")
    options = parser.parse_args(arguments)
    if not options.output.is_file():
        parser.error(f"there is no document {str(options.output)!r} to fill; start from docs/benchmarks.md.")
    try:
        rows = read_rows(options.rows)
        if not rows:
            parser.error(f"there are no rows in {str(options.rows)!r}; run speed.py first.")
        document = fill(options.output.read_text(encoding="utf-8"), rows)
    except ValueError as error:
        parser.error(str(error))
    options.output.write_text(document, encoding="utf-8")
    draw_speed(rows).savefig(options.output.with_name("benchmarks-speed.png"), dpi=110)


if __name__ == "__main__":
    main()
