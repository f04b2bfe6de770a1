"""Deleting checkpoints that remember, where one that has forgotten stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from lightning_ifru.errors import DataError
from lightning_ifru.outputs import UNFINISHED, alone_in, sync_folder
from lightning_ifru.scan import Scan, ScanReport
from lightning_ifru.scan_checkpoints import Checkpoint


def to_purge(scan: Scan) -> dict[Path, Path]:
    """Return the checkpoints that remember and can be deleted, and for each the one that stands for it.

    That one has forgotten what the other remembers, its weights are finite, and its ledger says that it was made of the
    other, or of one that was.

    Args:
        scan: what was found.
    """
    answers = {one.path: _stand_in(scan, one) for one in _staying(scan) if one.hits}
    return {path: answer for path, answer in answers.items() if isinstance(answer, Path)}


def names(scan: Scan, paths: Mapping[Path, Path]) -> list[Path]:
    """Return all that :func:`purge` deletes: files under all their names, and what a killed process has left.

    Args:
        scan: what was found.
        paths: what :func:`to_purge` has returned.
    """
    return [name for path in paths for name in (path, *scan.twins.get(path, []))] + _unfinished(scan)


def purge(scan: Scan, paths: Mapping[Path, Path]) -> ScanReport:
    """Delete checkpoints and what killed processes have left, and return the report without what was in them.

    No unlearning can write into their folders meanwhile. What has changed since the scan is left alone, and so is
    whatever is no plain file below the path that was scanned.

    Args:
        scan: what was found.
        paths: what :func:`to_purge` has returned. The others that remember are ``kept``, and the report says why.

    Raises:
        DataError: an unlearning is running in one of the folders, or a file has changed or cannot be deleted.
    """
    left = [one for one in _staying(scan) if one.hits and one.path not in paths]
    kept = {scan.name(one.path): str(_stand_in(scan, one)) for one in left}
    given, unfinished = names(scan, paths), _unfinished(scan)
    folders = sorted({path.parent for path in given})
    with ExitStack() as stack:
        for folder in folders:  # which takes away what an unlearning has left unfinished there
            stack.enter_context(alone_in(folder))
        for path, stays in paths.items():  # all of them before the first is deleted
            _check(scan, stays, stays)
            for name in (path, *scan.twins.get(path, [])):
                _check(scan, path, name)
        for path in unfinished:
            if path.resolve() != path:
                raise DataError(f"{path} has changed since it was read; scan again.")
        for path in given:
            try:
                if path in unfinished:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            except OSError as error:
                raise DataError(f"{path} could not be deleted ({error.strerror}); delete it by hand.") from error
        for folder in folders:
            sync_folder(folder)
    gone = [scan.name(path) for path in given if not os.path.lexists(path)]
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
    others = [other for other in _staying(scan) if not other.hits and scan.name(other.path) not in faulty]
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
    here = [one.path, *scan.twins.get(one.path, [])]
    for path in here:
        if path in scan.links:
            link = scan.name(scan.links[path])
            return f"the link {link} leads to {scan.name(path)}; let it lead to one that has forgotten, and ask again"
    if (known := scan.seen[one.path].st_nlink) > len(here):
        return (
            f"it has {known} names (hard links), of which {len(here)} here, so that it would stay "
            "on the disk; give the path of a folder that has all of them, or delete the others"
        )
    return others[0].path


def _check(scan: Scan, read: Path, path: Path) -> None:
    """Refuse a name of a file that is no longer as it was when it was read."""
    then, now = scan.seen[read], path.lstat()
    same = os.path.samestat(then, now) and (then.st_size, then.st_mtime_ns) == (now.st_size, now.st_mtime_ns)
    if not same or path.resolve() != path or not path.is_relative_to(scan.base):
        raise DataError(f"{path} has changed since it was read; scan again.")


def _unfinished(scan: Scan) -> list[Path]:
    """The folders of killed processes, the outermost, with nothing in them that we would not have written there."""
    found = list(filter(_is_left, scan.unfinished))
    return [path for path in found if not any(parent in found for parent in path.parents)]


def _staying(scan: Scan) -> list[Checkpoint]:
    """The checkpoints that do not go with the folder of a killed process."""
    folders = set(_unfinished(scan))
    return [one for one in scan.checkpoints if folders.isdisjoint(one.path.parents)]


def _is_left(folder: Path) -> bool:
    """Whether a folder is one of ours, with nothing in it that we would not have written there."""
    if UNFINISHED.fullmatch(folder.name):
        return True
    try:
        return all(part.name == folder.name[1:-9] and part.is_file() for part in folder.iterdir())
    except OSError:
        return False
