"""The command line: ``lightning-ifru demo``."""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

import lightning_ifru
from lightning_ifru.demo import demo
from lightning_ifru.errors import UnlearningError


def main(args: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, or 1 with one sentence on the standard error.

    Args:
        args: the arguments; those of the process if ``None``.
    """
    args = [_underscored(argument) for argument in (sys.argv[1:] if args is None else args)]
    try:
        auto_cli({"demo": demo}, args=args, prog="lightning-ifru", version=lightning_ifru.__version__)
    except UnlearningError as error:
        sys.stderr.write(f"lightning-ifru: {error}\n")
        return 1
    return 0


def _underscored(argument: str) -> str:
    """Spell an option as Lightning does, with underscores; most other programs use dashes, and both are accepted."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument[2:].partition("=")
    return f"--{option.replace('-', '_')}{equals}{value}"
