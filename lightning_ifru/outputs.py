"""Files that a command writes: refused before the work if they cannot be, and never there in part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_ifru.errors import DataError


def check_target(path: Path, overwrite: bool, option: str) -> None:
    """Refuse a path that cannot be written, or that exists already.

    Args:
        path: of the file to write later.
        overwrite: whether it may exist.
        option: what names the path on the command line, for the message.

    Raises:
        DataError: the path is a folder, its folder does not exist or cannot be written to, or it exists.

    Example:
        >>> check_target(Path("no-such-folder/a.ckpt"), False, "--output")
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: got --output no-such-folder/a.ckpt, in whose folder nothing can be written; ...
    """
    if path.is_dir():
        raise DataError(f"got {option} {path}, which is a folder; give the path of a file in it.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise DataError(
            f"got {option} {path}, in whose folder nothing can be written; make the folder, or give another path."
        )
    if path.exists() and not overwrite:
        raise DataError(f"got {option} {path}, which exists; give another path, or --overwrite true to replace it.")


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
    try:
        # In the same folder, so that the last step is a renaming; in one of its own, for a file with the usual rights.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            place = Path(folder) / path.name
            yield place
            os.replace(place, path)
    except OSError as error:
        raise DataError(f"{path} could not be written ({error.strerror}); give another path.") from error
