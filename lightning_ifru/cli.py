"""The command line: ``lightning-ifru demo`` and ``lightning-ifru audit``."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException

import lightning_ifru
from lightning_ifru.audit_command import audit_parser, run_audit
from lightning_ifru.demo import demo
from lightning_ifru.errors import UnlearningError


def main(args: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, or 1 with one sentence on the standard error.

    Args:
        args: the arguments; those of the process if ``None``.
    """
    args = [_underscored(argument) for argument in (sys.argv[1:] if args is None else args)]
    parser = _parser()
    given = parser.parse_args(args)
    try:
        # jsonargparse before 4.49 knows the older name only.
        made = getattr(parser, "instantiate", parser.instantiate_classes)(given)
        if given.subcommand == "demo":
            demo(**{name: value for name, value in made.demo.items() if name != "config"})
        else:
            run_audit(given.audit, made.audit)
    except (UnlearningError, MisconfigurationException) as error:
        sys.stderr.write(f"lightning-ifru: {error}\n")
        return 1
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="lightning-ifru", version=lightning_ifru.__version__)
    commands = parser.add_subcommands()
    demonstration = ArgumentParser(description="Train on ratings, forget some, and show what changed.")
    demonstration.add_argument("--config", action="config", help="file with these options.")
    demonstration.add_function_arguments(demo)
    for name, command in (("demo", demonstration), ("audit", audit_parser())):
        commands.add_subcommand(name, command, help=command.description)
    return parser


def _underscored(argument: str) -> str:
    """Spell an option as Lightning does, with underscores; most other programs use dashes, and both are accepted."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument[2:].partition("=")
    return f"--{option.replace('-', '_')}{equals}{value}"
