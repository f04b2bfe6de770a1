"""The callback that carries the method on a Trainer, applies requests, and remembers what was forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.influence import IFRU
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.newton import Progress as Report
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.unlearning import Unlearning, evaluation_mode


class IFRUCallback(lightning.Callback):
    """Carries an unlearning method on a ``Trainer``: ``Trainer(callbacks=[IFRUCallback(IFRU())])``.

    With it on the trainer, ``trainer.unlearn(datamodule)`` applies what ``datamodule.forget`` has staged. With a
    ``request`` it does so by itself when fitting ends. Its state in the checkpoint is the ledger: for each unlearning
    a keyed digest of the request, counts, time and outcome, and no id.

    Args:
        method: the method and its hyper-parameters.
        request: applied when fitting ends: a request, or the path of a request file. Read and checked when fitting
            starts.

    Raises:
        MisconfigurationException: the method is no ``IFRU``.

    Example:
        >>> IFRUCallback(IFRU(max_steps=2)).state_dict()
        {'ledger': []}
    """

    def __init__(self, method: IFRU | None = None, request: UnlearningRequest | str | Path | None = None) -> None:
        if not (method is None or isinstance(method, IFRU)):
            raise MisconfigurationException(
                f"IFRUCallback got {method!r} as method; wanted an IFRU: IFRUCallback(IFRU(...), request=...)."
            )
        self.method = IFRU() if method is None else method
        self.request = request
        self.ledger: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the ledger."""
        return {"ledger": [dict(entry) for entry in self.ledger]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's ledger, keeping what was forgotten in this process since."""
        loaded = [dict(entry) for entry in state_dict["ledger"]]
        self.ledger = loaded + [entry for entry in self.ledger if entry not in loaded]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse before training what could not be forgotten after it."""
        if self.request is None:
            return
        check_no_averages(trainer)
        _, data = check_pair(pl_module, getattr(trainer, "datamodule", None))
        self.request = as_request(self.request)
        data.table.plan(self.request if data.pending is None else data.pending | self.request)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Apply :attr:`request`, once."""
        if self.request is None:
            return
        module, data = check_pair(pl_module, getattr(trainer, "datamodule", None))
        staged, device = data.pending, module.device  # Lightning has taken the model off the accelerator by now
        data.forget(as_request(self.request))
        module.to(trainer.strategy.root_device)
        try:
            self.unlearn(trainer, module, data)
        except BaseException:
            unstage(data, staged)
            raise
        finally:
            module.to(device)
        self.request = None

    def unlearn(
        self, trainer: lightning.Trainer, module: IFRUMixin, data: InteractionDataModule, dry_run: bool = False
    ) -> UnlearningReport:
        """Apply the staged request of ``data`` to ``module``, inside of a running trainer.

        Use ``trainer.unlearn``, which sets up devices and loads checkpoints.
        """
        clock = time.perf_counter()
        with evaluation_mode(module):
            unlearning = Unlearning.of(module, data, self.method)
            if dry_run:
                return unlearning.preview()
            with _progress(trainer, self.method) as advance:
                update = unlearning.solve(advance)
            report = unlearning.commit(update, clock)
        if update.residual_before and not update.steps:
            rank_zero_warn(
                "No step lowered the residual: the data and the graph are without the forgotten, the parameters are as "
                "they were; retrain, or try IFRU(curvature='gauss-newton')."
            )
        self.ledger = [*self.ledger, self._entry(report)]
        # Adam's moments are averages of the gradients of what was forgotten.
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        report = self._write_checkpoint(trainer, report)
        for logger in trainer.loggers:
            logger.log_metrics(report.scalars(), step=trainer.global_step)
            logger.save()
        return report

    def _entry(self, report: UnlearningReport) -> dict[str, Any]:
        kept = ("digest", "num_forgotten", "num_users_erased", "num_items_erased", "residual_before", "residual_after")
        return {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **{name: getattr(report, name) for name in kept},
            "method": asdict(self.method),
        }

    def _write_checkpoint(self, trainer: lightning.Trainer, report: UnlearningReport) -> UnlearningReport:
        """Write a checkpoint without the forgotten, and make it the one that 'best' and 'last' stand for."""
        callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)]
        if not callbacks or getattr(trainer, "fast_dev_run", False):
            return report
        path = _unused(_directory(trainer), _stem(callbacks), len(self.ledger))
        older: list[str] = []
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                known = [*callback.best_k_models, callback.best_model_path, callback.last_model_path]
                older += [p for p in known if p and p not in older and Path(p).exists()]
                # No score: none was measured on the validation data as it now is.
                callback.best_k_models, callback.kth_best_model_path = {}, ""
                callback.best_model_score, callback.current_score, callback.kth_value = None, None, _worst(callback)
                callback.best_model_path = str(path)
                callback.last_model_path = str(path) if callback.save_last else ""
        trainer.save_checkpoint(path, weights_only=False)
        if older:
            rank_zero_info(f"Older checkpoints still hold what was forgotten; delete them: {', '.join(older)}")
        return replace(report, checkpoint=str(path), older_checkpoints=older)


