"""Makes the tables of ``docs/benchmarks.md`` from rows: ``python examples/benchmarks/tables.py ROWS_FOLDER``.

Rows count that ``--config`` asks for as it is now, in its order; rows of other settings in the folder do not.
Only what stands between ``<!-- rows: NAME -->`` and ``<!-- end -->`` is written; the prose around it is kept. The
figures are written beside the document.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import sections
from figures import draw_ratios, draw_seconds
from plan import Config
from rows import Row, read_rows
from selection import Selection, select
from summary import Estimate, averaged, difference, is_yardstick, metric, number, ordered, speeds, those
from targets import targets

#: Values from which an interval is worth its place in a table of methods.
_ENOUGH = 3


@dataclass(frozen=True)
class Column:
    """A column of a table of methods.

    Attributes:
        title: its heading.
        value: the number of the rows of one method; of an estimate from three values or more the interval is shown.
        best: ``min``, ``max``, or by the ``abs``olute value; ``None`` if none is the best.
        digits: after the point.
        sign: whether a plus is written.
    """

    title: str
    value: Callable[[list[Row]], Estimate | float | None]
    best: Callable[[float], float] | None = None
    digits: int = 3
    sign: bool = False


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a Markdown table of the methods of rows; the best but retraining is bold, whoever's it is."""
    groups = {name: those(rows, method=name) for name in ordered(row["method"] for row in rows)}
    cells: dict[str, list[str]] = {name: [] for name in groups}
    for column in columns:
        found = {name: column.value(mine) for name, mine in groups.items()}
        values = {name: value.mean if isinstance(value, Estimate) else value for name, value in found.items()}
        contest = {n: v for n, v in values.items() if v is not None and not is_yardstick(n)}
        key = column.best
        shown = {name: number(value, column.digits, column.sign) for name, value in values.items()}
        best = shown[min(contest, key=lambda name: key(contest[name]))] if key and contest else None
        for name, text in shown.items():
            value = found[name]
            half = value.half if isinstance(value, Estimate) and value.n >= _ENOUGH else None
            text = f"**{text}**" if text == best and name in contest else text
            cells[name].append(text if half is None else f"{text} ± {number(half, column.digits)}")
    lines = [["method", *(column.title for column in columns)], ["---", *["--:"] * len(columns)]]
    lines += [[f"`{name}`", *cells[name]] for name in groups]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(name: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        estimate = Estimate.of(metric(rows, name))
        return None if estimate is None else estimate.mean

    return value


def _apart(name: str, reference: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        estimate = Estimate.of(difference(rows, name, reference))
        return None if estimate is None else estimate.mean

    return value


def _spread(name: str) -> Callable[[list[Row]], Estimate | None]:
    return lambda rows: Estimate.of(metric(rows, name))


def _cpu(rows: list[Row]) -> float | None:
    return median(row["seconds"]["cpu"] for row in rows) if rows else None


def _wall(rows: list[Row]) -> float | None:
    return median(row["seconds"]["total"] for row in rows) if rows else None


def _prepared(rows: list[Row]) -> float | None:
    return median(row["seconds"]["prepare"] for row in rows) if rows else None


def _least(value: float) -> float:
    return value


def _most(value: float) -> float:
    return -value


def about(rows: Sequence[Row], missing: int) -> str:
    """Return what was run, when, and on what, and how many runs the configuration has beside."""
    dates = sorted(row["date"][:10] for row in rows)
    runs = [row for row in rows if row["seed"] is not None]
    machines = ordered(
        f"{h['cpu']} ({h['cores']} cores), {h['workers']} worker{'s' if h['workers'] > 1 else ''} of "
        f"{h['threads']} thread{'s' if h['threads'] > 1 else ''}"
        for h in (row["hardware"] for row in rows)
    )
    commits = ordered(f"`{str(row['commit'])[:9]}`{' with changes' if row['dirty'] else ''}" for row in rows)
    versions = ", ".join(f"{name} {number}" for name, number in rows[-1]["versions"].items())
    seeds = max(row["seed"] for row in runs) + 1
    retraining = max(row["settings"]["retraining_seeds"] for row in runs)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    left = f"; {missing} more runs of the configuration are missing" if missing else ""
    return (
        f"{len(runs)} runs, {days}, on {'; '.join(machines)}; up to {seeds} paired seeds and {retraining} free "
        f"retrainings{left}. Commit {', '.join(commits)}; Python {rows[-1]['python']}, {versions}."
    )


def target_table(rows: Sequence[Row]) -> str:
    """Return the table of what the numbers must reach; the mean decides, the 95% interval stands beside it."""
    lines = ["| what | before | to reach | found | |", "|---|---|---|---|---|"]
    lines += [f"| {t.what} | {t.before} | {t.limit} | {t.found or '–'} | {t.verdict} |" for t in targets(rows)]
    return "\n".join(lines)


def speed_table(rows: Sequence[Row]) -> str:
    """Return the seconds of methods, and over those of retraining, all on the same deletions and seeds."""
    parts = []
    apart = ("sequential", "ablations", "partial")
    for recipe in ordered(row["recipe"] for row in rows):
        mine = [row for row in those(rows, recipe=recipe) if row["suite"] not in apart]
        run: dict[tuple[str, str, int], set[str]] = {}
        for row in mine:
            run.setdefault((row["suite"], row["deletion"], row["seed"]), set()).add(row["method"])
        # Where most methods were run: those of other deletions and seeds would be compared with easier ones, or harder.
        most = max(run.values(), key=len, default=set())
        common = [where for where, methods in run.items() if methods == most]
        mine = [row for row in mine if (row["suite"], row["deletion"], row["seed"]) in common]
        columns = [
            Column("CPU seconds", _cpu, _least, 2),
            Column("over retraining's", lambda some: median(speeds(rows, some) or [0]) or None, _least),
            Column("wall seconds", _wall, _least, 2),
            Column("peak memory, MB", lambda some: median(row["peak_memory_mb"] for row in some), None, 0),
        ]
        if mine:
            cells = "; ".join(ordered(f"{deletion} (seed {seed})" for _, deletion, seed in common))
            parts.append(f"**{recipe}**, {cells}\n\n{table(mine, columns)}")
    return "\n\n".join([_SPEED, *parts]) if parts else ""


_SPEED = (
    "Medians. *CPU seconds* are those of the processor in the worker's process, from the trained original to the "
    "scores of what has forgotten. Workers ran side by side with other work on the machine, which lengthens *wall "
    "seconds*, those that passed, several times, and these by up to a third. Wall seconds are without reading the "
    "data for the copy that keeps the original, CPU seconds with it; neither has what comes before the request or "
    "the measurement after it. *Over retraining's* are CPU seconds over those of free (or else paired) "
    "retraining. *Peak memory* is the process's, the libraries' included."
)


def flipped_tables(rows: Sequence[Row]) -> str:
    """Return for every model and share of flipped labels how far the methods are from freely retrained models."""
    parts = []
    mine = [row for row in rows if row["suite"] == "flipped"]
    for recipe, deletion in ordered((row["recipe"], row["deletion"]) for row in mine):
        some = those(mine, recipe=recipe, deletion=deletion)
        known = [
            f"{what} {number(_mean(name)(some), digits)}"
            for what, name, digits in (
                ("noise floor, test", "floor.test", 4),
                ("forgotten", "floor.forgotten", 4),
                ("original, test", "original.distance.test.free", 4),
                ("forgotten", "original.distance.forgotten.free", 4),
                ("AUC of the original", "original.auroc.all", 4),
                ("of the retrained", "free.auroc.all", 4),
                ("membership AUROC of the original", "original.membership", 3),
                ("of the retrained", "free.membership", 3),
            )
        ]
        columns = [
            Column("Δ test", _mean("distance.test.free"), _least, 4),
            Column("Δ forgotten", _mean("distance.forgotten.free"), _least, 4),
            Column("Δ test, paired", _mean("distance.test.paired"), _least, 4),
            Column("Δ forgotten, paired", _mean("distance.forgotten.paired"), _least, 4),
            Column("AUC less retrained", _apart("auroc.all", "free"), abs, 4, sign=True),
            Column("`or`", _apart("auroc.or", "free"), abs, 4, sign=True),
            Column("`and`", _apart("auroc.and", "free"), abs, 4, sign=True),
            Column("membership less retrained", _apart("membership", "free"), abs, 3, sign=True),
            Column("CPU seconds", _cpu, _least, 2),
        ]
        parts.append(f"**{recipe}, {deletion}.** {'; '.join(known)}.\n\n{table(some, columns)}")
    return "\n\n".join(parts)


def deletion_tables(rows: Sequence[Row], suite: str = "deletions") -> str:
    """Return for every model and deletion how much the methods leave of the original's distance to the paired one."""
    parts = []
    mine = [row for row in rows if row["suite"] == suite]
    for recipe, deletion in ordered((row["recipe"], row["deletion"]) for row in mine):
        some = those(mine, recipe=recipe, deletion=deletion)

        def cosine(name: str, recipe: str = recipe, deletion: str = deletion) -> Callable[[list[Row]], float | None]:
            def value(of_one: list[Row]) -> float | None:
                row = averaged(rows, suite=suite, recipe=recipe, deletion=deletion, method=of_one[0]["method"])
                return row["metrics"].get(name) if row else _mean(name)(of_one)

            return value

        columns = [
            Column("ρ forgotten", _spread("ratio.forgotten.paired"), _least),
            Column("ρ test", _spread("ratio.test.paired"), _least),
            Column("cosine, test", cosine("cosine.test.paired"), _most),
            Column("ρ random, swapped", _spread("ratio.random.paired.swapped"), _least),
            Column("cosine, swapped", cosine("cosine.random.paired.swapped"), _most),
            Column("AUC", _apart("auroc.all", "paired"), abs, 4, sign=True),
            Column("NDCG@20", _apart("ndcg@20", "paired"), abs, 4, sign=True),
            Column("membership", _apart("membership", "paired"), abs, sign=True),
            Column("top-20 shared", _mean("overlap.paired"), _most),
            Column("CPU seconds", _cpu, _least, 2),
            *([Column("prepared before, s", _prepared, _least, 2)] if suite == "partial" else []),
            Column("paired seeds", len, None, 0),
        ]
        chance = those(some, method="retraining-jittered")
        known = f"{some[0]['forgotten']} training interactions forgotten"
        if chance:
            ratios = (number(_mean(f"ratio.{pairs}.paired")(chance)) for pairs in ("forgotten", "test"))
            known += "; by chance alone (jittered), ρ is {} on forgotten and {} on test pairs".format(*ratios)
        parts.append(f"**{recipe}, {deletion}.** {known}.\n\n{table(some, columns)}")
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "targets": target_table,
    "speed": speed_table,
    "flipped": flipped_tables,
    "deletions": deletion_tables,
    "partial": lambda rows: deletion_tables(rows, "partial"),
    "published": lambda rows: deletion_tables(rows, "published"),
    "sequential": lambda rows: deletion_tables(rows, "sequential"),
    "ablations": lambda rows: deletion_tables(rows, "ablations"),
}


def fill(document: str, selection: Selection) -> str:
    """Return a document with all sections between markers made anew.

    Raises:
        ValueError: If a marker is not known, or one of the sections has none.
    """
    made = {name: make(selection.rows) or "Not run yet." for name, make in SECTIONS.items()}
    return sections.fill(document, "rows", {**made, "about": about(selection.rows, selection.missing)})


def main(arguments: list[str] | None = None) -> None:
    """Fill the document and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder of a run")
    parser.add_argument("--config", type=Path, default=Path("paper.yaml"), help="as given, or beside run.py")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="%(default)s")
    options = parser.parse_args(arguments)
    if not options.output.is_file():
        parser.error(f"there is no document {str(options.output)!r} to fill; start from docs/benchmarks.md.")
    try:
        found = read_rows(options.rows)
        if not found:
            parser.error(f"there are no rows in {str(options.rows)!r}; run run.py first.")
        selection = select(Config.read(options.config), found)
        document = fill(options.output.read_text(encoding="utf-8"), selection)
    except ValueError as error:
        parser.error(str(error))
    options.output.write_text(document, encoding="utf-8")
    for name, draw in (("seconds", draw_seconds), ("ratios", draw_ratios)):
        draw(selection.rows).savefig(options.output.with_name(f"benchmarks-{name}.png"), dpi=110)


if __name__ == "__main__":
    main()
