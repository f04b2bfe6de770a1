"""Whether a ledger holds: every line follows from the one before, and the checkpoints beside it say the same."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from lightning_ifru.bounded import printable
from lightning_ifru.errors import DataError
from lightning_ifru.ledger import Entry, Ledger, entries_in
from lightning_ifru.outputs import LEDGER, alone_in, sha256_of


@dataclass(frozen=True)
class LedgerCheck:
    """What was found of a ledger.

    Attributes:
        ledger: the path of the file.
        lines: how many unlearnings it has.
        holds: whether nothing is wrong with it.
        faults: what is, a sentence each.
        restored: how many lines were missing at its end and taken from the checkpoints, as after a crash.
        checkpoints: of every checkpoint that it names, whether it is ``"as written"``, ``"gone"`` or ``"changed"``.
        last: the SHA-256 of the last line, ``None`` where there is none. Kept elsewhere, it tells whether a later
            ledger has this one as its beginning; the last line has none after it that would say that it was changed.
    """

    ledger: str
    lines: int
    holds: bool
    faults: list[str]
    restored: int
    checkpoints: dict[str, str]
    last: str | None = None

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
            why = "the file was emptied or is new" if self.restored == self.lines else "more than a crash takes away"
            lines.append(f"RESTORED {self.restored} lines from the checkpoints: {why}.")
        lines += [f"  - {fault}" for fault in self.faults[:_MOST_FAULTS]]
        lines += [f"  - and {len(self.faults) - _MOST_FAULTS} more."] if len(self.faults) > _MOST_FAULTS else []
        lines += [f"Checkpoints: {states}."] if states else []
        lines += [f"SHA-256 of the last line, to be kept elsewhere: {self.last}"] if self.last else []
        return "\n".join(map(printable, lines))  # names are whatever the file says


def check_ledger(path: Path) -> LedgerCheck:
    """Restore the end of a ledger where a process was killed before it came to that, and say whether all of it holds.

    Args:
        path: of the file, or of the folder that it stands in.

    Raises:
        DataError: there is none, and no checkpoint says what would stand in it; or lines are missing while another
            process writes into the folder, which may add them.
    """
    path = path / LEDGER if path.is_dir() else path
    try:
        beside = {file: entries_in(file) or [] for file in sorted(filter(_packed, path.parent.glob("*")), key=_age)}
        existed = path.exists()
        restored, why = _restore(path, beside)
        if not path.exists():
            raise DataError(f"there is no ledger {path}; give the path of one, which stands beside the checkpoints.")
        ledger = Ledger(path)
        faults = _chain(ledger) + _descent(ledger)
        if existed and restored > 1:
            faults.insert(0, f"it had lost {restored} lines, and a crash takes away the last one alone.")
        checkpoints, more = _named(ledger, path.parent)
        faults += more + _carried(ledger, beside)
    except OSError as error:
        raise DataError(f"the ledger {path} cannot be read ({error.strerror or error}); check the file.") from error
    if ledger.torn:
        faults.append(f"its last line is not whole, and could not be restored{why}.")
    last = hashlib.sha256(ledger.texts[-1]).hexdigest() if ledger.texts else None
    return LedgerCheck(str(path), len(ledger.lines), not faults, faults, restored, checkpoints, last)


def _restore(path: Path, beside: dict[Path, list[Entry]]) -> tuple[int, str]:
    """Add the lines that the checkpoints have and the ledger has not; return how many, or why that cannot be."""
    ledger = Ledger(path)
    known = {line["id"] for line in ledger.lines if line is not None}
    lacking = [entries for entries in beside.values() if {entry.get("id") for entry in entries} - known - {None}]
    if not lacking and not ledger.torn:
        return 0, ""
    if _chain(ledger):
        return 0, ", as the lines before do not hold"
    try:
        with alone_in(path.parent):
            # Of several with the same last entry the oldest is the one that was written with it.
            files = {e[-1]["id"]: (f.name, sha256_of(f)) for f, e in reversed(beside.items()) if e and "id" in e[-1]}
            every = [entry for entries in sorted(lacking, key=len) for entry in entries]
            unique = {entry["id"]: entry for entry in every if "id" in entry}
            return Ledger(path).append([*unique.values()], files), ""
    except (DataError, ValueError) as error:
        if isinstance(error.__cause__, Timeout):  # what is missing may be about to be written
            raise
        return 0, f": {error}"


def _chain(ledger: Ledger) -> list[str]:
    """What breaks the chain of hashes."""
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
        missing = sum(entry["id"] not in lines for entry in entries if "id" in entry)
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
