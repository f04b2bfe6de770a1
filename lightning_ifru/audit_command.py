"""``lightning-ifru audit``: model and data from a config file as LightningCLI's, checkpoints from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from lightning_ifru.auditing import audit
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError


def audit_parser() -> LightningArgumentParser:
    """Return the parser; ``num_users`` and ``num_items`` of the model come from the data where the file has none."""
    parser = LightningArgumentParser(description="Measure what an unlearned model still knows of the forgotten.")
    parser.add_argument("--config", action="config", help="file with model:, data: and trainer:, as of LightningCLI.")
    parser.add_argument("--original", type=Path, required=True, help="checkpoint from before the unlearning.")
    parser.add_argument("--unlearned", type=Path, required=True, help="checkpoint from after it.")
    parser.add_argument(
        "--retrained", type=list[Path] | Path, default=[], help="checkpoints retrained without the forgotten."
    )
    parser.add_argument("--paired", type=bool, default=False, help="whether these are paired with the original.")
    parser.add_argument("--output", type=Path, default=Path("audit"), help="folder, or path without .html and .json.")
    parser.add_argument(
        "--weights_only", type=bool | None, default=None, help="false allows any object in checkpoints."
    )
    for key, kind in _OF_THE_FIT.items():
        parser.add_argument(f"--{key}", type=kind, default=None, help="of the config file, for the fit; not used.")
    parser.add_lightning_class_args(lightning.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(InteractionDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(lightning.Trainer, "trainer")
    parser.set_defaults({"trainer.devices": 1, "trainer.logger": False})
    for size in _SIZES:
        parser.link_arguments(f"data.{size}", f"model.init_args.{size}", apply_on="instantiate")
    return parser


def run_audit(given: Namespace, made: Namespace) -> None:
    """Audit what was asked for and print the report.

    Args:
        given: the arguments as parsed.
        made: the same with model and data instantiated.

    Raises:
        DataError: the file gives the model another size than the data have.
    """
    for size in _SIZES:
        wanted: Any = given.model.get("init_args", Namespace()).get(size)
        found = getattr(made.data, size)
        if wanted not in (None, found):
            raise DataError(
                f"the config gives the model {size}={wanted}, and the data have {found}; leave it out, or name the "
                "source that the model was trained on."
            )
    report = audit(
        lightning.Trainer(**made.trainer),
        made.data,
        model=made.model,
        **{name: made[name] for name in ("original", "unlearned", "retrained", "paired", "output", "weights_only")},
    )
    Console().print(report)


_SIZES = ("num_users", "num_items")
#: What else LightningCLI writes into a config file; as plain values, so that nothing is made of them.
_OF_THE_FIT: dict[str, Any] = {
    "seed_everything": int | bool | None,
    "optimizer": dict | None,
    "lr_scheduler": dict | None,
    "ckpt_path": str | None,
}
