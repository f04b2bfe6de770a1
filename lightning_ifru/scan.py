"""What is left of the forgotten in a folder: in checkpoints, tables, logs and whatever else lies there."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lightning_ifru.bounded import printable
from lightning_ifru.errors import DataError, UnlearningError
from lightning_ifru.keys import KEY, KEY_FILE, digest_key, has_key, throwaway_key
from lightning_ifru.needles import Found, Needles
from lightning_ifru.outputs import UNFINISHED, UNREPLACED
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.scan_checkpoints import Checkpoint, look_at, looks_like_one, read, unchanged_rows
from lightning_ifru.scan_files import look_into
from lightning_ifru.scan_packed import Unread


@dataclass(frozen=True)
class Finding:
    """Something that is left.

    Attributes:
        file: its path below the one scanned.
        where: where in it.
        kind: ``"checkpoint"``: it remembers; ``"rows"``: a checkpoint in which rows of the erased are as they were;
            ``"text"``: another file with ids in it; ``"unfinished"``: a folder that a killed process has left.
        entries: which entries of the request, by their places in it and never by their ids; the first five of
            ``num_entries``.
        count: how often they were found.
        advice: what to do.
    """

    file: str
    where: str
    kind: str
    entries: list[str]
    num_entries: int
    count: int
    advice: str


@dataclass(frozen=True)
class Unseen:
    """A file, link or part of one that was not looked into, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class ScanReport:
    """What a scan has found, and what it has not looked at.

    Attributes:
        path: that was scanned.
        digest: keyed digest (HMAC) of the request; empty where there is no key.
        num_entries: entries of the request; ``num_quiet`` of them are short, plain words or small numbers, and were
            looked for only where a name says what stands there: in columns, keys and tables of ids.
        findings: what is left.
        unseen: what was not looked into.
        checkpoints: what each checkpoint knows: ``"remembers"``, ``"has forgotten"``, ``"knows none of it"`` or
            ``"cannot be told"``.
        num_files, num_bytes: what was looked at.
        purged: the checkpoints deleted, see :func:`~lightning_ifru.purging.purge`.
        kept: why others that remember were not deleted with them.
    """

    path: str
    digest: str
    num_entries: int
    num_quiet: int
    findings: list[Finding] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)
    checkpoints: dict[str, str] = field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0
    purged: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def to_json(self, indent: int | None = 2) -> str:
        """Return all attributes as JSON."""
        return json.dumps(asdict(self), indent=indent)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # One table for each kind, since what to do is the same for all of them.
        for kind, advice in ADVICE.items():
            if found := [one for one in self.findings if one.kind == kind]:
                yield _table(
                    f"{advice[0]}: {advice[1]}", ("file", "where", "entries", "times"), [_row(one) for one in found]
                )
        if others := {name: status for name, status in self.checkpoints.items() if status != "remembers"}:
            yield _table("Other checkpoints", ("file", ""), [*others.items()])
        if self.purged:
            yield _table("Deleted", ("file",), [(path,) for path in self.purged])
        if self.kept:
            yield _table("Remember, and were not deleted", ("file", "why"), [*self.kept.items()])
        if self.unseen:
            yield _table("Not looked into, or not in full", ("file", "why"), [(o.file, o.reason) for o in self.unseen])
        number = len(self.findings)
        what = f"{number} finding{'s' * (number > 1)}" if number else "Nothing of the request was found"
        left = len({one.file for one in self.unseen})
        unseen = f"; {left:,} of them or beside them not looked into, or not in full" if left else ""
        yield Text(f"{what} in {self.num_files:,} files, {self.num_bytes:,} bytes{unseen}.")
        if self.num_quiet:
            yield Text(
                f"{self.num_quiet} of the request's {self.num_entries} entries are too short or too plain to be looked "
                "for in text and bytes; they were looked for in columns, keys and tables of ids."
            )


def _row(one: Finding) -> tuple[str, str, str, str]:
    more = f" and {one.num_entries - len(one.entries)} more" if one.num_entries > len(one.entries) else ""
    return one.file, one.where, ", ".join(one.entries) + more, f"{one.count:,}" if one.count else ""


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # names of files are neither markup nor commands
    return table