def check_pair(module: Any, data: Any) -> tuple[IFRUMixin, InteractionDataModule]:
    """Return a module and its data if they can forget.

    Raises:
        MisconfigurationException: they cannot; the message says what would.
    """
    if not isinstance(module, IFRUMixin):
        raise MisconfigurationException(
            f"unlearn got {type(module).__name__} as model; wanted a LightningModule with IFRUMixin: "
            "class MyModel(IFRUMixin, LightningModule)."
        )
    if not isinstance(data, InteractionDataModule):
        raise MisconfigurationException(
            f"unlearn got {type(data).__name__} as datamodule; wanted the InteractionDataModule that the model was "
            "trained on."
        )
    return module, data


def check_no_averages(trainer: lightning.Trainer) -> None:
    """Refuse callbacks that keep averages of past weights, in which the forgotten would live on.

    Raises:
        MisconfigurationException: there is one.
    """
    # WeightAveraging, the base of EMAWeightAveraging, came with Lightning 2.6.
    kinds = [getattr(lightning_callbacks, n, None) for n in ("StochasticWeightAveraging", "WeightAveraging")]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, tuple(kind for kind in kinds if kind is not None)):
            raise MisconfigurationException(
                f"unlearn found {type(callback).__name__} on the trainer, whose averaged weights would still remember; "
                "wanted a trainer without it: unlearn from the checkpoint with a trainer of its own, ckpt_path=..."
            )


def unstage(data: InteractionDataModule, staged: UnlearningRequest | None) -> None:
    """Stage again what was staged before a failure, unless it has been forgotten and only the writing failed."""
    if data.pending is not None:
        data.discard()
        if staged is not None:
            data.forget(staged)


def as_request(request: UnlearningRequest | str | Path) -> UnlearningRequest:
    """Return a request, read from its file if it is a path."""
    return UnlearningRequest.from_file(request) if isinstance(request, (str, Path)) else request


def _directory(trainer: lightning.Trainer) -> Path:
    first = trainer.checkpoint_callback
    if isinstance(first, ModelCheckpoint) and first.dirpath:
        return Path(first.dirpath)
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def _stem(callbacks: list[Checkpoint]) -> str:
    """The name's beginning; Lightning takes the newest file whose name begins with 'last' for ``"last"``."""
    last = [c.CHECKPOINT_NAME_LAST for c in callbacks if isinstance(c, ModelCheckpoint) and c.save_last]
    return f"{last[0]}-unlearned" if last else "unlearned"


def _unused(directory: Path, stem: str, number: int) -> Path:
    while (path := directory / f"{stem}-{number}.ckpt").exists():
        number += 1
    return path


def _worst(callback: ModelCheckpoint) -> torch.Tensor:
    return torch.tensor(torch.inf if callback.mode == "min" else -torch.inf)


@contextmanager
def _progress(trainer: lightning.Trainer, method: IFRU) -> Iterator[Report | None]:
    """Show a bar for the solve where the trainer shows bars and somebody is looking."""
    console = Console(stderr=True)
    if trainer.progress_bar_callback is None or not trainer.is_global_zero or not console.is_terminal:
        yield None
        return
    columns = TextColumn("Unlearning"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as bar:
        # Few solves need all their products and steps; the bar then ends early.
        task = bar.add_task("influence", total=method.probes + 2 * method.max_steps * method.cg_iterations)
        yield lambda text: bar.update(task, advance=1, description=text)
