"""Makes the tables of ``docs/benchmarks.md`` from rows: ``python examples/benchmarks/tables.py ROWS_FOLDER``.

Only what stands between ``<!-- rows: NAME -->`` and ``<!-- end -->`` is written; the prose around it is kept. The
figures are written beside the document.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from figures import draw_ratios, draw_seconds
from rows import Row, read_rows
from summary import Estimate, averaged, difference, is_yardstick, metric, number, ordered, those
from targets import speeds, targets

_SECTION = re.compile(r"(<!-- rows: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """A column of a table of methods.

    Attributes:
        title: its heading.
        value: the number of the rows of one method.
        best: ``min``, ``max``, or by the ``abs``olute value; ``None`` if none is the best.
        digits: after the point.
        sign: whether a plus is written.
    """

    title: str
    value: Callable[[list[Row]], float | None]
    best: Callable[[float], float] | None = None
    digits: int = 3
    sign: bool = False


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Return a Markdown table of the methods of rows; the best but retraining is bold, whoever's it is."""
    groups = {name: those(rows, method=name) for name in ordered(row["method"] for row in rows)}
    cells: dict[str, list[str]] = {name: [] for name in groups}
    for column in columns:
        values = {name: column.value(mine) for name, mine in groups.items()}
        contest = {n: v for n, v in values.items() if v is not None and not is_yardstick(n)}
        key = column.best
        shown = {name: number(value, column.digits, column.sign) for name, value in values.items()}
        best = shown[min(contest, key=lambda name: key(contest[name]))] if key and contest else None
        for name, text in shown.items():
            cells[name].append(f"**{text}**" if text == best and name in contest else text)
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


def _seconds(rows: list[Row]) -> float | None:
    return median(row["seconds"]["total"] for row in rows) if rows else None


def _memory(row: Row) -> float:
    return row["peak_memory_mb"] - (row["memory_before_mb"] or 0.0)


def _least(value: float) -> float:
    return value


def _most(value: float) -> float:
    return -value


def about(rows: Sequence[Row]) -> str:
    """Return what was run, when, and on what."""
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
    return (
        f"{len(runs)} runs, {days}, on {'; '.join(machines)}; up to {seeds} paired seeds and {retraining} free "
        f"retrainings. Commit {', '.join(commits)}; Python {rows[-1]['python']}, {versions}."
    )


def target_table(rows: Sequence[Row]) -> str:
    """Return the table of what the numbers must reach; the mean decides, the 95% interval stands beside it."""
    lines = ["| what | before | to reach | found | |", "|---|---|---|---|---|"]
    for line in targets(rows):
        verdict = "not measured" if line.found is None else "reached" if line.reached else "**missed**"
        lines.append(f"| {line.what} | {line.before} | {line.limit} | {line.found or '–'} | {verdict} |")
    return "\n".join(lines)


def speed_table(rows: Sequence[Row]) -> str:
    """Return the seconds of every method, and over those of retraining in the same run."""
    parts = []
    for recipe in ordered(row["recipe"] for row in rows):
        mine = [row for row in rows if row["recipe"] == recipe and row["suite"] not in ("sequential", "ablations")]
        columns = [
            Column("seconds", _seconds, _least, 2),
            Column("over retraining's", lambda some: median(speeds(rows, some) or [0]) or None, _least),
            Column("of the processor", lambda some: median(row["seconds"]["cpu"] for row in some), _least, 2),
            Column("prepared before, s", lambda some: median(row["seconds"]["prepare"] for row in some), None, 2),
            Column("peak memory, MB", lambda some: median(row["peak_memory_mb"] for row in some), None, 0),
            Column("of it the method's", lambda some: median(_memory(row) for row in some), None, 0),
        ]
        if mine:
            parts.append(f"**{recipe}**\n\n{table(mine, columns)}")
    return "\n\n".join(parts)


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
            Column("seconds", _seconds, _least, 2),
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
                return row["metrics"][name] if row else _mean(name)(of_one)

            return value

        columns = [
            Column("ρ forgotten", _mean("ratio.forgotten.paired"), _least),
            Column("ρ test", _mean("ratio.test.paired"), _least),
            Column("cosine, test", cosine("cosine.test.paired"), _most),
            Column("ρ random, swapped", _mean("ratio.random.paired.swapped"), _least),
            Column("cosine, swapped", cosine("cosine.random.paired.swapped"), _most),
            Column("AUC", _apart("auroc.all", "paired"), abs, 4, sign=True),
            Column("NDCG@20", _apart("ndcg@20", "paired"), abs, 4, sign=True),
            Column("membership", _apart("membership", "paired"), abs, sign=True),
            Column("top-20 shared", _mean("overlap.paired"), _most),
            Column("seconds", _seconds, _least, 2),
            Column("paired seeds", len, None, 0),
        ]
        known = f"{some[0]['forgotten']} training interactions forgotten"
        parts.append(f"**{recipe}, {deletion}.** {known}.\n\n{table(some, columns)}")
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Sequence[Row]], str]] = {
    "about": about,
    "targets": target_table,
    "speed": speed_table,
    "flipped": flipped_tables,
    "deletions": deletion_tables,
    "partial": lambda rows: deletion_tables(rows, "partial"),
    "published": lambda rows: deletion_tables(rows, "published"),
    "sequential": lambda rows: deletion_tables(rows, "sequential"),
    "ablations": lambda rows: deletion_tables(rows, "ablations"),
}


def fill(document: str, rows: Sequence[Row]) -> str:
    """Return a document with all sections between markers made anew.

    Raises:
        ValueError: If a marker is not known, or one of the sections has none.
    """
    names = [match[2] for match in _SECTION.finditer(document)]
    if odd := sorted(set(names) ^ set(SECTIONS)):
        raise ValueError(f"the document and the sections differ in {odd}; write '<!-- rows: NAME -->', '<!-- end -->'.")
    return _SECTION.sub(
        lambda match: f"{match[1]}\n{SECTIONS[match[2]](rows) or 'Not run yet.'}\n\n{match[3]}", document
    )


def main(arguments: list[str] | None = None) -> None:
    """Fill the document and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks.md"), help="%(default)s")
    options = parser.parse_args(arguments)
    rows = read_rows(options.rows)
    if not rows:
        parser.error(f"there are no rows in {str(options.rows)!r}; run run.py first.")
    if not options.output.is_file():
        parser.error(f"there is no document {str(options.output)!r} to fill; start from docs/benchmarks.md.")
    try:
        document = fill(options.output.read_text(encoding="utf-8"), rows)
    except ValueError as error:
        parser.error(str(error))
    options.output.write_text(document, encoding="utf-8")
    draw_seconds(rows).savefig(options.output.with_name("benchmarks-seconds.png"), dpi=110)
    draw_ratios(rows).savefig(options.output.with_name("benchmarks-ratios.png"), dpi=110)


if __name__ == "__main__":
    main()
