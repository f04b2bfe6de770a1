"""Reading interactions: a file, a mapping of columns or a graph becomes one plain table.

Two things are promised. Ids stay what they are in the source: ``"007"`` and ``"NA"`` are ids, only an empty
field is missing. And whatever is wrong with the source is said in one sentence that names the column and the
first line.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch_geometric.data import HeteroData

from lightning_ifru.bounded import FREE_BYTES, MAX_COLUMNS, MAX_RATIO, opened, reason, shown
from lightning_ifru.columns import BoolArray, given_splits, ids, numbers, times
from lightning_ifru.errors import DataError
from lightning_ifru.hetero import edge_columns

Source: TypeAlias = str | Path | Mapping[str, Any] | HeteroData

PARQUET = ".parquet"
COMPRESSIONS = ("", ".gz", ".bz2", ".xz", ".zip", ".zst")


def read_source(
    source: Source,
    *,
    user: str,
    item: str,
    rating: str | None = None,
    timestamp: str | None = None,
    split: str | None = None,
) -> pd.DataFrame:
    """Read interactions into a table of ``user``, ``item`` and, where named, ``rating``, ``timestamp`` and ``split``.

    Args:
        source: Path of a CSV file with a header (UTF-8, possibly compressed) or of a Parquet file or folder; a
            mapping of column name to a list, array, tensor or Series of n values; or a ``HeteroData``, of which the
            edges from users to items are read.
        user: Name of the column of user ids; of a ``HeteroData`` that of the users' node type.
        item: Name of the column of item ids; of a ``HeteroData`` that of the items' node type.
        rating: Name of the column (of a ``HeteroData``: edge attribute) of ratings, if there is one.
        timestamp: Name of the column of times, if there is one: numbers, the larger the later, or dates, or text in
            ISO 8601, as of UTC where it names no zone.
        split: Name of the column of ``train``, ``val`` or ``test``, if there is one; a ``HeteroData`` may have its
            test edges as ``edge_label_index`` instead.

    Returns:
        n rows in the order of the source. Ids from a CSV file are strings; those of a Parquet file or a mapping keep
        their own type, except that floats which are all whole numbers become integers; those of a ``HeteroData`` are
        the positions of nodes. Times are numbers, splits their numbers in ``SPLITS``.

    Raises:
        DataError: If the source cannot be read, lacks a column, has no rows, or holds missing ids or numbers.

    Example:
        >>> read_source({"who": [7, 8], "what": ["a", "b"]}, user="who", item="what")
           user item
        0     7    a
        1     8    b
    """
    wanted = {"user": user, "item": item, "rating": rating, "timestamp": timestamp, "split": split}
    columns = {role: name for role, name in wanted.items() if name is not None}
    if len(set(columns.values())) < len(columns):
        raise DataError(f"one column was named for two roles ({columns}); name a different column for each.")
    origin, place, raw = _read(source, columns)
    _require(columns, raw.columns, origin)
    if raw.empty:
        raise DataError(f"{origin} has columns but no interactions; at least one row is needed.")
    table = {}
    for role, name in columns.items():
        values, bad, what = _CHECKS[role](raw[name])
        if bad.any():
            raise DataError(
                f"{origin}: column {name!r} ({role}) has {int(bad.sum())} {what}, the first in "
                f"{place} {raw.index[int(bad.argmax())]}; correct or delete these rows."
            )
        table[role] = values.reset_index(drop=True)
    return pd.DataFrame(table)


_CHECKS = {"user": ids, "item": ids, "rating": numbers, "timestamp": times, "split": given_splits}


def _read(source: Source, columns: dict[str, str]) -> tuple[str, str, pd.DataFrame]:
    """What to call the source and a row of it, and its columns as they are."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix.lower() == PARQUET:
            return repr(path.name), "row", read_parquet_table(path)
        return repr(path.name), "line", read_text_table(path)
    if isinstance(source, HeteroData):
        return "the HeteroData", "edge", _read_mapping(edge_columns(source, columns), columns)
    if isinstance(source, (Mapping, pd.DataFrame)):
        return "the mapping", "row", _read_mapping(source, columns)
    raise DataError(
        f"the source is a {type(source).__name__}; pass the path of a CSV or Parquet file, a mapping of columns, or a "
        "HeteroData."
    )


