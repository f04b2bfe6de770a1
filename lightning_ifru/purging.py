"""Deleting checkpoints that remember, where one that has forgotten stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lightning_ifru.errors import DataError
from lightning_ifru.outputs import alone_in, sync_folder
from lightning_ifru.scan import Scan, ScanReport
from lightning_ifru.scan_checkpoints import Checkpoint


def to_purge(scan: Scan) -> list[Path]:
    """Return the checkpoints that remember, for each of which another of the same model has forgotten.

    Args:
        scan: what was found.

    Raises:
        DataError: of one of them no other has forgotten what it remembers, so that with it the model would go; or a
            link leads to one of them.
    """
    faulty = {one.file for one in scan.report.findings}
    remembering = [one for one in scan.checkpoints if one.hits]
    clean = [one for one in scan.checkpoints if not one.hits and scan.name(one.path) not in faulty]
    alone = [one.path for one in remembering if not any(_stands_for(other, one) for other in clean)]
    if alone:
        more = f" and {len(alone) - 1} more" if len(alone) > 1 else ""
        raise DataError(
            f"no checkpoint of the same model has forgotten what {scan.name(alone[0])}{more} remembers, so that the "
            "model itself would go; unlearn first, or give the path of a folder that has both."
        )
    for one in remembering:
        if one.path in scan.links:
            raise DataError(
                f"the link {scan.name(scan.links[one.path])} leads to {scan.name(one.path)}, which remembers; let it "
                "lead to one that has forgotten, and ask again."
            )
    return [one.path for one in remembering]


def purge(scan: Scan, paths: Sequence[Path]) -> ScanReport:
    """Delete checkpoints, and return the report without what was in them.

    No unlearning can write into their folders meanwhile. What has changed since the scan is left alone, and so is
    whatever is no plain file below the path that was scanned.

    Args:
        scan: what was found.
        paths: what :func:`to_purge` has returned.

    Raises:
        DataError: an unlearning is running in one of the folders, or a file has changed or cannot be deleted.
    """
    with ExitStack() as stack:
        for folder in sorted({path.parent for path in paths}):
            stack.enter_context(alone_in(folder))
        for path in paths:  # all of them before the first is deleted
            _check(scan, path)
        for path in paths:
            try:
                path.unlink()
            except OSError as error:
                raise DataError(f"{path} could not be deleted ({error.strerror}); delete it by hand.") from error
        for folder in {path.parent for path in paths}:
            sync_folder(folder)
    gone = [scan.name(path) for path in paths]
    return replace(
        scan.report,
        findings=[one for one in scan.report.findings if os.path.lexists(scan.base / one.file)],
        checkpoints={name: status for name, status in scan.report.checkpoints.items() if name not in gone},
        purged=gone,
    )


def _stands_for(other: Checkpoint, one: Checkpoint) -> bool:
    """Whether a model is there without one of its checkpoints."""
    remembered = {number for hit in one.hits for number in hit.found}
    return other.same_model(one) and remembered <= other.forgotten


def _check(scan: Scan, path: Path) -> None:
    then, now = scan.seen[path], path.lstat()
    same = os.path.samestat(then, now) and (then.st_size, then.st_mtime_ns) == (now.st_size, now.st_mtime_ns)
    if not same or path.resolve() != path or not path.is_relative_to(scan.base):
        raise DataError(f"{path} has changed since it was read; scan again.")
