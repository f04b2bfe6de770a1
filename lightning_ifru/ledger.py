"""The ledger: what was forgotten, when and how, in JSON lines beside the checkpoints, and no id of anybody.

The checkpoint carries the truth, for it appears at once and with all it says of itself. A line of the file beside it is
an entry of the checkpoint's ledger with what only the file can know: the name of the checkpoint, its hash, and the hash
of the line before, so that no line can be changed or taken out without those after it saying so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lightning_ifru.errors import DataError
from lightning_ifru.finite import finite
from lightning_ifru.influence import IFRU
from lightning_ifru.keys import digest_key, key_name
from lightning_ifru.loading import read_checkpoint
from lightning_ifru.outputs import sha256_of, sync_folder, unfinished
from lightning_ifru.report import UnlearningReport
from lightning_ifru.verdict import Drift
from lightning_ifru.versions import versions

Entry = dict[str, Any]


def new_entry(
    report: UnlearningReport, method: IFRU, earlier: Sequence[Entry], before: str | None, last: Entry | None
) -> Entry:
    """Return what the ledger says of an unlearning: nothing that tells whose data were forgotten without the key.

    Args:
        report: what happened.
        method: the method, with its hyper-parameters.
        earlier: the entries before.
        before: the hash of the checkpoint file that was unlearned, ``None`` where there was no file.
        last: the entry before, whose line of models goes on; ``None`` where the model was trained from the beginning
            since, which begins another.
    """
    entry = {
        "id": secrets.token_hex(16),
        "line": (last or {}).get("line") or secrets.token_hex(16),
        "number": len(earlier) + 1,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "key": key_name(digest_key()),
        **{name: getattr(report, name) for name in _OF_THE_REPORT},
        "seconds": report.seconds["total"],
        "method": asdict(method),
        "versions": versions(),
        "checkpoint_before": before,
    }
    return json.loads(json.dumps(finite(entry)))  # as it will be read, to the bit


def entries_in(checkpoint: Path) -> list[Entry] | None:
    """Return the entries that a checkpoint file carries; ``None`` where it cannot be read as one.

    Nothing but tensors and plain values is loaded, and of tensors nothing but where they are; packed parts are not.
    """
    try:
        content = read_checkpoint(checkpoint, partial(torch.load, map_location="cpu", weights_only=True, mmap=True))
        found = [state for state in content.get("callbacks", {}).values() if "ledger" in state]
        return entries_of(found[0]) if found else []
    except Exception:  # a damaged file makes torch raise almost anything
        return None


def entries_of(state: Mapping[str, Any]) -> list[Entry]:
    """Return the entries in a callback's state, which may be from anybody, after a look at them.

    Raises:
        DataError: they are not such as an unlearning writes: plain values, as JSON has them, of the right kinds, and
            of a drift no number that is negative or infinite.

    Example:
        >>> entries_of({"ledger": [{"id": "a", "num_forgotten": 7}]})
        [{'id': 'a', 'num_forgotten': 7}]
        >>> entries_of({"ledger": [{"id": "a", "num_forgotten": "<script>"}]})
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: the checkpoint's ledger is not as an unlearning writes it; ...
    """
    entries = state.get("ledger", [])
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, Mapping) and _is_plain(e) for e in entries):
        raise DataError("the checkpoint's ledger is not as an unlearning writes it; give the file as it was written.")
    return [dict(entry) for entry in entries]


def _is_plain(entry: Mapping[str, Any]) -> bool:
    kinds = {name: kind for kind, names in _KINDS.items() for name in names}
    if not all(isinstance(entry[name], kind) for name, kind in kinds.items() if name in entry):
        return False
    if not _is_drift(entry.get("drift") or {}):
        return False
    try:
        return len(json.dumps(entry)) < _MAX_ENTRY
    except (TypeError, ValueError, RecursionError):
        return False


def _is_drift(values: object) -> bool:
    """Whether something can be a drift: of its fields counts and finite numbers, none negative."""
    if not isinstance(values, Mapping):
        return False
    for each in fields(Drift):
        value = values.get(each.name)
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
        number = isinstance(value, float) and each.type == "float" and 0 <= value < math.inf
        if not (value is None or whole or number):
            return False
    drift = Drift.of({"drift": values})
    most = drift.trained * drift.requests  # who has come back is forgotten again
    return drift.stuck <= drift.forgotten <= most and math.isfinite(drift.doubt)


def is_result(checkpoint: Path, digest: str, loaded: Path, method: IFRU | None = None) -> bool:
    """Return whether a checkpoint file is what a request has made of another one or itself: it need not be made again.

    Args:
        checkpoint: the file.
        digest: of the request, under the present key.
        loaded: the other file.
        method: with its hyper-parameters; by default any.
    """
    entries = entries_in(checkpoint)
    if not entries or not loaded.is_file() or entries[-1].get("digest") != digest:
        return False
    if method is not None and entries[-1].get("method") != finite(asdict(method)):
        return False
    return checkpoint.samefile(loaded) or entries[-1].get("checkpoint_before") == sha256_of(loaded)


class Ledger:
    """The file as it is now; what follows its last whole line, if a process was killed while writing, does not count.

    Args:
        path: of the file, there already or not.

    Raises:
        OSError: it is there and cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "ledger.jsonl")
        >>> Ledger(path).append([{"id": "a", "line": "m"}, {"id": "b", "line": "m"}], {"b": ("b.ckpt", "12ab")})
        2
        >>> _ = path.write_bytes(path.read_bytes() + b'{"id": "c", "li')
        >>> [line["checkpoint"] for line in Ledger(path).lines], Ledger(path).append([{"id": "c", "line": "m"}], {})
        ([None, 'b.ckpt'], 1)
        >>> Ledger(path).lines[2]["previous"] == hashlib.sha256(Ledger(path).texts[1]).hexdigest()
        True
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Whether the file is there.
        self.existed = path.exists()
        content = path.read_bytes() if self.existed else b""
        *self.texts, rest = content.split(b"\n")
        #: The lines, ``None`` for what is no line of a ledger.
        self.lines = [_parsed(text) for text in self.texts]
        self.torn = len(rest)
        self._size = len(content) - self.torn

    def append(self, entries: Sequence[Entry], files: Mapping[str, tuple[str, str]]) -> int:
        """Add lines for those entries that have none yet, and return how many; take away what was torn. Once at most.

        Args:
            entries: in their order. Those of versions without ids, or with no line of models, are left out.
            files: of entries, by their ids, the name and the hash of the checkpoint that was written with them.

        Raises:
            OSError: they could not be added; the file is as it was.
        """
        texts = list(self.texts)
        for entry in self.lacks(entries):
            name, after = files.get(entry["id"], (None, None))
            previous = hashlib.sha256(texts[-1]).hexdigest() if texts else None
            line = {**entry, "checkpoint": name, "checkpoint_after": after, "previous": previous}
            texts.append(json.dumps(line, allow_nan=False).encode())
        added = texts[len(self.texts) :]
        if added or self.torn:
            self._write(b"".join(text + b"\n" for text in added))
        return len(added)

    def lacks(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those entries of a checkpoint that have no line; those of versions without any are left out."""
        known = {line["id"] for line in self.lines if line is not None}
        return [one for one in entries if has_line(one) and one["id"] not in known]

    def misses(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those that have no line though the file has some of their line of models, or is there and empty.

        Left out are those from which no file was unlearned further: they may have been written nowhere.

        Example:
            >>> import tempfile
            >>> ledger = Ledger(Path(tempfile.mkdtemp(), "ledger.jsonl"))
            >>> ledger.append([{"id": "a", "line": "m"}], {}), len(ledger.misses([{"id": "a", "line": "m"}]))
            (1, 0)
            >>> b, c = {"id": "b", "line": "m"}, {"id": "c", "line": "another", "checkpoint_before": "12ab"}
            >>> [Ledger(ledger.path).misses(entries) for entries in ([b, c], [b, {**c, "checkpoint_before": None}])]
            [[{'id': 'b', 'line': 'm'}], []]
        """
        if self.existed and not self.lines:
            return self.lacks(entries)
        models = {line["line"] for line in self.lines if line is not None}
        gone_on = {one.get("id") for one, after in pairwise(entries) if _hash(after, "checkpoint_before")}
        written = gone_on | {one.get("id") for one in entries[-1:]}
        return [one for one in self.lacks(entries) if one["line"] in models and one["id"] in written]

    def unknown_to(self, entries: Sequence[Entry], before: str | None) -> list[Entry]:
        """Return the lines of unlearnings that have gone on from where a checkpoint is, or from one of these.

        Args:
            entries: the ones that the checkpoint carries.
            before: the hash of its file.

        Example:
            >>> import tempfile
            >>> ledger = Ledger(Path(tempfile.mkdtemp(), "ledger.jsonl"))
            >>> known = [{"id": "a", "line": "m", "checkpoint_before": "12ab"}, {"id": "b", "line": "m"}]
            >>> _ = ledger.append([*known, {"id": "c", "line": "another"}], {})
            >>> ledger = Ledger(ledger.path)
            >>> places = [([], "12ab"), (known[:1], None), (known, None)]
            >>> [[line["id"] for line in ledger.unknown_to(*place)] for place in places]
            [['a', 'b'], ['b'], []]
        """
        ids, models = ({one[name] for one in entries if isinstance(one.get(name), str)} for name in ("id", "line"))
        others = [line for line in self.lines if line is not None and line["id"] not in ids]
        files = {before} - {None}
        while True:
            found = [one for one in others if one["line"] in models or _hash(one, "checkpoint_before") in files]
            reached = models | {one["line"] for one in found}
            if reached == models:
                return found
            models, files = reached, files | {_hash(one, "checkpoint_after") for one in found} - {None}

    def _write(self, added: bytes) -> None:
        """Put what is added after the last whole line, on the disk; a new file is there with all of it, or not."""
        if self.existed:
            _put(self.path, self._size, added)
            return
        with unfinished(self.path) as place:
            _put(place, 0, added)
            os.replace(place, self.path)
        sync_folder(self.path.parent)


def _put(path: Path, size: int, added: bytes) -> None:
    """Let a file go on with other content from somewhere, or end there if it cannot."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.ftruncate(descriptor, size)
        try:
            os.lseek(descriptor, 0, os.SEEK_END)
            while added:
                added = added[os.write(descriptor, added) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def has_line(entry: Entry) -> bool:
    """Return whether an entry is to have a line: versions before ledgers were files have written others."""
    return all(isinstance(entry.get(name), str) for name in ("id", "line"))


def _hash(line: Entry, name: str) -> str | None:
    """The hash of a file, if a line has it: it may say anything."""
    return value if isinstance(value := line.get(name), str) else None


def _parsed(text: bytes) -> Entry | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    named = isinstance(line, dict) and has_line(line)
    return line if named and isinstance(line.get("checkpoint"), (str, type(None))) else None


#: What parts of an entry are; versions before this one have none of some.
_KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    str: ("id", "line", "time", "digest", "key", "verdict"),
    int: ("number", "num_forgotten", "num_users_erased", "num_items_erased"),
    (int, float): ("seconds",),
    dict: ("method", "versions"),
}
#: Characters of an entry: some fifty times what one has.
_MAX_ENTRY = 100_000
_OF_THE_REPORT = (
    *("digest", "num_forgotten", "forgotten_by_split", "num_users_erased", "num_items_erased"),
    *("residual_before", "residual_after", "stationarity", "negative_curvature", "verdict", "verdict_reasons", "drift"),
)
