"""Files that are written whole or not at all, where nobody else writes: refused before the work if they cannot be."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_ifru.errors import DataError

#: In a folder that is unlearned into, empty and for ever: to take it away could let two processes in at once.
LOCK = ".lightning-ifru.lock"
#: The ledger beside the checkpoints of a folder, see :mod:`~lightning_ifru.ledger`.
LEDGER = "ledger.jsonl"
#: Names of hidden folders that a killed unlearning can leave: tempfile's, with eight characters at the end.
UNFINISHED = re.compile(r"\.lightning-ifru-[a-z0-9_]{8}")
#: The same for :func:`replacing`.
UNREPLACED = re.compile(r"\..+\.[0-9A-Za-z]+-[a-z0-9_]{8}")
_UNFINISHED = ".lightning-ifru-"


def check_target(path: Path, overwrite: bool, option: str) -> None:
    """Refuse a path that cannot be written, or that exists already.

    Args:
        path: of the file to write later.
        overwrite: whether it may exist.
        option: what names the path where it was given, for the message.

    Raises:
        DataError: the path is a folder, its folder does not exist or cannot be written to, it exists, or its name is
            that of a ledger or of the lock, whatever may be replaced.

    Example:
        >>> check_target(Path("no-such-folder/a.ckpt"), False, "--output")
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: got --output no-such-folder/a.ckpt, in whose folder nothing can be written; ...
    """
    if path.name.casefold() in (LEDGER, LOCK):
        raise DataError(
            f"got {option} {path}, whose name belongs to the ledger or the lock of that folder; give another name."
        )
    if path.is_dir():
        raise DataError(f"got {option} {path}, which is a folder; give the path of a file in it.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise DataError(
            f"got {option} {path}, in whose folder nothing can be written; make the folder, or give another path."
        )
    if path.exists() and not overwrite:
        raise DataError(f"got {option} {path}, which exists; give another path, or --overwrite true to replace it.")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process into a folder that does the same, and clear away what one that was killed has left there.

    Raises:
        DataError: another process is in it, or nothing can be written there.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with alone_in(folder), alone_in(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: another unlearning writes into ...
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DataError(
            f"another unlearning writes into {folder} at this moment; wait until it has ended, or give another folder."
        ) from error
    except OSError as error:
        raise DataError(
            f"nothing can be written into {folder} ({error.strerror or error}); make room or take away what forbids "
            "it, or give another folder."
        ) from error
    try:
        for left in folder.glob(f"{_UNFINISHED}*"):
            if UNFINISHED.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a path to write to, beside ``path`` in a hidden folder that goes with the block.

    If the process is killed, the next one that is :func:`alone_in` the folder takes the hidden one away.
    """
    # In the same folder, so that the last step is a renaming; in one of its own, for a file with the usual rights.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_UNFINISHED, ignore_cleanup_errors=True) as folder:
        yield Path(folder) / path.name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, whose file takes the place of ``path`` at the block's end; after an error nothing does.

    Raises:
        DataError: the file could not be written.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> with replacing(Path(folder, "a.txt")) as place:
        ...     _ = place.write_text("all of it")
        >>> os.listdir(folder)
        ['a.txt']
    """
    # Hidden by another name, for nobody need be alone in the folder of a report.
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        place = Path(folder) / path.name
        yield place
        sync(place)
        os.replace(place, path)
        sync_folder(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence which file it was that could not be written.

    Raises:
        DataError: in place of what the operating system says.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} could not be written ({error.strerror or error}); give another path.") from error


def sync(path: Path) -> None:
    """Return when a file would survive a loss of power."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder would survive a loss of power."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