@dataclass(frozen=True)
class Scan:
    """A report with what a purge needs to know.

    Attributes:
        report: what was found.
        base: the folder that names of files in the report are relative to.
        checkpoints: those that could be read.
        seen: the files, as they were when they were read.
        links: by what they lead to, links in the folder.
        twins: by the name under which a file was read, its other names (hard links) in the folder.
        unfinished: folders that a killed process has left.
    """

    report: ScanReport
    base: Path
    checkpoints: list[Checkpoint]
    seen: dict[Path, os.stat_result]
    links: dict[Path, Path]
    twins: dict[Path, list[Path]]
    unfinished: list[Path]

    def name(self, path: Path) -> str:
        """Return what a file is called in the report."""
        return str(path.relative_to(self.base))


def scan(
    path: str | Path, request: UnlearningRequest | str | Path, *, user: str = "user", item: str = "item"
) -> ScanReport:
    r"""Look for what a folder still holds of a request: ids in checkpoints and files, and entries not forgotten.

    Nothing is executed: checkpoints are read as tensors and plain values alone, and links out of the folder are not
    followed. No id is repeated in the report; it names the entries of the request by their places.

    Args:
        path: a folder, or a file.
        request: what was to be forgotten, or the path of the request file, which is not counted where it lies there.
        user: what users' ids are called in columns and keys, apart from "user"; case, underscores and a final "id" or
            "s" do not matter.
        item: the same for items.

    Raises:
        DataError: there is no such path.
        RequestError: the request file cannot be read.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "ratings.csv").write_text("user,item\n7,a\n8,a\n")
        >>> [(one.file, one.where) for one in scan(folder, UnlearningRequest(users=[8])).findings]
        [('ratings.csv', "column 'user', from row 2 on")]
    """
    return look(path, request, user=user, item=item).report


def look(path: str | Path, request: UnlearningRequest | str | Path, *, user: str = "user", item: str = "item") -> Scan:
    """Do what :func:`scan` does, and return what a purge needs beside the report."""
    root = Path(path)
    if not root.exists():
        raise DataError(f"there is nothing at {str(root)!r}; give the path of a folder or a file to scan.")
    own = None
    if not isinstance(request, UnlearningRequest):
        own, request = Path(request), UnlearningRequest.from_file(request)
    return _Look(root, request, Needles(request, user, item)).over(own)


