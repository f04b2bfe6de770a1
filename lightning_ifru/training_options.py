"""The options that ``fit`` and ``unlearn`` have beside LightningCLI's own."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from lightning_ifru.command_parser import OF_THE_FIT, add_flag

#: What a figure can be drawn as.
DRAWN, DRAWN_SAID = (".pdf", ".png", ".svg"), ".pdf, .png or .svg"


def add_options(parser: LightningArgumentParser, command: str) -> None:
    """Add a command's own options to its parser."""
    add_flag(parser, "json", _ANSWERS[command])
    if command == "fit":
        parser.add_argument(
            "--without",
            type=OF_THE_FIT["without"],
            default=None,
            help="request file of what to take out of the data before training, or several, '[a.csv, b.csv]'; with "
            "the original's seed this is the paired retraining for audit --retrained.",
        )
        parser.add_argument(
            "--report", type=str | None, default=None, help="file to write the report on --ifru.request to, as JSON."
        )
        add_flag(parser, "overwrite", "replace --report if it exists; without it that is refused.")
    if command == "unlearn":
        for name, what in _PATHS.items():
            parser.add_argument(f"--{name}", type=str | None, default=None, help=what)
        add_flag(
            parser,
            "overwrite",
            "replace --output, --report and --figure if they exist; else they are refused, unless --output is what the "
            "same command has written before.",
        )
        add_flag(parser, "dry_run", "only say what would be forgotten and at what cost; no checkpoint is written.")


_PATHS = {
    "ckpt_path": "checkpoint to unlearn from; it is left as it is.",
    "request": "file that says what to forget: CSV with columns user and item, or JSON with users, items and "
    "interactions, in the data's own ids.",
    "output": "the checkpoint to write, with weights, data and ledger; nothing is written if anything fails.",
    "report": "file to write the report to, as JSON, after the checkpoint.",
    "figure": f"file to draw the report into, of which the name ends with {DRAWN_SAID}.",
}
_ANSWERS = {
    "fit": "print one JSON object, with the metrics logged last, best_checkpoint, epochs and unlearn, the report on "
    "--ifru.request, and nothing else.",
    "validate": "print one JSON object, the metrics, and nothing else.",
    "test": "print one JSON object, the metrics, and nothing else.",
    "predict": "print one JSON object, with predictions: a list of what each batch gave.",
    "unlearn": "print the report as one JSON object instead of a table.",
}
