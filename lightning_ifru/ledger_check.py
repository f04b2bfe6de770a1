"""Whether a ledger holds: every line follows from the one before, and the checkpoints beside it say the same."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from lightning_ifru.bounded import printable
from lightning_ifru.errors import DataError
from lightning_ifru.ledger import Entry, Ledger, entries_in, has_line
from lightning_ifru.outputs import LEDGER, alone_in, sha256_of


@dataclass(frozen=True)
class LedgerCheck:
    """What was found of a ledger.

    Attributes:
        ledger: the path of the file.
        lines: how many unlearnings it has.
        holds: whether nothing is wrong with it.
        faults: what is, a sentence each.
        restored: how many lines were missing and taken from the checkpoints.
        checkpoints: of every checkpoint that it names, whether it is ``"as written"``, ``"gone"`` or ``"changed"``.
        last: the SHA-256 of the last line, ``None`` where there is none. Kept elsewhere, it tells whether a later
            ledger has this one as its beginning; the last line has none after it that would say that it was changed.
        lost: how many lines were missing that no crash takes away.
    """

    ledger: str
    lines: int
    holds: bool
    faults: list[str]
    restored: int
    checkpoints: dict[str, str]
    last: str | None = None
    lost: int = 0

    def to_json(self) -> str:
        """Return all attributes as JSON, in one line."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        """Return a line for the ledger and one for each fault."""
        requests = f"{self.lines} unlearning{'' if self.lines == 1 else 's'}"
        restored = f", {self.restored} of them restored from the checkpoints beside it" if self.restored else ""
        verdict = "every line follows from the one before" if self.holds else "it does not hold"
        states = ", ".join(f"{name} {state}" for name, state in self.checkpoints.items())
        lines = [f"{self.ledger}: {requests}{restored}; {verdict}."]
        if self.restored > 1 or 0 < self.restored == self.lines:
            apart = "each of a model that is new to it, or its model's last, as after a crash"
            why = "as asked for" if self.lost else "the file is new" if self.restored == self.lines else apart
            lines.append(f"RESTORED {self.restored} lines from the checkpoints: {why}.")
        lines += [f"  - {fault}" for fault in self.faults[:_MOST_FAULTS]]
        lines += [f"  - and {len(self.faults) - _MOST_FAULTS} more."] if len(self.faults) > _MOST_FAULTS else []
        lines += [f"Checkpoints: {states}."] if states else []
        lines += [f"SHA-256 of the last line, to be kept elsewhere: {self.last}"] if self.last else []
        return "\n".join(map(printable, lines))  # names are whatever the file says


def check_ledger(path: Path, restore: bool = False) -> LedgerCheck:
    """Restore the end of a ledger where a process was killed before it came to that, and say whether all of it holds.

    A crash takes away at most the last line of a line of models, or all of one of which the file had none. Where more
    is missing, it was lost otherwise: then nothing is written, so that the next check finds the same.

    Args:
        path: of the file, or of the folder that it stands in.
        restore: take from the checkpoints what no crash has taken away, too, which is still a fault this once.

    Raises:
        DataError: there is none, and no checkpoint says what would stand in it; or lines are missing while another
            process writes into the folder, which may add them.
    """
    path = path / LEDGER if path.is_dir() else path
    try:
        beside = entries_beside(path.parent)
        restored, lost, why = _restore(path, beside, restore)
        if not path.exists():
            raise DataError(f"there is no ledger {path}; give the path of one, which stands beside the checkpoints.")
        ledger = Ledger(path)
        faults = chain(ledger) + _descent(ledger)
        if lost:
            lines, now = ("1 line", "is") if lost == 1 else (f"{lost} lines", "are")
            done = f"{now} restored" if restored else f"{now} not restored without --restore"
            faults.insert(0, f"it had lost {lines}, which no crash takes away and which {done}.")
        checkpoints, more = _named(ledger, path.parent)
        faults += more + _carried(ledger, beside)
    except OSError as error:
        raise DataError(f"the ledger {path} cannot be read ({error.strerror or error}); check the file.") from error
    if ledger.torn:
        faults.append(f"its last line is not whole, and could not be restored{why}.")
    last = hashlib.sha256(ledger.texts[-1]).hexdigest() if ledger.texts else None
    return LedgerCheck(str(path), len(ledger.lines), not faults, faults, restored, checkpoints, last, lost)


def entries_beside(folder: Path) -> dict[Path, list[Entry]]:
    """Return the entries of the checkpoints in a folder, the oldest first."""
    return {file: entries_in(file) or [] for file in sorted(filter(_packed, folder.glob("*")), key=_age)}


def written_with(beside: Mapping[Path, list[Entry]], ids: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return name and hash of the checkpoints that were written with entries, by their ids, as far as they are there.

    Args:
        beside: the entries of each, the oldest first: of several with the same last entry that was written with it.
        ids: of the entries.
    """
    files = {e[-1]["id"]: file for file, e in reversed([*beside.items()]) if e and "id" in e[-1]}
    return {one: (file.name, sha256_of(file)) for one, file in files.items() if one in ids}


