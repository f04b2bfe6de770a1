"""Files as a scan reads them: tables, JSON, YAML, pages, text, and bytes where nothing else is known of them."""

from __future__ import annotations

import codecs
import csv
import html
import json
import zipfile
from collections.abc import Callable, Iterator, Set
from itertools import islice
from pathlib import PurePath
from typing import Any, BinaryIO, cast

import numpy as np
import yaml

from lightning_ifru.bounded import MAX_LINE
from lightning_ifru.ids import id_text
from lightning_ifru.needles import Found, Needles
from lightning_ifru.scan_packed import MOST_UNPACKED, Part, Unread, parts
from lightning_ifru.scan_values import Hit, look_through

#: Bytes looked at at a time, and the most of arrays, of JSON and of YAML that is parsed as a whole: values take up to
#: fifty times the memory of their text, and YAML five times the time of JSON.
BLOCK, MOST_ARRAYS, MOST_JSON, MOST_YAML = 1 << 22, 1 << 27, 1 << 22, 1 << 20
#: Levels of YAML.
MOST_LEVELS = 200


def look_into(name: str, file: BinaryIO, needles: Needles) -> Iterator[Hit | Unread]:
    r"""Yield where in a file the ids stand, and what could not be looked into as it should.

    Args:
        name: what the file is called, by which its kind is known where its first bytes do not tell.
        file: its content, packed or not.
        needles: the ids.

    Example:
        >>> import io
        >>> from lightning_ifru.request import UnlearningRequest
        >>> needles = Needles(UnlearningRequest(users=[7]))
        >>> metrics, ratings = b"step,loss\n7,0.5\n", b"user,item\n5,a\n7,b\n"
        >>> [[*look_into("a.csv", io.BytesIO(file), needles)] for file in (metrics, ratings)]
        [[], [Hit(where="column 'user', from row 2 on", found=Counter({0: 1}))]]
    """
    told: set[int] = set()
    unread: dict[str, list[str]] = {}
    for part in parts(name, file):
        shown = part.inside
        if shown and (named := needles.in_bytes(shown.encode(errors="replace"), text=True)):
            shown = "…"
            told |= named.keys()
            yield Hit("names of packed files", named)
        if isinstance(part, Unread):
            unread.setdefault(part.reason, []).append(shown)
            continue
        # The bytes of an archive are those of its files again, where it does not press them.
        for hit in _look_at(part, needles, told if part.packed else set()):
            if isinstance(hit, Hit):
                told |= hit.found.keys()
                yield Hit(f"{shown}: {hit.where}".removeprefix(": "), hit.found)
            else:
                unread.setdefault(hit.reason, []).append(shown)
    for reason, places in unread.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield Unread(f"{places[0]}{more}: {reason}".removeprefix(": "))


def _look_at(part: Part, needles: Needles, told: Set[int]) -> Iterator[Hit | Unread]:
    """Look at a file that is not packed, for all but what is told already."""
    file, suffix, told = part.content, PurePath(part.name).suffix.lower(), set(told)
    try:
        head = file.read(8192)
        file.seek(0)
        if encoding := _encoding(head):
            file = cast(BinaryIO, codecs.EncodedFile(file, "utf-8", encoding, errors="replace"))
            head = file.read(8192)
            file.seek(0)
        look, understood, not_read = _look_for(suffix, head), False, ""
        for guess in [look] if look is not None else _guesses(head) if not part.packed else []:
            file.seek(0)
            try:
                for hit in guess(file, needles):
                    told |= hit.found.keys()
                    yield hit
                understood = True
                break
            except Exception as error:  # a damaged file can raise anything
                if look is not None or isinstance(error, _TooMuchError):
                    said = str(error).strip().partition("\n")[0][:200]
                    kind = suffix[1:] or "what it begins as"
                    said = said if isinstance(error, _TooMuchError) else f"{type(error).__name__}: {said}"
                    not_read = f"not read as {kind} ({said}), but as text or bytes"
        if not_read and not understood:
            yield Unread(not_read)
            understood = True  # or that it was not is said
        file.seek(0)
        binary = False
        for hit in _in_blocks(file, needles, page=suffix in (".html", ".htm")):
            binary |= hit.where == _BYTES
            left = Found({number: count for number, count in hit.found.items() if number not in told})
            if left:
                yield Hit(hit.where, left)
        if binary and not (understood or part.packed or "tfevents" in part.name):
            yield Unread("of no kind that is read here, so only searched byte by byte")
    except Exception as error:  # what is packed can be damaged as well
        yield Unread(f"not read to its end ({' '.join(str(error).split())[:200]})")


