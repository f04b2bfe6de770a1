"""Files as a scan reads them: tables, JSON, YAML, pages, text, and bytes where nothing else is known of them."""

from __future__ import annotations

import bz2
import codecs
import gzip
import html
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import yaml

from lightning_ifru.ids import id_text
from lightning_ifru.needles import Found, Needles
from lightning_ifru.scan_values import Hit, look_through

#: Bytes looked at at a time, and the most that a file is unpacked to, or parsed as a whole.
BLOCK, MOST_UNPACKED, MOST_PARSED = 1 << 22, 1 << 32, 1 << 27

_UNPACKERS: dict[str, Callable[[BinaryIO], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Unread(NamedTuple):
    """What of a file was not looked into as it should be."""

    reason: str


def unpacked(name: str, file: BinaryIO) -> tuple[str, BinaryIO]:
    """Return the name and the content of what a compressed file holds; of any other its own.

    Args:
        name: of the file.
        file: at its beginning.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in _UNPACKERS:
        return name, file
    return name[: -len(suffix)], _UNPACKERS[suffix](file)


def look_into(name: str, file: BinaryIO, needles: Needles) -> Iterator[Hit | Unread]:
    r"""Yield where in a file the ids stand, and what could not be looked into as it should.

    Args:
        name: what the file is called, by which its kind is known.
        file: its content, unpacked.
        needles: the ids.

    Example:
        >>> from lightning_ifru.request import UnlearningRequest
        >>> needles = Needles(UnlearningRequest(users=[7]))
        >>> metrics, ratings = b"step,loss\n7,0.5\n", b"user,item\n5,a\n7,b\n"
        >>> [[*look_into("a.csv", io.BytesIO(file), needles)] for file in (metrics, ratings)]
        [[], [Hit(where="column 'user', from row 2 on", found=Counter({0: 1}))]]
    """
    suffix = PurePath(name).suffix.lower()
    told: set[int] = set()
    look = _LOOKS.get(suffix)
    if look is not None:
        try:
            for hit in look(file, needles):
                told |= hit.found.keys()
                yield hit
        except _FAULTS as error:
            said = str(error).strip().partition("\n")[0][:200]
            yield Unread(f"not read as {suffix[1:]} ({type(error).__name__}: {said}), but as text or bytes")
        file.seek(0)
    try:
        for hit in _in_blocks(file, needles, page=suffix in (".html", ".htm")):
            left = Found({number: count for number, count in hit.found.items() if number not in told})
            if left:
                yield Hit(hit.where, left)
    except _FAULTS as error:
        yield Unread(f"not read to its end ({' '.join(str(error).split())[:200]})")


def _in_blocks(file: BinaryIO, needles: Needles, *, page: bool) -> Iterator[Hit]:
    """Look at all bytes, some whole lines at a time."""
    head = file.read(8192)
    file.seek(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head, file = b"", codecs.EncodedFile(file, "utf-8", "utf-16", errors="replace")
    text, line, first = b"\0" not in head, 1, 0
    found: Found = Found()
    for block in _blocks(file, needles.longest):
        shown = html.unescape(block.decode(errors="replace")).encode(errors="replace") if page else block
        here, at = needles.in_lines(shown, text=text)
        first = line + at if here and not found else first
        found.update(here)
        line += block.count(b"\n")
    if found:
        yield Hit(f"text, from line {first} on" if text else "bytes", found)


def _blocks(file: BinaryIO, longest: int) -> Iterator[bytes]:
    done, rest = 0, b""
    while data := file.read(BLOCK):
        done += len(data)
        if done > MOST_UNPACKED:
            raise ValueError(f"it has more than {MOST_UNPACKED >> 30} GiB")
        block = rest + data
        cut = block.rfind(b"\n") + 1
        if len(block) - cut > BLOCK:  # no lines: what lies across two blocks is in the second
            cut, rest = len(block), block[len(block) - longest + 1 :]
        else:
            rest = block[cut:]
        yield block[:cut]
    yield rest


def _in_table(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    header = file.readline().decode("utf-8-sig")
    file.seek(0)
    separator = max(",;\t|", key=header.count)
    options: dict[str, Any] = {"sep": separator, "dtype": str, "na_filter": False, "encoding": "utf-8-sig"}
    names = pd.read_csv(io.StringIO(header), nrows=0, **options).columns
    whose = {name: needles.kind_of(name) for name in names if needles.kind_of(name)}
    if not whose:
        return
    file.seek(0)
    chunks = pd.read_csv(file, usecols=list(whose), chunksize=1 << 18, on_bad_lines="skip", **options)
    yield from _in_frames(chunks, whose, needles)


def _in_frames(frames: Any, whose: dict[str, Any], needles: Needles) -> Iterator[Hit]:
    """Look at columns of ids, and at pairs of them in one row."""
    found = {f"column {name!r}": Found() for name in whose}
    first: dict[str, int] = {}
    rows = 0
    pair = [next((name for name, kind in whose.items() if kind == wanted), None) for wanted in ("user", "item")]
    for frame in frames:
        texts = {name: [id_text(value) for value in frame[name].tolist()] for name in whose}
        for name, kind in whose.items():
            here = needles.in_column(kind, texts[name])
            if here and f"column {name!r}" not in first:
                one = [bool(needles.in_column(kind, [text])) for text in texts[name]].index(True)
                first[f"column {name!r}"] = rows + one + 1
            found[f"column {name!r}"] += here
        if None not in pair:
            both = f"columns {pair[0]!r} and {pair[1]!r}"
            here = needles.in_pairs(texts[pair[0]], texts[pair[1]])  # type: ignore[index]
            if here:
                first.setdefault(both, rows + 1)
            found[both] = found.get(both, Found()) + here
        rows += len(frame)
    yield from (Hit(f"{where}, from row {first[where]} on", each) for where, each in found.items() if each)


def _in_parquet(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("pyarrow is not installed") from error
    table = parquet.ParquetFile(file)
    whose = {name: needles.kind_of(name) for name in table.schema_arrow.names if needles.kind_of(name)}
    if whose:
        yield from _in_frames((part.to_pandas() for part in table.iter_batches(columns=list(whose))), whose, needles)
    for name in table.schema_arrow.names:  # which may be packed, so that the bytes show nothing
        found = Found()
        for part in table.iter_batches(columns=[name]) if name not in whose else ():
            for _, column in part.to_pandas().items():
                plain = column.tolist() if column.dtype == object else []
                found |= needles.in_values([v for v in plain if isinstance(v, (str, int))], None)
                found |= Found() if plain else needles.in_numbers(column.to_numpy(), None)
        if found:
            yield Hit(f"column {name!r}", found)


def _in_json(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    yield from look_through(json.loads(_whole(file)), needles)


def _in_json_lines(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    found: dict[str, Found] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(file, start=1):
        for hit in look_through(json.loads(line), needles) if line.strip() else ():
            found.setdefault(hit.where, Found()).update(hit.found)
            first.setdefault(hit.where, number)
    yield from (Hit(f"{where}, from line {first[where]} on", each) for where, each in found.items())


def _in_yaml(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    for part in yaml.load_all(_whole(file), _Plain):
        yield from look_through(part, needles)


def _in_arrays(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    loaded = np.load(file, allow_pickle=False)
    yield from look_through(dict(loaded) if hasattr(loaded, "files") else {"array": loaded}, needles)


def _whole(file: BinaryIO) -> bytes:
    content = file.read(MOST_PARSED + 1)
    if len(content) > MOST_PARSED:
        raise ValueError(f"it is larger than {MOST_PARSED >> 20} MiB")
    return content


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads plain values; those that name a class are read as what they are made of, and nothing is made."""


def _unmade(loader: Any, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _unmade)
_Plain.add_multi_constructor("!", _unmade)

_LOOKS: dict[str, Callable[[BinaryIO, Needles], Iterator[Hit]]] = {
    **dict.fromkeys((".csv", ".tsv"), _in_table),
    ".parquet": _in_parquet,
    ".json": _in_json,
    **dict.fromkeys((".jsonl", ".ndjson"), _in_json_lines),
    **dict.fromkeys((".yaml", ".yml"), _in_yaml),
    **dict.fromkeys((".npy", ".npz"), _in_arrays),
}
#: What reading a file can raise: it is not what its name says, or damaged.
_FAULTS = (
    *(ValueError, LookupError, TypeError, OSError, EOFError, RecursionError, MemoryError),
    *(yaml.YAMLError, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
