"""Packed files and archives as a scan opens them: known by their first bytes, whatever they are called, and bounded."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, cast

#: The most that a file is unpacked to, in all; files in it; how often one may be packed in another; and what of one is
#: kept in memory.
MOST_UNPACKED, MOST_FILES, MOST_LEVELS, _IN_MEMORY = 1 << 32, 10_000, 4, 1 << 24


class Unread(NamedTuple):
    """What of a file was not looked into as it should be, and in which file inside of it."""

    reason: str
    inside: str = ""


class Part(NamedTuple):
    """A file that is not packed, or no longer.

    Attributes:
        name: what it is called, by which its kind is known.
        content: from its beginning.
        inside: the path in the archives around it.
        packed: whether it is an archive, of which only bytes between its files are still to be looked at.
    """

    name: str
    content: BinaryIO
    inside: str = ""
    packed: bool = False


def parts(name: str, file: BinaryIO) -> Iterator[Part | Unread]:
    """Yield what is packed in a file, or the file itself, and what could not be unpacked.

    Args:
        name: of the file.
        file: its content, that can be read again.

    Example:
        >>> archive = io.BytesIO()
        >>> with zipfile.ZipFile(archive, "w") as members:
        ...     members.writestr("ratings.csv.gz", gzip.compress(b"user,item"))
        >>> [(part.name, part.inside, part.packed) for part in parts("data", archive)]
        [('ratings.csv', 'ratings.csv.gz', False), ('data', '', True)]
    """
    yield from _parts(Part(name, file), _Bounds(), MOST_LEVELS)


class _Bounds:
    """What may still be unpacked."""

    def __init__(self) -> None:
        self.bytes, self.files = MOST_UNPACKED, MOST_FILES

    def copied(self, stream: Any) -> BinaryIO:
        """Return what a stream holds as a file that can be read again."""
        self.files -= 1
        if self.files < 0:
            raise _TooMuchError(f"more than {MOST_FILES:,} files are packed in it")
        copy: Any = io.BytesIO()
        while block := stream.read(1 << 20):
            self.bytes -= len(block)
            if self.bytes < 0:
                raise _TooMuchError(f"more than {MOST_UNPACKED >> 30} GiB are packed in it")
            if isinstance(copy, io.BytesIO) and copy.tell() > _IN_MEMORY:
                kept, copy = copy, tempfile.TemporaryFile()  # noqa: SIM115
                copy.write(kept.getbuffer())
            copy.write(block)
        copy.seek(0)
        return cast(BinaryIO, copy)


class _TooMuchError(Exception):
    """A bound is reached, so that nothing more is unpacked."""


def _parts(part: Part, bounds: _Bounds, levels: int) -> Iterator[Part | Unread]:
    name, file, inside, _ = part
    how = _packing(name, file)
    if not how:
        yield part
        return
    try:
        if not levels:
            raise ValueError(f"it is packed more than {MOST_LEVELS} times")
        if how in _STREAMS:
            stream = _STREAMS[how](file)
            stream = bounds.copied(stream) if how == "zstd" else stream  # which cannot be read again
            stripped = PurePath(name).stem if PurePath(name).suffix.lower() in _SUFFIXES else name
            yield from _parts(Part(stripped, stream, inside), bounds, levels - 1)
            return
        for path, read in _MEMBERS[how](file):
            below = f"{inside}/{path}".lstrip("/")
            try:
                member = Part(PurePath(path).name, bounds.copied(read()), below)
                yield from _parts(member, bounds, levels - 1)
            except _TooMuchError:
                raise
            except Exception as error:  # what is packed can be damaged, or locked by a password
                yield Unread(f"not unpacked ({_said(error)})", below)
    except Exception as error:  # a damaged file can raise anything
        yield Unread(f"not unpacked as {how} ({_said(error)})", inside)
    file.seek(0)
    yield part._replace(packed=True)


def _packing(name: str, file: BinaryIO) -> str:
    """How a file is packed, by its first bytes; torch's and numpy's own archives are read as what they are."""
    try:
        file.seek(0)
        head = file.read(512)
        file.seek(0)
    except Exception:  # what is around it is damaged, which shows again when it is read
        return ""
    for magic, how in _MAGIC.items():
        if head.startswith(magic):
            return "" if how == "zip" and PurePath(name).suffix.lower() == ".npz" else how
    return "tar" if head[257:262] == b"ustar" or (head and name.lower().endswith(".tar")) else ""


def _in_zip(file: BinaryIO) -> Iterator[tuple[str, Callable[[], Any]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.open(member)  # type: ignore[misc]


def _in_tar(file: BinaryIO) -> Iterator[tuple[str, Callable[[], Any]]]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isreg():
                yield member.name, lambda member=member: archive.extractfile(member)  # type: ignore[misc]


def _unzstd(file: BinaryIO) -> Any:
    try:
        zstandard = import_module("zstandard")
    except ImportError as error:
        raise ValueError("zstandard is not installed") from error
    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
    b"PK\5\6": "zip",
}
_STREAMS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
    "zstd": _unzstd,
}
_MEMBERS = {"zip": _in_zip, "tar": _in_tar}
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