class _Look:
    """One scan while it goes on."""

    def __init__(self, root: Path, request: UnlearningRequest, needles: Needles) -> None:
        # A path that is a link itself was asked for as it is.
        self.root = root.resolve()
        self.base = self.root if self.root.is_dir() else self.root.parent
        self.shown, self.needles, keyed = str(root), needles, has_key()
        with nullcontext() if keyed else throwaway_key():  # nobody has recorded anything under a new one
            self.key = digest_key()
        self.digest = request.digest(self.key) if keyed else ""
        self.findings: list[Finding] = []
        self.unseen: list[Unseen] = [] if keyed else [Unseen(".", _KEYLESS)]
        self.checkpoints: list[Checkpoint] = []
        self.seen: dict[Path, os.stat_result] = {}
        self.links: dict[Path, Path] = {}
        self.twins = defaultdict[Path, list[Path]](list)
        self.unfinished: list[Path] = []

    def over(self, own: Path | None) -> Scan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about files that are nobody's fault
            self._look(own)
        self._compare()
        self._repeat()
        report = ScanReport(
            path=self.shown,
            digest=self.digest,
            num_entries=len(self.needles.keys),
            num_quiet=self.needles.quiet,
            findings=self.findings,
            unseen=self.unseen,
            checkpoints={
                self._name(p): one.status for one in self.checkpoints for p in (one.path, *self.twins[one.path])
            },
            num_files=len(self.seen),
            num_bytes=sum(state.st_size for state in self.seen.values()),
        )
        return Scan(report, self.base, self.checkpoints, self.seen, self.links, self.twins, self.unfinished)

    def _look(self, own: Path | None) -> None:
        for path, state in self._files(self.root):
            if own is not None and own.exists() and os.path.samestat(own.stat(), state):
                self._leave(path, "the request itself, which says who was forgotten; keep it no longer than you must")
                continue
            self.seen[path] = state
            self._file(path)

    def _files(self, path: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """The plain files below a path, in order, each once."""
        waiting, known = [path], dict[tuple[int, int], Path]()
        while waiting:
            path = waiting.pop()
            try:
                state = path.lstat()
                if path != self.base and (named := self.needles.in_bytes(os.fsencode(path.name), text=True)):
                    self._find(path, _NAME, "text", named)
                if stat.S_ISLNK(state.st_mode):
                    self.links[path.resolve()] = path
                    if not path.resolve().is_relative_to(self.base):
                        self._leave(path, "a link out of the folder, not followed")
                elif stat.S_ISDIR(state.st_mode):
                    if path != self.base and (UNFINISHED.fullmatch(path.name) or UNREPLACED.fullmatch(path.name)):
                        self.unfinished.append(path)
                        self._find(path, "all of it", "unfinished", Found())
                    waiting += sorted(path.iterdir(), reverse=True)
                elif not stat.S_ISREG(state.st_mode):
                    self._leave(path, "no plain file")
                elif (first := known.setdefault((state.st_dev, state.st_ino), path)) is not path:
                    self.twins[first].append(path)
                else:
                    yield path, state
            except (OSError, RuntimeError) as error:  # the latter for links in a circle
                self._leave(path, f"not read ({getattr(error, 'strerror', None) or error})")

    def _file(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                if looks_like_one(path, file.read(4)) and self._checkpoint(path):
                    return
                file.seek(0)
                for hit in look_into(path.name, file, self.needles):
                    if isinstance(hit, Unread):
                        self._leave(path, hit.reason)
                    else:
                        self._find(path, hit.where, "text", hit.found)
        except OSError as error:
            self._leave(path, f"not read ({error.strerror or error})")

    def _checkpoint(self, path: Path) -> bool:
        """Look at a file as a checkpoint, and return whether it could be read as one."""
        try:
            one = look_at(path, read(path), self.needles, self.key)
        except Exception as error:  # what is in it can be anything
            said = str(error) if isinstance(error, UnlearningError) else f"no state of the data ({error!r})"
            self._leave(path, f"{said[:300]}; searched byte by byte")
            return False
        self.checkpoints.append(one)
        for hit in one.hits:
            self._find(path, hit.where, "checkpoint", hit.found)
        if one.unclear:
            self._leave(path, one.unclear)
        return True

    def _compare(self) -> None:
        """Compare rows of the erased with those in older checkpoints of the same model."""
        for newer in [one for one in self.checkpoints if one.status == "has forgotten"]:
            names: set[str] = set()
            for older in [one for one in self.checkpoints if one.status == "remembers" and one.same_model(newer)]:
                try:
                    names |= set(unchanged_rows(older, newer, self.needles))
                except Exception as error:  # weights can be of any kind
                    said = f"rows not compared with those of {self._name(older.path)} ({error!r})"
                    self._leave(newer.path, said[:300])
            for name in sorted(names):
                self._find(newer.path, f"rows of the erased in {name}, as before", "rows", Found())

    def _repeat(self) -> None:
        """Say of all names of a file what was found under the first."""
        for path, others in self.twins.items():
            first = self._name(path)
            for name in map(self._name, others):
                same = [one for one in self.findings if one.file == first and one.where != _NAME]
                self.findings += [replace(one, file=name) for one in same]
                self.unseen += [replace(one, file=name) for one in self.unseen if one.file == first]

    def _find(self, path: Path, where: str, kind: str, found: Found) -> None:
        entries = [self.needles.labels[number] for number in sorted(found)[:5]]
        what = (entries, len(found), sum(found.values()), ADVICE[kind][1])
        self.findings.append(Finding(self._name(path), where, kind, *what))

    def _leave(self, path: Path, reason: str) -> None:
        self.unseen.append(Unseen(self._name(path), reason))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.base)) if path != self.base else "."


_NAME = "its name"
_KEYLESS = f"there is no key of digests, so that what was recorded as forgotten cannot be told; set {KEY} or {KEY_FILE}"
#: What each kind of finding is called, and what to do.
ADVICE = {
    "checkpoint": ("Checkpoints that remember", "delete them once one that has forgotten is in their place"),
    "rows": ("Rows of the erased that are not new", "unlearn again from the older one, and say whose rows these are"),
    "text": ("Files with ids in them", "delete them, or write them again without these"),
    "unfinished": ("Left by a process that was killed", "delete the folder if no unlearning is running"),
}