def _encoding(head: bytes) -> str:
    """How a text with two or four bytes a character is written: its first ones say so, or every other is zero."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = len(head) // 2
    if most < 4 or max(even, odd) < 0.4 * most or min(even, odd) > 0.05 * most:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _look_for(suffix: str, head: bytes) -> Callable[[BinaryIO, Needles], Iterator[Hit]] | None:
    for magic, look in ((b"PAR1", _in_parquet), (b"\x93NUMPY", _in_arrays)):
        if head.startswith(magic):
            return look
    return _LOOKS.get(suffix)


def _guesses(head: bytes) -> list[Callable[[BinaryIO, Needles], Iterator[Hit]]]:
    """What a text may be whose name does not say it."""
    if _is_binary(head):
        return []
    return [_in_json, _in_json_lines] if head.lstrip()[:1] in (b"{", b"[") else [_in_table]


def _is_binary(data: bytes) -> bool:
    """Whether bytes are no text: a zero, or more than one in a hundred that moves nothing on any terminal."""
    return b"\0" in data or len(data) - len(data.translate(None, _CONTROL)) > 0.01 * len(data)


def _in_blocks(file: BinaryIO, needles: Needles, *, page: bool) -> Iterator[Hit]:
    """Look at all bytes, some whole lines at a time; the last says that it is no text, if so."""
    head = file.read(8192)
    file.seek(0)
    text, line, first = b"\0" not in head, 1, 0
    binary = _is_binary(head)
    found: Found = Found()
    for block in _blocks(file, needles.longest):
        shown = html.unescape(block.decode(errors="replace")).encode(errors="replace") if page else block
        here, at = needles.in_lines(shown, text=text)
        first = line + at if here and not found else first
        found.update(here)
        line += block.count(b"\n")
        binary |= _is_binary(block)
    if found or binary:
        yield Hit(_BYTES if binary else f"text, from line {first} on", found)


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
    header = next((line for line in lines if not line.startswith("#")), "")
    separator = max(",;\t|", key=header.count)
    names = next(csv.reader([header], delimiter=separator), [])
    padded = any(name != name.strip() for name in names)
    if padded:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator, skipinitialspace=True))]
    whose = {name: needles.kind_of(name) for name in names if needles.kind_of(name)}
    if not whose:
        return
    places = {name: names.index(name) for name in whose}
    table = csv.reader(lines, delimiter=separator, skipinitialspace=padded)
    rows = (row + [""] * (len(names) - len(row)) for row in table)

    def parts() -> Iterator[dict[str, list[str]]]:
        while some := list(islice(rows, 1 << 16)):
            columns = {name: [row[place] for row in some] for name, place in places.items()}
            yield {name: [text.strip() for text in texts] if padded else texts for name, texts in columns.items()}

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
    yield from look_through(json.loads(_whole(file, MOST_JSON)), needles)


def _in_json_lines(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    found: dict[str, Found] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(iter(lambda: file.readline(MOST_JSON + 1), b""), start=1):
        if len(line) > MOST_JSON:
            raise _TooMuchError(f"a line has more than {MOST_JSON >> 20} MiB")
        for hit in look_through(json.loads(line), needles) if line.strip() else ():
            found.setdefault(hit.where, Found()).update(hit.found)
            first.setdefault(hit.where, number)
    yield from (Hit(f"{where}, from line {first[where]} on", each) for where, each in found.items())


def _in_yaml(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    for part in yaml.load_all(_whole(file, MOST_YAML), _Plain):
        yield from look_through(part, needles)


def _in_arrays(file: BinaryIO, needles: Needles) -> Iterator[Hit]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if sum(part.file_size for part in archive.infolist()) > MOST_ARRAYS:
                raise ValueError(f"it holds more than {MOST_ARRAYS >> 20} MiB")
    file.seek(0)
    loaded = np.load(file, allow_pickle=False)
    yield from look_through(dict(loaded) if hasattr(loaded, "files") else {"array": loaded}, needles)


def _whole(file: BinaryIO, most: int) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise _TooMuchError(f"it has more than {most >> 20} MiB")
    return content


class _TooMuchError(ValueError):
    """A file is larger than what is parsed."""


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads plain values; those that name a class are read as what they are made of, and nothing is made."""

    levels = 0

    def descend_resolver(self, *_: Any) -> None:
        """Refuse what is nested so deep that the parser, which is no Python, would end the process."""
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise _TooMuchError(f"it is nested deeper than {MOST_LEVELS} levels")

    def ascend_resolver(self) -> None:
        """Count one level less."""
        self.levels -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave what is merged where it stands: merged into one another, few lines are any number of values."""


def _unmade(loader: Any, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


_Plain.add_multi_constructor("tag:yaml.org,2002:python/", _unmade)
_Plain.add_multi_constructor("!", _unmade)
for _tag in ("merge", "value"):
    _Plain.add_constructor(f"tag:yaml.org,2002:{_tag}", _Plain.construct_yaml_str)

_BYTES = "bytes"
_CONTROL = bytes(set(range(32)) - set(b"\a\b\t\n\v\f\r\x1b"))
_MARKS = {  # the longer ones first, for the shorter are in them
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LOOKS: dict[str, Callable[[BinaryIO, Needles], Iterator[Hit]]] = {
    **dict.fromkeys((".csv", ".tsv"), _in_table),
    ".parquet": _in_parquet,
    ".json": _in_json,
    **dict.fromkeys((".jsonl", ".ndjson"), _in_json_lines),
    **dict.fromkeys((".yaml", ".yml"), _in_yaml),
    **dict.fromkeys((".npy", ".npz"), _in_arrays),
}
