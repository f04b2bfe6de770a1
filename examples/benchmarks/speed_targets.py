"""What the speed must reach, and whether it does: from rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rows import Row

OWN, PYG = "this package", "PyG's example"
SETTING_UP, SOLVING = ("prepare", "warm_up"), ("influence", "solve")
#: How a request is called that is solved with ``IFRU(max_steps=1)`` instead of the default.
ONE_STEP = " in one step"
#: Phases of forgetting as they follow each other.
PHASES = ("parse", "around", *SETTING_UP, *SOLVING, "check", "evaluate", "apply", "checkpoint")
#: What a run may have seconds of.
TIMED = ("total", *PHASES, "gradient", "build", "product")


@dataclass(frozen=True)
class Line:
    """A line of the table: what is measured, what is to be reached, what was found, and ``reached`` or not."""

    what: str
    limit: str
    found: str | None = None
    verdict: str = "not measured"


def last(rows: Iterable[Row], suite: str) -> list[Row]:
    """Return the rows of a suite's latest run: of one on data from a file, if there is any."""
    mine = [row for row in rows if row["suite"] == suite]
    mine = [row for row in mine if row["data"]["generated"] is None] or mine
    latest = max((row["run"] for row in mine), default=None)
    return [row for row in mine if row["run"] == latest]


def seconds(
    rows: Iterable[Row], names: Sequence[str] = ("total",), *, warm: bool | None = None, **wanted: Any
) -> list[float]:
    """Return what the runs of some rows took: the sum of phases, for each run.

    Args:
        rows: of one run of the command.
        names: phases; a run without one of them has spent nothing on it.
        warm: of requests in turn the first of a process (``False``), or all others (``True``); by default all.
        wanted: values of the rows.
    """
    return [
        sum(run.get(name, 0.0) for name in names)
        for row in rows
        if wanted.items() <= row.items()
        for run in row["runs"]
        if warm is None or warm == (run.get("before", 0) > 0)
    ]


def middle(values: Sequence[float]) -> float | None:
    """Return the median, ``None`` without values."""
    return median(values) if values else None


def over(one: float | None, other: float | None) -> float | None:
    """Return a ratio, ``None`` if there is nothing to divide or to divide by."""
    return one / other if one is not None and other else None


@dataclass(frozen=True)
class Summary:
    """Medians of a run of the command; ``None`` where nothing was measured.

    Attributes:
        rows: of one run.
    """

    rows: list[Row]

    def epoch(self, of: str) -> float | None:
        """Return the seconds of an epoch."""
        return middle(seconds(self.rows, measure="epoch", of=of))

    def request(self, size: str, names: Sequence[str] = ("total",), *, warm: bool | None = None) -> float | None:
        """Return the seconds of a request, end to end or of some phases."""
        return middle(seconds(self.rows, names, warm=warm, measure="unlearn", request=size))

    def operator(self, name: str) -> float | None:
        """Return the seconds of a ``gradient``, a ``product``, or what the operator needs once (``build``)."""
        return middle(seconds(self.rows, (name,), measure="operators"))

    def peak_mb(self) -> float | None:
        """Return the largest peak of memory of any unlearning."""
        return max((row["peak_memory_mb"] for row in self.rows if row["measure"] == "unlearn"), default=None)

    def quality(self, size: str) -> dict[str, Any] | None:
        """Return what forgetting a request did to quality."""
        wanted = {"measure": "quality", "request": size}
        return next((row["runs"][0] for row in self.rows if wanted.items() <= row.items()), None)

    def at(self, factor: float) -> Summary:
        """Return the summary of one size of generated data."""
        return Summary([row for row in self.rows if row["factor"] == factor])


def targets(rows: Sequence[Row]) -> list[Line]:
    """Return every line, for which rows are there or not."""
    main, scaling, large = (Summary(last(rows, suite)) for suite in ("speed", "scaling", "large"))
    on = main.rows[0]["data"]["name"] if main.rows else "Gowalla"
    return [
        *_faster(main, f"{on}, 1% of interactions, end to end, against 100 epochs of our own training", OWN, 200),
        *_faster(main, f"{on}, 1% of interactions, end to end, against 100 epochs of PyG's example", PYG, 2000),
        _product(main, f"{on}: a curvature product over a full-batch gradient of the risk"),
        _one_user(main, f"{on}, one user, warm, end to end: share of an epoch of PyG's example"),
        *_local(main, on),
        _memory(main, f"{on}: peak memory over the imported libraries", 2.0),
        *_quality(main, on),
        *_quality(main, on, ONE_STEP),
        _scaling(scaling),
        *_large(large),
        *_processes(main, f"{on}, 1% of interactions"),
    ]


def _judged(what: str, limit: str, found: str, reached: bool) -> Line:
    return Line(what, limit, found, "reached" if reached else "**missed**")


def _faster(summary: Summary, what: str, of: str, least: float) -> Iterator[Line]:
    limit, epoch = f"{least:,.0f} times faster", summary.epoch(of)
    for how in ("", ONE_STEP):
        one = summary.request(f"1%{how}")
        times = over(100 * epoch if epoch else None, one)
        if times is None:
            yield Line(f"{what}{how}", limit)
        else:
            found = f"{times:,.0f} times ({one:.2f} s against 100 × {epoch:.2f} s)"
            yield _judged(what + how, limit, found, times >= least)


def _product(summary: Summary, what: str) -> Line:
    limit, most = "at most 2 times", 2.0
    product, gradient, build = (summary.operator(name) for name in ("product", "gradient", "build"))
    times = over(product, gradient)
    if times is None:
        return Line(what, limit)
    found = f"{times:.2f} times ({product:.3f} s over {gradient:.3f} s; {build:.3f} s once for all products)"
    return _judged(what, limit, found, times <= most)