def _restore(path: Path, beside: dict[Path, list[Entry]], everything: bool) -> tuple[int, int, str]:
    """Add the lines that the checkpoints have and the ledger has not.

    Returns:
        how many were added, how many no crash has taken away, and why none could be added.
    """
    ledger = Ledger(path)
    lacking = [entries for entries in beside.values() if ledger.lacks(entries)]
    if not lacking and not ledger.torn:
        return 0, 0, ""
    if chain(ledger):
        return 0, 0, ", as the lines before do not hold"
    lost = _lost(ledger, lacking)
    try:
        with alone_in(path.parent):
            ledger = Ledger(path)
            lost = _lost(ledger, lacking)
            if lost and not everything:
                return 0, lost, ", as more is lost"
            every = ledger.lacks([entry for entries in sorted(lacking, key=len) for entry in entries])
            unique = {entry["id"]: entry for entry in every}
            return ledger.append([*unique.values()], written_with(beside, unique)), lost, ""
    except (DataError, ValueError) as error:
        if isinstance(error.__cause__, Timeout):  # what is missing may be about to be written
            raise
        return 0, lost, f": {error}"


def _lost(ledger: Ledger, histories: Sequence[Sequence[Entry]]) -> int:
    """How many lines are missing that no crash takes away.

    That is all of a file that is empty, for a new one appears with its lines, several of one line of models, and one
    before another that is there.
    """
    missed = {one["id"]: one for entries in histories for one in ledger.misses(entries)}
    known = {line["id"] for line in ledger.lines if line is not None}
    earlier: set[str] = set()
    for entries in histories:
        last = max((at for at, one in enumerate(entries) if one.get("id") in known), default=0)
        earlier |= {one["id"] for one in entries[:last] if has_line(one)}
    several = Counter(one["line"] for one in missed.values())
    return sum(not ledger.lines or several[one["line"]] > 1 or name in earlier for name, one in missed.items())


def chain(ledger: Ledger) -> list[str]:
    """Return what breaks a ledger's chain of hashes, a sentence each."""
    faults, seen, previous = [], set(), None
    for number, (line, text) in enumerate(zip(ledger.lines, ledger.texts, strict=True), start=1):
        if line is None:
            faults.append(f"line {number} is none that an unlearning has written.")
        elif line.get("previous") != previous:
            whence = f"line {number - 1} as it stands" if number > 1 else "nothing, as the first does"
            faults.append(f"line {number} does not follow from {whence}: one was changed, taken out or put in.")
        if line is not None and line["id"] in seen:
            faults.append(f"line {number} repeats one before.")
        seen.add(line and line["id"])
        previous = hashlib.sha256(text).hexdigest()
    return faults


def _descent(ledger: Ledger) -> list[str]:
    """Where a line does not go on from the one whose checkpoint it says was unlearned, or half names its own."""
    faults = []
    lines = [(number, line) for number, line in enumerate(ledger.lines, start=1) if line is not None]
    written = {line.get("checkpoint_after"): (number, line) for number, line in reversed(lines) if _named_whole(line)}
    for number, line in lines:
        before, entry = line.get("checkpoint_before"), line.get("number")
        if not _named_whole(line) and (line.get("checkpoint"), line.get("checkpoint_after")) != (None, None):
            faults.append(f"line {number} has of its checkpoint's name and hash one alone.")
        if not isinstance(before, str) or before not in written:
            continue
        earlier, parent = written[before]
        if earlier >= number:
            faults.append(f"line {number} stands before line {earlier}, whose checkpoint was unlearned in it.")
        elif parent["line"] != line["line"] or not isinstance(entry, int) or parent.get("number") != entry - 1:
            faults.append(f"line {number} does not go on from line {earlier}, whose checkpoint was unlearned in it.")
    return faults


def _named_whole(line: Entry) -> bool:
    return isinstance(line.get("checkpoint"), str) and isinstance(line.get("checkpoint_after"), str)


def _named(ledger: Ledger, folder: Path) -> tuple[dict[str, str], list[str]]:
    """What has become of the checkpoints that lines name."""
    states: dict[str, str] = {}
    faults = []
    latest = {line["checkpoint"]: line for line in ledger.lines if line is not None and line.get("checkpoint")}
    for name, line in latest.items():
        if name in (".", "..") or Path(name).name != name or "\\" in name:
            faults.append(f"the checkpoint {name!r} is no name of a file beside it, and is not opened.")
            continue
        file = folder / name
        states[name] = "gone" if not file.is_file() else "as written"
        if file.is_file() and sha256_of(file) != line.get("checkpoint_after"):
            states[name] = "changed"
            faults.append(f"{name} is not the file that was written, whose hash stands in the ledger.")
    return states, faults


def _carried(ledger: Ledger, beside: dict[Path, list[Entry]]) -> list[str]:
    """Where a checkpoint says other than the ledger."""
    lines = {line["id"]: (number, line) for number, line in enumerate(ledger.lines, start=1) if line is not None}
    faults = []
    for file, entries in beside.items():
        missing = len(ledger.lacks(entries))
        if missing:
            faults.append(f"{file.name} tells of {missing} unlearnings of which the ledger has no line.")
        for entry in entries:
            number, line = lines.get(entry.get("id"), (0, entry))
            if any(line.get(name) != value for name, value in entry.items()):
                faults.append(f"line {number} says other than {file.name} does.")
    return faults


def _packed(path: Path) -> bool:
    """Whether a file can be a checkpoint, whatever it is called: torch's are archives."""
    return path.is_file() and zipfile.is_zipfile(path)


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name


#: Faults that are printed; as JSON all are.
_MOST_FAULTS = 20