def read_parquet_table(path: str | Path, most: int | None = None) -> pd.DataFrame:
    """Read a Parquet file, or a folder of such, with the types that it has, indexed by the row from 0 on.

    Args:
        path: of the file or folder.
        most: bytes that its values may take in memory; by default what :data:`~.bounded.FREE_BYTES` and
            :data:`~.bounded.MAX_RATIO` allow.

    Raises:
        DataError: If pyarrow is not installed, or the file is missing, cannot be read or is out of all proportion.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}; give the path of an existing Parquet file.")
    try:
        import_module("pyarrow")
    except ImportError as error:
        raise DataError(
            f"{path.name!r} cannot be read without pyarrow; install it: pip install 'lightning-ifru[parquet]'."
        ) from error
    with _refusing(path.name, "Parquet"):
        _check_parquet(path, most)
        # Nullable types: whole numbers beside blanks would otherwise become floats, and long ids others.
        table = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
        # An index that pandas has written is a column to everybody else.
        return table.reset_index([name for name in table.index.names if name is not None]).reset_index(drop=True)


def read_text_table(path: str | Path, most: int | None = None) -> pd.DataFrame:
    """Read a CSV file as text, exactly as it stands, indexed by the line of the file (the header is line 1).

    Args:
        path: of the file.
        most: bytes that it may hold, unpacked; by default what :func:`~.bounded.opened` allows.

    Raises:
        DataError: If the file is missing, empty, of an unsupported kind, not a CSV table in UTF-8, or out of all
            proportion.
    """
    path = Path(path)
    name = path.name
    if not name.lower().endswith(tuple(f".csv{suffix}" for suffix in COMPRESSIONS)):
        kinds = ", ".join([*(f".csv{suffix}" for suffix in COMPRESSIONS), PARQUET])
        raise DataError(f"cannot read {name!r}: this kind of file is not supported; supported are {kinds}.")
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}; give the path of an existing CSV file.")
    options: dict[str, Any] = {"dtype": str, "na_filter": False, "encoding": "utf-8"}
    with _refusing(name, "CSV"):
        # The header is read on its own because pandas renames a column that occurs twice, and the row below it because
        # pandas takes what it has too much for an index, of however many levels.
        with opened(path, most, lines=True) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            first = list(islice((row for row in csv.reader(text) if row), 2))
        if not first:
            raise DataError(f"{name!r} is empty; a header and at least one row are needed.")
        if max(map(len, first)) > MAX_COLUMNS:
            raise DataError(
                f"{name!r} has {max(map(len, first)):,} columns; wanted at most {MAX_COLUMNS:,}: keep those of users, "
                "items, ratings and times."
            )
        with opened(path, most, lines=True) as stream:
            table: pd.DataFrame = pd.read_csv(stream, skip_blank_lines=False, **options)
        repeated = sorted(column for column, count in Counter(first[0]).items() if count > 1)
        if repeated:
            raise DataError(
                f"{name!r} has the column {shown(repeated[0])} more than once; rename or delete one of them."
            )
        if not isinstance(table.index, pd.RangeIndex):
            raise DataError(f"{name!r} has more fields in its rows than in its header; give every column a name.")
        blank = _blank_lines(table, path, most, options)
    table.index = pd.RangeIndex(2, len(table) + 2)
    return table if blank is None else table.loc[~blank]


@contextmanager
def _refusing(name: str, kind: str) -> Iterator[None]:
    """Refuse in one sentence a file at which a library fails."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{name!r} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except Exception as error:  # in a damaged file libraries meet whatever it may be: no list of errors holds it all
        raise DataError(f"{name!r} cannot be read as {kind} ({reason(error)}); check the file.") from error


def _check_parquet(path: Path, most: int | None) -> None:
    """Refuse, by what it says of itself, a file of which a few bytes stand for more rows than memory can hold."""
    read_metadata = import_module("pyarrow.parquet").read_metadata
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        if file.name.startswith(("_", ".")):  # notes of other programs, which are no part of the table
            continue
        said = read_metadata(file)
        if said.num_columns > MAX_COLUMNS:
            raise DataError(
                f"{file.name!r} has {said.num_columns:,} columns; wanted at most {MAX_COLUMNS:,}: keep those of users, "
                "items, ratings and times."
            )
        groups = [said.row_group(number) for number in range(said.num_row_groups)]
        values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
        size = max(8 * values, sum(group.total_byte_size for group in groups))
        allowed = FREE_BYTES + MAX_RATIO * file.stat().st_size if most is None else most
        if size > allowed:
            raise DataError(
                f"{file.name!r} holds {values:,} values and so more than {allowed:,} bytes"
                + (f", {MAX_RATIO} times its size; write it as CSV if you trust it." if most is None else "; split it.")
            )


def _blank_lines(table: pd.DataFrame, path: Path, most: int | None, options: dict[str, Any]) -> BoolArray | None:
    """Which rows are blank lines (skipped), as opposed to rows whose fields are all empty (an error)."""
    blank = np.ones(len(table), dtype=bool)
    for column in table.columns:
        blank &= (table[column] == "").to_numpy()
        if not blank.any():
            return None
    # pandas tells the two apart only by skipping the former, so the rows are counted once more.
    with opened(path, most, lines=True) as stream:
        skipped = len(table) - len(pd.read_csv(stream, usecols=[0], **options))
    return blank if skipped == int(blank.sum()) else None


def _read_mapping(source: Mapping[str, Any] | pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    _require(columns, source.keys(), "the mapping")
    series = {name: _series(source[name], name) for name in columns.values()}
    lengths = {name: len(column) for name, column in series.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the columns have different lengths ({lengths}); give one value per interaction in each.")
    return pd.DataFrame(series)


def _series(values: Any, name: str) -> pd.Series[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, pd.Series):
        return values.reset_index(drop=True)
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise DataError(f"column {name!r} has the shape {values.shape}; it must have one dimension.")
    if not isinstance(values, (list, tuple, range, np.ndarray, pd.api.extensions.ExtensionArray)):
        raise DataError(f"column {name!r} is a {type(values).__name__}; pass a list, an array, a tensor or a Series.")
    return pd.Series(values)


def _require(columns: dict[str, str], present: Iterable[Any], origin: str) -> None:
    present = list(present)
    for role, name in columns.items():
        if name not in present:
            names = ", ".join(shown(column) for column in present[:20])
            names += f" and {len(present) - 20:,} more" if len(present) > 20 else ""
            remedy = "add it." if role == "split" else f"name the right one with {role}=..."
            raise DataError(f"{origin} has no column {name!r} (its columns: {names}); {remedy}")
