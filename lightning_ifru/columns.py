"""The columns of a source: what they hold, and which of their entries cannot be what they should."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from lightning_ifru.splits import SPLITS

BoolArray = npt.NDArray[np.bool_]


class Checked(NamedTuple):
    """A column's values, a mask of the bad entries, and what these are called."""

    values: pd.Series[Any]
    bad: BoolArray
    what: str


def ids(column: pd.Series[Any]) -> Checked:
    """Return the ids, with whole floats as integers; missing ones are bad."""
    what = "missing ids"
    if pd.api.types.is_float_dtype(column):
        bad = ~np.isfinite(column.to_numpy(dtype=np.float64, na_value=np.nan))
        whole = not bad.any() and bool(((column == column.round()) & (column.abs() < 2**53)).all())
        return Checked(column.astype(np.int64) if whole else column, bad, what)
    missing: BoolArray = column.isna().to_numpy()
    if not pd.api.types.is_numeric_dtype(column):
        missing = missing | (column == "").to_numpy(dtype=bool, na_value=True)
    return Checked(column, missing, what)


def numbers(column: pd.Series[Any]) -> Checked:
    """Return the numbers, of text too; what is none that a float32 can hold is bad."""
    found = _read(column)
    values = found.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = column.isna().to_numpy() | ~(np.abs(values) <= np.finfo(np.float32).max)
    if found.dtype.kind in "iu" and not bad.any():  # nanoseconds since 1970 are no float64
        values = found.to_numpy(dtype=np.dtype(f"{found.dtype.kind}8"))
    return Checked(pd.Series(values), bad, "values that are not finite numbers")


def times(column: pd.Series[Any]) -> Checked:
    """Return times as numbers, the larger the later: numbers as they are, dates and ISO 8601 text as of UTC.

    What most entries are, all have to be: a date among numbers is bad, and a number among dates.

    Example:
        >>> found = times(pd.Series(["2024-05-01", "2024-05-01T02:00:00+03:00", "7"]))
        >>> bool(found.values[0] > found.values[1]), found.bad.tolist(), found.what
        (True, [False, False, True], 'values that are not ISO 8601 times as the others are')
    """
    dated = pd.api.types.is_datetime64_any_dtype(column)
    numeric = np.zeros(len(column), dtype=bool) if dated else _read(column).notna().to_numpy()
    if numeric.all():
        return numbers(column)
    # Numbers would be taken for nanoseconds since 1970.
    moments = pd.to_datetime(column if dated else column.mask(numeric), format="ISO8601", utc=True, errors="coerce")
    unread: BoolArray = moments.isna().to_numpy()
    if not unread.all() and (~unread).sum() > numeric.sum():
        since = moments.dt.tz_localize(None).to_numpy().astype(np.int64)
        return Checked(pd.Series(since), unread, "values that are not ISO 8601 times as the others are")
    found, bad, what = numbers(column)
    return Checked(found, bad, what if unread.all() else f"{what} as the others are")


def _read(column: pd.Series[Any]) -> pd.Series[Any]:
    """The numbers of a column, of text too, and no number for what is none."""
    if not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_datetime64_any_dtype(column):
        # By an exponent of ten digits pandas (2.3) looks beyond the end of its table of powers, and the process ends.
        joined = "\n".join(value for value in column if isinstance(value, str))
        if _LONG_EXPONENT.search(joined):
            column = column.map(
                lambda value: None if isinstance(value, str) and _LONG_EXPONENT.search(value) else value
            )
    return pd.to_numeric(column, errors="coerce")


_LONG_EXPONENT = re.compile(r"[eE][-+]?\d{5}")


def given_splits(column: pd.Series[Any]) -> Checked:
    """Return the numbers of the splits in :data:`SPLITS`; any other word is bad."""
    codes = column.astype(object).map({name: code for code, name in enumerate(SPLITS)})
    return Checked(codes.fillna(0).astype(np.int8), codes.isna().to_numpy(), f"values other than {', '.join(SPLITS)}")
