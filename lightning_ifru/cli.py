"""The command line: which subcommand was asked for, and the exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_ifru.audit_command import audit_command
from lightning_ifru.command_parser import CommandParser, add_flag
from lightning_ifru.demo import demo
from lightning_ifru.errors import UnlearningError
from lightning_ifru.scan_command import scan_command
from lightning_ifru.training_command import TrainingCommand
from lightning_ifru.versions import __version__


def main(args: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code: that of the command, 0 by default.

    1 with one sentence on the standard error if it refuses, 130 if it is interrupted, 143 if it is told to end.

    Args:
        args: the arguments; those of the process if ``None``.

    Raises:
        SystemExit: with 2, the arguments or the config cannot be parsed; with 0, they asked for help.
    """
    args = [_underscored(argument) for argument in (sys.argv[1:] if args is None else args)]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a module of one's own, named in a config beside it
    parser = _parser()
    if not args:
        parser.error(f"got no command, of {', '.join(_COMMANDS)}")
    name = parser.parse_args(args[:1]).subcommand
    usage, description, command = _COMMANDS[name]
    try:
        code = command(name, args[1:], description, f"lightning-ifru {name} {usage}")
    except (UnlearningError, MisconfigurationException) as error:
        sys.stderr.write(f"lightning-ifru: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    except SIGTERMException:
        sys.stderr.write("lightning-ifru: told to end.\n")
        return 128 + signal.SIGTERM
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's own way out
            return _interrupted()
        raise
    return code if isinstance(code, int) else 0


def demo_command(name: str, args: list[str], description: str, usage: str) -> None:
    """Run the demonstration."""
    parser = CommandParser(prog=f"lightning-ifru {name}", description=description, usage=usage)
    parser.add_argument("-c", "--config", action="config", help="file with these options.")
    add_flag(parser, "json", "print the report as one JSON object, and nothing else.")
    parser.add_function_arguments(demo)
    given = parser.parse_args(args)
    with redirect_stdout(sys.stderr) if given.json else nullcontext():
        report = demo(**{name: value for name, value in given.items() if name not in ("config", "json")})
    if given.json:
        sys.stdout.write(report.to_json(indent=None) + "\n")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-ifru", description=_DESCRIPTION, epilog=_EPILOG, version=__version__)
    commands = parser.add_subcommands(metavar="COMMAND", title="commands", description=None)
    for name, (_, description, _) in _COMMANDS.items():
        line = description.partition("\n")[0]
        commands.add_subcommand(name, CommandParser(description=line), help=line)
    return parser


def _interrupted() -> int:
    sys.stderr.write("lightning-ifru: interrupted.\n")
    return 130


def _underscored(argument: str) -> str:
    """Spell an option as Lightning does, with underscores; most other programs use dashes, and both are accepted."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument[2:].partition("=")
    return f"--{option.replace('-', '_')}{equals}{value}"


#: By name: the usage, what the command does (in a line, and then in a few), and what runs it.
_COMMANDS: dict[str, tuple[str, str, Callable[[str, list[str], str, str], object]]] = {
    "fit": (
        "--config run.yaml [--trainer.max_epochs 50] [--model.embedding_dim 64] [--ckpt_path last.ckpt] [...]",
        "Train a model on interactions.\n\n"
        "The config names model and data by class_path and init_args (--model.help LightGCN lists these); num_users\n"
        "and num_items come from the data. All that was used is written to config.yaml in the logger's folder, or in\n"
        "trainer.default_root_dir, which is the current folder by default, if there is no logger. With --ifru.request\n"
        "the request is applied when fitting ends; with --without it is taken out of the data before training, for a\n"
        "retrained model to compare with; with --ckpt_path the fit goes on from a checkpoint.",
        TrainingCommand,
    ),
    "validate": (
        "--config run.yaml --ckpt_path best.ckpt [--json] [...]",
        "Measure a checkpoint on the validation interactions that it has not forgotten.",
        TrainingCommand,
    ),
    "test": (
        "--config run.yaml --ckpt_path best.ckpt [--json] [...]",
        "Measure a checkpoint on the test interactions that it has not forgotten.",
        TrainingCommand,
    ),
    "predict": (
        "--config run.yaml --ckpt_path best.ckpt [--json] [...]",
        "Score the test interactions with a checkpoint.\n\n"
        "The scores go to --json, or to a BasePredictionWriter among trainer.callbacks.",
        TrainingCommand,
    ),
    "unlearn": (
        "--config run.yaml --ckpt_path best.ckpt --request forget.csv --output unlearned.ckpt [...]",
        "Forget users, items or interactions, and write a checkpoint without them.\n\n"
        "The checkpoint is complete: test, fit and a further unlearn take it as their --ckpt_path. What it has\n"
        "forgotten stays forgotten, also where the source still has it. A line of ledger.jsonl beside it says so\n"
        "without any id. The older checkpoints still remember, and are named on the standard error. The very same\n"
        "command given again, also after a crash, ends in the same state. --ifru.method.help lists the\n"
        "hyper-parameters of the method.",
        TrainingCommand,
    ),
    "audit": (
        "--config run.yaml --original best.ckpt --unlearned unlearned.ckpt [--retrained '[a.ckpt, b.ckpt]'] [...]",
        "Measure what an unlearned model still knows of the forgotten.\n\n"
        "Writes audit.html, to be printed or attached to the request, and audit.json. With --ledger ledger.jsonl and\n"
        "nothing else it checks that the ledger's lines follow from one another and agree with the checkpoints beside\n"
        "it, and adds what a process could not that was killed.",
        audit_command,
    ),
    "scan": (
        "PATH --request forget.csv [--user userId] [--item movieId] [--purge [--yes]]",
        "Look for what a folder still holds of the forgotten.\n\n"
        "Checkpoints that remember, ids in tables, logs and other files, and what a killed process has left; with\n"
        "advice on each, and a list of what could not be looked into. --purge deletes the checkpoints that remember,\n"
        "after it has asked, and only where one of the same model has forgotten.",
        scan_command,
    ),
    "demo": (
        "[--data ratings.csv] [--output_dir demo-output] [...]",
        "Train on ratings, forget some, and show what changed.",
        demo_command,
    ),
}
_DESCRIPTION = "Train recommenders, and have them forget."
_EPILOG = """\
exit codes:
  0    done
  1    refused, with one sentence on the standard error; nothing was written
  2    the command line or the config cannot be parsed
  3    residue was found, or a ledger does not hold
  130  interrupted
  143  told to end (SIGTERM)
Anything else is a fault of ours or of your own module, and ends in a traceback.

Options may be spelt with dashes or underscores. Every command takes --config FILE, several times if need be, of which
the later ones and then the options on the command line prevail, and --print_config, which writes such a file.
"""
