"""Numbers out of rows: which rows, and a mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from rows import Row
from scipy.stats import t

#: Ours, with its defaults.
OURS = "ifru"
#: Yardsticks: they train on what is left from the start.
RETRAINING = ("retraining-free", "retraining-paired")


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values and half the width of its 95% interval (Student's t); no width with a single value."""

    mean: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """Return the estimate from values, or ``None`` without any.

        Example:
            >>> Estimate.of([1.0, 2.0, 3.0, None]).text(2)
            '2.00 ± 2.48'
        """
        found = [value for value in values if value is not None]
        if not found:
            return None
        n = len(found)
        half = float(t.ppf(0.975, n - 1)) * stdev(found) / math.sqrt(n) if n > 1 else None
        return cls(mean(found), half, n)

    def text(self, digits: int = 4, sign: bool = False) -> str:
        """Return ``0.0123 ± 0.0004``.

        Example:
            >>> Estimate(0.01234, 0.0004, 5).text(), Estimate(0.5, None, 1).text(2, sign=True)
            ('0.0123 ± 0.0004', '+0.50')
        """
        value = number(self.mean, digits, sign)
        return value if self.half is None else f"{value} ± {number(self.half, digits)}"


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number for a table, a dash for none."""
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def those(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows of single seeds with these values of ``suite``, ``recipe``, ``deletion``, ``method``."""
    return [
        row for row in rows if row["seed"] is not None and all(row[name] == value for name, value in wanted.items())
    ]


def averaged(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """Return the row that is averaged over the most seeds."""
    found = [row for row in rows if row["seed"] is None and wanted.items() <= row.items()]
    return max(found, key=lambda row: len(row["seeds"]), default=None)


def metric(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric's values: one per row, or where rows hold one per retrained model, one per that, rows averaged.

    The originals that are compared with one retrained model share its noise, so that they count as one.
    """
    values = [row["metrics"].get(name) for row in rows]
    lists = [value for value in values if isinstance(value, list) and value]
    if lists:
        # Rows with fewer retrained models have the first of them.
        return [mean(one[k] for one in lists if k < len(one)) for k in range(max(map(len, lists)))]
    return [value for value in values if value is not None and not isinstance(value, list)]


def difference(rows: Sequence[Row], name: str, reference: str) -> list[float]:
    """Return by how much a metric exceeds a reference's, for each retrained model or each pair.

    Args:
        rows: of one method.
        name: of the metric, as ``auroc.all``.
        reference: ``"free"`` or ``"paired"``.
    """
    if reference == "paired":
        pairs = [(row["metrics"].get(name), row["metrics"].get(f"paired.{name}")) for row in rows]
        return [one - other for one, other in pairs if one is not None and other is not None]
    own = metric(rows, name)
    return [mean(own) - other for other in metric(rows, f"free.{name}")] if own else []


def jackknife(above: Sequence[float], below: float, below_without: Sequence[float]) -> Estimate:
    """Return a mean over a second number, with the interval that leaving out one model after another gives.

    Args:
        above: one value per model.
        below: the second number, of all models.
        below_without: the same without each of them; without these, the estimate has no width.

    Source: Efron, *The Jackknife, the Bootstrap and Other Resampling Plans*, 1982, chapter 3.

    Example:
        >>> jackknife([1.0, 2.0, 3.0], 1.0, [1.0, 1.0, 1.0]).text(2), jackknife([1.0, 3.0], 4.0, []).text(2)
        ('2.00 ± 2.48', '0.50')
    """
    n, total = len(above), sum(above)
    if n < 2 or len(below_without) != n:
        return Estimate(total / n / below, None, n)
    left = [(total - own) / (n - 1) / other for own, other in zip(above, below_without, strict=True)]
    error = math.sqrt((n - 1) / n * sum((one - mean(left)) ** 2 for one in left))
    return Estimate(total / n / below, float(t.ppf(0.975, n - 1)) * error, n)


def speeds(rows: Iterable[Row], mine: Iterable[Row]) -> list[float]:
    """Return the CPU seconds of ``mine`` over those of retraining (free, or else paired) from the same original.

    Wall time would say how busy the machine was: workers run side by side.
    """
    whole: dict[tuple[str, str, int], float] = {}
    rows = list(rows)
    for name in RETRAINING:
        for row in those(rows, method=name):
            whole.setdefault(_original(row), row["seconds"]["cpu"])
    return [row["seconds"]["cpu"] / whole[_original(row)] for row in mine if _original(row) in whole]


def _original(row: Row) -> tuple[str, str, int]:
    return row["recipe"], row["deletion"], row["seed"]


def is_yardstick(method: str) -> bool:
    """Return whether a method is retraining in full, which others are measured by.

    Example:
        >>> is_yardstick("retraining-free"), is_yardstick("finetuning-5")
        (True, False)
    """
    return method.startswith("retraining")


def ordered(values: Iterable[str]) -> list[str]:
    """Return each value once, in the order of its first occurrence."""
    return list(dict.fromkeys(values))
