"""Files as a scan reads them: tables, JSON, YAML, pages, text, and bytes where nothing else is known of them."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import html
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import yaml

from lightning_ifru.bounded import MAX_LINE
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
        >>> import io
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
        except Exception as error:  # a damaged file can raise anything
            said = str(error).strip().partition("\n")[0][:200]
            yield Unread(f"not read as {suffix[1:]} ({type(error).__name__}: {said}), but as text or bytes")
        file.seek(0)
    try:
        for hit in _in_blocks(file, needles, page=suffix in (".html", ".htm")):
            left = Found({number: count for number, count in hit.found.items() if number not in told})
            if left:
                yield Hit(hit.where, left)
    except Exception as error:  # what is packed can be damaged as well
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
    lines = _lines(file)
    header = next(lines, "")
    separator = max(",;\t|", key=header.count)
    names = next(csv.reader([header], delimiter=separator), [])
    whose = {name: needles.kind_of(name) for name in names if needles.kind_of(name)}
    if not whose:
        return
    places = {name: names.index(name) for name in whose}
    rows = (row + [""] * (len(names) - len(row)) for row in csv.reader(lines, delimiter=separator))

    def parts() -> Iterator[dict[str, list[str]]]:
        while some := list(islice(rows, 1 << 16)):
            yield {name: [row[place] for row in some] for name, place in places.items()}

    yield from _in_columns(parts(), whose, needles)


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a text, none of which takes all memory."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE or b"\0" in line:
            raise ValueError(f"a line has more than {MAX_LINE} bytes, or NUL bytes")
        yield line.decode("utf-8-sig", errors="replace")


def _in_columns(parts: Iterator[dict[str, list[str]]], whose: dict[str, Any], needles: Needles) -> Iterator[Hit]:
    """Look at columns of ids, and at pairs of them in one row, some rows at a time."""
    looks: dict[str, Callable[[dict[str, list[str]]], Found]] = {
        f"column {name!r}": lambda texts, name=name, kind=kind: needles.in_column(kind, texts[name])  # type: ignore[misc]
        for name, kind in whose.items()
    }
    user, item = (next((name for name, kind in whose.items() if kind == side), None) for side in ("user", "item"))
    if user is not None and item is not None:
        looks[f"columns {user!r} and {item!r}"] = lambda texts: needles.in_pairs(texts[user], texts[item])
    found: dict[str, Found] = {}
    first: dict[str, int] = {}
    done = 0
    for texts in parts:
        rows = len(next(iter(texts.values())))
        for where, look in looks.items():
            here = look(texts)
            if here and where not in first:
                alone = ({name: [column[row]] for name, column in texts.items()} for row in range(rows))
                first[where] = done + next(row for row, one in enumerate(alone, start=1) if look(one))
            found.setdefault(where, Found()).update(here)
        done += rows
    yield from (Hit(f"{where}, from row {row} on", found[where]) for where, row in first.items())


def _in_parquet(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    try:
        from pyarrow import parquet, types  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("pyarrow is not installed") from error
    table = parquet.ParquetFile(file)
    whose = {name: needles.kind_of(name) for name in table.schema_arrow.names if needles.kind_of(name)}

    def parts() -> Iterator[dict[str, list[str]]]:
        for part in table.iter_batches(columns=list(whose)):
            yield {name: ["" if v is None else id_text(v) for v in part.column(name).to_pylist()] for name in whose}

    if whose:
        yield from _in_columns(parts(), whose, needles)
    for field in table.schema_arrow:  # packed, so that the bytes show nothing
        found = Found()
        if field.name not in whose and not types.is_floating(field.type):
            for part in table.iter_batches(columns=[field.name]):
                for hit in look_through({field.name: part.column(0).to_pylist()}, needles):
                    found.update(hit.found)
        if found:
            yield Hit(f"column {field.name!r}", found)


def _in_json(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    yield from look_through(json.loads(_whole(file)), needles)


def _in_json_lines(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    found: dict[str, Found] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(iter(lambda: file.readline(MOST_PARSED), b""), start=1):
        for hit in look_through(json.loads(line), needles) if line.strip() else ():
            found.setdefault(hit.where, Found()).update(hit.found)
            first.setdefault(hit.where, number)
    yield from (Hit(f"{where}, from line {first[where]} on", each) for where, each in found.items())


def _in_yaml(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    for part in yaml.load_all(_whole(file), _Plain):
        yield from look_through(part, needles)


def _in_arrays(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > MOST_PARSED:
                raise ValueError(f"it holds more than {MOST_PARSED >> 20} MiB")
    file.seek(0)
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
