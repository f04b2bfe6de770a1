"""``lightning-ifru scan``: what a folder still holds of a request, and on demand without the checkpoints that do."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from lightning_ifru.bounded import printable
from lightning_ifru.command_parser import CommandParser, add_flag
from lightning_ifru.errors import DataError
from lightning_ifru.purging import names, purge, to_purge
from lightning_ifru.scan import Scan, ScanReport, look


def scan_command(name: str, args: list[str], description: str, usage: str) -> int:
    """Scan what the arguments name, print the report, and return 3 if something is left and 0 if nothing is.

    Args:
        name: of the command.
        args: what follows it on the command line.
        description: for its help.
        usage: for its help.

    Raises:
        SystemExit: the arguments cannot be parsed, or ask for help.
        UnlearningError: what they say cannot be done.
    """
    parser = CommandParser(prog=f"lightning-ifru {name}", description=description, usage=usage)
    parser.add_argument("-c", "--config", action="config", help="file with these options.")
    parser.add_argument("path", type=Path, help="folder, or file, to look through.")
    parser.add_argument("--request", type=Path, required=True, help="what was to be forgotten: CSV, Parquet or JSON.")
    parser.add_argument("--user", type=str, default="user", help='what users\' ids are called, apart from "user".')
    parser.add_argument("--item", type=str, default="item", help='what items\' ids are called, apart from "item".')
    add_flag(parser, "json", "print the report as one JSON object, and nothing else.")
    add_flag(parser, "purge", "delete the checkpoints that remember, where one of the model has forgotten; asks first.")
    add_flag(parser, "yes", "do not ask.")
    given = parser.parse_args(args)
    if given.yes and not given.purge:
        parser.error("got --yes, which answers for --purge; give both or neither")
    found = look(given.path, given.request, user=given.user, item=given.item)
    report = _purged(found, given.path, confirmed=given.yes) if given.purge else found.report
    if given.json:
        sys.stdout.write(report.to_json(indent=None) + "\n")
    else:
        Console().print(report)
    return 3 if report.findings else 0


def _purged(found: Scan, given: Path, *, confirmed: bool) -> ScanReport:
    """Delete what can be deleted, once somebody has said so."""
    if given.is_symlink():
        raise DataError(f"got --purge for {given}, which is a link; give the path that it leads to.")
    paths = to_purge(found)
    whole = names(found, paths)
    if whole and not confirmed:
        if not sys.stdin.isatty():
            raise DataError("got --purge and nobody to ask; run it in a terminal, or add --yes.")
        word = f"delete {len(whole)}"
        sys.stderr.write("".join(f"{printable(str(path))}\n" for path in whole))
        sys.stderr.write(
            f"These remember, or were left unfinished. Type '{word}' to delete them, anything else to leave them: "
        )
        sys.stderr.flush()
        if sys.stdin.readline().strip() != word:
            raise DataError("nothing was deleted, for it was not confirmed; run it again, or leave --purge out.")
    return purge(found, paths)