def _one_user(summary: Summary, what: str) -> Line:
    limit, most = "at most 0.5%", 0.005
    warm, setup = (summary.request("1 user", names, warm=True) for names in (("total",), SETTING_UP))
    share, own = (over(warm, summary.epoch(of)) for of in (PYG, OWN))
    if share is None:
        return Line(what, limit)
    beside = f"{warm:.3f} s, of which set-up {setup:.3f} s" + (f"; {own:.1%} of our own epoch" if own else "")
    return _judged(what, limit, f"{share:.2%} ({beside})", share <= most)


def _local(summary: Summary, on: str) -> list[Line]:
    lines = []
    for model, most in (("MF", 0.35), ("LightGCN-2", 0.45)):
        runs = [
            run for row in summary.rows if row["measure"] == "local" and row["model"] == model for run in row["runs"]
        ]
        for name, what, limit in (("error", "its relative error", most), ("cosine", "its cosine", 0.9)):
            text = f"{on}, one user, {model}, change of scores by a local solve against the full one's: {what}"
            low = name == "error"
            bound = f"at most {limit:.2f}" if low else f"at least {limit:.2f}"
            all_, test, near = (
                middle([run[f"{name}.{part}"] for run in runs if run[f"{name}.{part}"] is not None])
                for part in ("all", "test", "near")
            )
            if all_ is None:
                lines.append(Line(text, bound))
                continue
            parts = "; ".join(
                f"{of} {value:.3f}" for of, value in (("test pairs", test), ("pairs near", near)) if value
            )
            lines.append(_judged(text, bound, f"{all_:.3f} ({parts})", all_ <= limit if low else all_ >= limit))
    return lines


def _memory(summary: Summary, what: str, most: float) -> Line:
    limit, peak = f"under {most:g} GiB", summary.peak_mb()
    return Line(what, limit) if peak is None else _judged(what, limit, f"{peak / 1024:.2f} GiB", peak / 1024 < most)


def _quality(summary: Summary, on: str, how: str = "") -> list[Line]:
    found = summary.quality(f"1%{how}") or {}
    before, after, fell = (found.get(name) for name in ("recall@20.before", "recall@20.after", "residual_fell"))
    recall = Line(f"{on}, 1% forgotten{how}: Recall@20 after over before, less 1", "at least −1%")
    residual = Line(f"{on}, 1% forgotten{how}: the completeness residual before over after", "at least 5 times")
    if before and after is not None:
        text = f"{after / before - 1:+.2%} ({before:.4f} before, {after:.4f} after)"
        recall = _judged(recall.what, recall.limit, text, after >= 0.99 * before)
    if fell is not None:
        residual = _judged(residual.what, residual.limit, f"{fell:.1f} times", fell >= 5)
    return [recall, residual]


def _scaling(summary: Summary) -> Line:
    what = "one user, warm, gradients and solve, generated data: 4 times as many users, items and interactions"
    limit, most = "at most 1.3 times the time", 1.3
    small, big = (summary.at(factor).request("1 user", SOLVING, warm=True) for factor in (1.0, 4.0))
    times = over(big, small)
    if times is None:
        return Line(what, limit)
    return _judged(what, limit, f"{times:.2f} times ({big:.3f} s over {small:.3f} s)", times <= most)


def _large(summary: Summary) -> list[Line]:
    on = summary.rows[0]["data"] if summary.rows else {"interactions": 20_000_000}
    on = f"{on['interactions']:,} generated interactions"
    lines = []
    for size, text in (("1 user", "one user, first in the process"), ("0.1%", "0.1% of interactions")):
        what, limit = f"{on}, {text}, end to end: share of an epoch of this package", "completes, at most 100%"
        found = summary.request(size, warm=False)
        share = over(found, summary.epoch(OWN))
        if share is None:
            lines.append(Line(what, limit))
        else:
            lines.append(_judged(what, limit, f"{share:.1%} ({found:.1f} s)", share <= 1))
    return [*lines, _memory(summary, f"{on}: peak memory over the imported libraries", 12.0)]


def _processes(summary: Summary, what: str) -> list[Line]:
    runs = [run for row in summary.rows if row["measure"] == "processes" for run in row["runs"]]
    time = Line(f"{what}, two processes against one with the same threads: share of the ideal", "at least 0.7")
    same = Line(f"{what}, two processes against one, float64: largest difference of a weight", "at most 1e-6")
    one, two = (middle([run["total"] for run in runs if run["processes"] == number]) for number in (1, 2))
    share = over(one, two)
    if share is None:
        return [time, same]
    difference = max(run["difference"] for run in runs)
    return [
        _judged(time.what, time.limit, f"{share:.2f} ({two:.2f} s against {one:.2f} s)", share >= 0.7),
        _judged(same.what, same.limit, f"{difference:.1e}", difference <= 1e-6),
    ]


def ratios(rows: Sequence[Row]) -> list[str]:
    """Return what a run of the command has found, in lines of text: the ratios first, and then medians."""
    lines = [
        f"{line.what}: {line.found} [{line.limit}: {line.verdict.strip('*')}]" for line in targets(rows) if line.found
    ]
    for row in rows:
        where = ", ".join(str(row[name]) for name in ("measure", "of", "request") if name in row)
        medians = (
            f"{name} {middle([run.get(name, 0.0) for run in row['runs']]):.3f} s"
            for name in TIMED
            if name in row["runs"][0]
        )
        lines.append(f"{row['data']['name']}, {where}: {', '.join(medians)}; peak {row['peak_memory_mb']:.0f} MB")
    return lines
