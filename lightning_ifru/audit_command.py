"""``lightning-ifru audit``: model and data from a config file as LightningCLI's, checkpoints from the command line."""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console

from lightning_ifru.auditing import audit
from lightning_ifru.command_parser import (
    NO_TRAINER,
    OF_THE_FIT,
    CommandParser,
    add_flag,
    built,
    check_sizes,
    link_sizes,
)
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.ledger_check import check_ledger


def audit_command(name: str, args: list[str], description: str, usage: str) -> int:
    """Audit what the arguments ask for, print the report, and return 0; 3 where a ledger does not hold.

    Args:
        name: of the command.
        args: what follows it on the command line.
        description: for its help.
        usage: for its help.

    Raises:
        SystemExit: the arguments cannot be parsed, or ask for help.
        MisconfigurationException, UnlearningError: what they say cannot be done.
    """
    if any(argument.partition("=")[0] == "--ledger" for argument in args):
        return _check_ledger(name, args, description, usage)
    parser = _parser(f"lightning-ifru {name}", description, usage)
    for argument in args:
        option = argument.partition("=")[0]
        if option.startswith("--") and option[2:].partition(".")[0] in _OF_THE_FIT:
            parser.error(f"got {option}, which is for the fit and has no part in an audit; leave it out")
    given = parser.parse_args(args)
    if given.trainer is None:
        parser.error(NO_TRAINER)
    with redirect_stdout(sys.stderr) if given.json else nullcontext():
        with built("what the config describes"):
            made = parser.instantiate(given)
            trainer = lightning.Trainer(**made.trainer)
        check_sizes(given.model, made.data)
        report = audit(
            trainer,
            made.data,
            model=made.model,
            **{name: made[name] for name in ("original", "unlearned", "retrained", "paired", "output", "weights_only")},
        )
    if given.json:
        sys.stdout.write(report.to_json(indent=None) + "\n")
    else:
        Console().print(report)
    return 0


def _check_ledger(name: str, args: list[str], description: str, usage: str) -> int:
    """Check a ledger; neither model nor data are needed."""
    parser = CommandParser(prog=f"lightning-ifru {name}", description=description, usage=usage)
    parser.add_argument("--ledger", type=Path, required=True, help=_LEDGER)
    add_flag(parser, "restore", "take lines that were lost, and by no crash, from the checkpoints.")
    add_flag(parser, "json", "print what was found as one JSON object, and nothing else.")
    given = parser.parse_args(args)
    found = check_ledger(given.ledger, given.restore)
    sys.stdout.write(f"{found.to_json() if given.json else found}\n")
    return 0 if found.holds else 3


def _parser(prog: str, description: str, usage: str) -> CommandParser:
    parser = CommandParser(prog=prog, description=description, usage=usage)
    parser.add_argument("-c", "--config", action="config", help="file with model:, data: and trainer:, as of the fit.")
    parser.add_argument("--original", type=Path, required=True, help="checkpoint from before the unlearning.")
    parser.add_argument("--unlearned", type=Path, required=True, help="checkpoint from after it.")
    parser.add_argument(
        "--retrained",
        type=list[Path] | Path,
        default=[],
        help="checkpoints retrained without the forgotten, '[a.ckpt, b.ckpt]'; without, completeness is not measured.",
    )
    add_flag(parser, "paired", "the retrained models began with the original's seed, hence its weights and batches.")
    parser.add_argument("--output", type=Path, default=Path("audit"), help="folder, or path without .html and .json.")
    parser.add_argument(
        "--weights_only",
        type=bool | None,
        default=None,
        help="true and null load nothing but tensors and plain values from checkpoints, false any object.",
    )
    parser.add_argument("--ledger", type=Path | None, default=None, help=_LEDGER)
    add_flag(parser, "json", "print the report as one JSON object, and nothing else.")
    for key, kind in _OF_THE_FIT.items():
        parser.add_argument(f"--{key}", type=kind, default=None, help=SUPPRESS)
    parser.add_lightning_class_args(lightning.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(InteractionDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.set_defaults({"trainer.devices": 1, "trainer.logger": False})
    link_sizes(parser)
    return parser


_LEDGER = (
    "ledger.jsonl, or the folder that it is in: check that its lines follow from one another and agree with the "
    "checkpoints beside it; no other options but --restore and --json are taken then."
)
#: What else LightningCLI's config files hold, for which they are taken; as plain values: nothing is made of them.
_OF_THE_FIT: dict[str, Any] = {
    "seed_everything": int | bool | None,
    "optimizer": dict | None,
    "lr_scheduler": dict | None,
    "ckpt_path": str | None,
    "ifru": dict | None,
    **OF_THE_FIT,
}
