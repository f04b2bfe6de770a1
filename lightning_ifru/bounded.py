"""Files from others, opened so that whatever is in them takes neither all memory nor all time.

What a bound is for stands beside it. Each is far beyond what honest files need, and the sentence that refuses names it
and says what to do.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_ifru.errors import DataError

#: Bytes of a request, unpacked: some five million interactions. More of them would be asked for in several.
MAX_REQUEST = 128 << 20
#: Packed data may unpack to this, and to this many times their size: logs of interactions pack 3- to 30-fold, the
#: files that are made to fill a machine's memory 1,000-fold and more.
FREE_BYTES, MAX_RATIO = 64 << 20, 200
#: Bytes of a line of a table; what goes on for longer is none.
MAX_LINE = 1 << 20
#: Columns of a table, of which at most five are read: a million would take minutes to tell apart.
MAX_COLUMNS = 10_000
#: Levels of a request in JSON: the object, its lists, and the pairs in one of them.
MAX_DEPTH = 3
#: Characters of an id: five times what browsers take as an address, which is the longest id seen in use.
MAX_ID = 10_000
#: Digits of a whole number: as many as Python itself, since 3.11, takes from a text before it refuses.
MAX_DIGITS = 4_300

_CHUNK = 1 << 18


@contextmanager
def opened(path: Path, most: int | None = None, *, lines: bool = False) -> Iterator[io.BufferedReader[Any]]:
    """Open a file, unpacked if its name says that it is packed, and refuse in mid-stream what it must not hold.

    Args:
        path: of the file; ``.gz``, ``.bz2``, ``.xz``, ``.zip`` (of one file) and ``.zst`` (with the package zstandard)
            are unpacked.
        most: bytes it may hold; by default as many as it has if it is not packed, and what :data:`FREE_BYTES` and
            :data:`MAX_RATIO` allow if it is.
        lines: whether it is a table of lines, none of which is longer than :data:`MAX_LINE`.

    Raises:
        DataError: it holds more, a longer line, or a NUL byte, which no text does.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.csv.gz")
        >>> _ = path.write_bytes(gzip.compress(b"user,item"))
        >>> with opened(path) as stream:
        ...     stream.read()
        b'user,item'
        >>> with opened(path, most=8) as stream:
        ...     stream.read()
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: 'a.csv.gz' holds more than 8 bytes, ...
    """
    unpack = _UNPACKING.get(path.suffix.lower())
    remedy = "split it into several"
    if most is None and unpack is not None:
        most = FREE_BYTES + MAX_RATIO * path.stat().st_size
        remedy = f"which is more than {MAX_RATIO} times its size; unpack it if you trust it, and give the unpacked file"
    stream = path.open("rb", buffering=0) if unpack is None else unpack(path)
    with stream, io.BufferedReader(_Bounded(stream, path.name, most, remedy, lines), _CHUNK) as reader:
        yield reader


class _Bounded(io.RawIOBase):
    """Passes bytes on, as long as there are not too many of them and they can be text."""

    def __init__(self, stream: io.RawIOBase, name: str, most: int | None, remedy: str, lines: bool) -> None:
        self._stream, self._name, self._most, self._remedy, self._lines = stream, name, most, remedy, lines
        self._passed = self._line = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer) or 0
        self._passed += count
        if self._most is not None and self._passed > self._most:
            raise DataError(f"{self._name!r} holds more than {self._most:,} bytes, {self._remedy}.")
        some = bytes(buffer[:count])
        if b"\0" in some:
            raise DataError(f"{self._name!r} holds a NUL byte and so is no UTF-8 text; save it as UTF-8.")
        if self._lines:
            end = max(some.rfind(b"\n"), some.rfind(b"\r"))
            self._line = count - end - 1 if end >= 0 else self._line + count
            if self._line > MAX_LINE:
                raise DataError(
                    f"{self._name!r} has a line of more than {MAX_LINE:,} bytes, which no table of interactions has; "
                    "write each interaction on a line of its own."
                )
        return count


def _unzipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        if len(files) != 1:
            raise DataError(f"{path.name!r} holds {len(files)} files; pack one alone.")
        return archive.open(files[0])


def _unzstd(path: Path) -> Any:
    try:
        zstandard = import_module("zstandard")
    except ImportError as error:
        raise DataError(
            f"{path.name!r} cannot be read without zstandard; install it (pip install zstandard) or unpack the file."
        ) from error
    return zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)


_UNPACKING: dict[str, Any] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _unzipped,
    ".zst": _unzstd,
}


def check_depth(text: str) -> None:
    r"""Refuse JSON that is nested deeper than :data:`MAX_DEPTH`, before it is parsed; linear in its length.

    Raises:
        DataError: it is.

    Example:
        >>> check_depth('{"users": ["[[[[", "\\"[["]}')
        >>> check_depth('{"users": [[[1]]]}')
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: it is nested 4 levels deep; ...
    """
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", _ESCAPED.sub("", text))):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise DataError(
                f"it is nested {depth} levels deep; wanted at most {MAX_DEPTH}: an object, lists in it, and pairs of "
                "ids in these."
            )


def id_flaw(text: str) -> str | None:
    r"""Return what makes a text unfit for an id, if anything: its length, or characters that no file can hold.

    Example:
        >>> id_flaw("42"), id_flaw("x" * 10_001), id_flaw("\ud800")
        (None, 'is longer than 10,000 characters', 'has half of a surrogate pair, which is no character')
    """
    if len(text) > MAX_ID:
        return f"is longer than {MAX_ID:,} characters"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "has half of a surrogate pair, which is no character"
    return None


def shown(value: Any, most: int = 80) -> str:
    """Return a value as a sentence can show it: its ``repr``, cut where it is too long.

    Example:
        >>> shown("42"), shown("x" * 1000, 8)
        ("'42'", "'xxxxxxx...")
    """
    text = repr(value[:most] if isinstance(value, (str, bytes)) and len(value) > most else value)
    return text if len(text) <= most else f"{text[:most]}..."


def reason(error: BaseException) -> str:
    r"""Return the first line of what a library says, which may quote the file, as one short printable line.

    Example:
        >>> reason(ValueError("no such\x1b[31m thing\nat all")), reason(KeyError())
        ('no such [31m thing', 'KeyError')
    """
    return printable(str(error).strip().partition("\n")[0][:200]).strip() or type(error).__name__


def printable(text: str) -> str:
    r"""Return a text with a blank for each character that moves, colours or commands a terminal.

    Example:
        >>> printable("a\x1b[31mb\nc")
        'a [31mb c'
    """
    return "".join(character if character.isprintable() else " " for character in text)


_ESCAPED, _STRING, _BRACKET = re.compile(r"\\.", re.DOTALL), re.compile(r'"[^"]*"'), re.compile(r"[\[\]{}]")
