"""Deleting checkpoints that remember, where one that has forgotten stays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lightning_ifru.errors import DataError
from lightning_ifru.outputs import alone_in, sync_folder
from lightning_ifru.scan import Scan, ScanReport
from lightning_ifru.scan_checkpoints import Checkpoint


def to_purge(scan: Scan) -> dict[Path, Path]:
    """Return the checkpoints that remember and can be deleted, and for each the one that stands for it.

    That one has forgotten what the other remembers, its weights are finite, and its ledger says that it was made of the
    other, or of one that was.

    Args:
        scan: what was found.

    Raises:
        DataError: there is none that can be deleted, for with each the model would go; or a link leads to one of them.
    """
    answers = {one.path: _stand_in(scan, one) for one in scan.checkpoints if one.hits}
    found = {path: answer for path, answer in answers.items() if isinstance(answer, Path)}
    for reason in answers.values() if not found else ():
        raise DataError(f"{reason}.")
    for path in found:
        if path in scan.links:
            raise DataError(
                f"the link {scan.name(scan.links[path])} leads to {scan.name(path)}, which remembers; let it lead to "
                "one that has forgotten, and ask again."
            )
    return found


def purge(scan: Scan, paths: Mapping[Path, Path]) -> ScanReport:
    """Delete checkpoints, and return the report without what was in them.

    No unlearning can write into their folders meanwhile. What has changed since the scan is left alone, and so is
    whatever is no plain file below the path that was scanned.

    Args:
        scan: what was found.
        paths: what :func:`to_purge` has returned. The others that remember are ``kept``, and the report says why.

    Raises:
        DataError: an unlearning is running in one of the folders, or a file has changed or cannot be deleted.
    """
    left = [one for one in scan.checkpoints if one.hits and one.path not in paths]
    kept = {scan.name(one.path): str(_stand_in(scan, one)) for one in left}
    with ExitStack() as stack:
        for folder in sorted({path.parent for path in paths}):
            stack.enter_context(alone_in(folder))
        for path in (*paths, *paths.values()):  # all of them before the first is deleted
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
        kept=kept,
    )


def _stand_in(scan: Scan, one: Checkpoint) -> Path | str:
    """The checkpoint in which a model is there without another of its checkpoints, or why there is none."""
    faulty = {finding.file for finding in scan.report.findings}
    remembered = {number for hit in one.hits for number in hit.found}
    name = scan.name(one.path)
    others = [other for other in scan.checkpoints if not other.hits and scan.name(other.path) not in faulty]
    others = [other for other in others if other.same_model(one) and remembered <= other.forgotten]
    if not others:
        return (
            f"no checkpoint of the same model has forgotten what {name} remembers, so that the model itself would go; "
            "unlearn first, or give the path of a folder that has both"
        )
    others = [other for other in others if other.follows(one)]
    if not others:
        return (
            f"no ledger says that a checkpoint here was made of {name}, which can be of another training; unlearn from "
            "that file, or delete it by hand if nobody needs it"
        )
    others = [other for other in others if other.is_finite()]
    if not others:
        return f"what was made of {name} has weights that are not finite; unlearn again from that file"
    return others[0].path


def _check(scan: Scan, path: Path) -> None:
    then, now = scan.seen[path], path.lstat()
    same = os.path.samestat(then, now) and (then.st_size, then.st_mtime_ns) == (now.st_size, now.st_mtime_ns)
    if not same or path.resolve() != path or not path.is_relative_to(scan.base):
        raise DataError(f"{path} has changed since it was read; scan again.")
