"""``Trainer.unlearn``: devices, strategies and checkpoints stay Lightning's own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_ifru.callback import IFRUCallback, as_request
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import UnlearningError
from lightning_ifru.keys import digest_key, has_key, key_file_in, key_name, throwaway_key
from lightning_ifru.ledger import is_result
from lightning_ifru.loading import loading_refusal, safe_loading, while_loading
from lightning_ifru.notices import warn
from lightning_ifru.outputs import check_target
from lightning_ifru.pairs import check_pair
from lightning_ifru.processes import check_keys, together
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.setups import check_setup
from lightning_ifru.transaction import all_or_nothing


def unlearn(
    trainer: lightning.Trainer,
    datamodule: InteractionDataModule | None = None,
    *,
    model: lightning.LightningModule | None = None,
    request: UnlearningRequest | str | Path | None = None,
    ckpt_path: str | Path | None = None,
    output: str | Path | None = None,
    dry_run: bool = False,
    weights_only: bool | None = None,
) -> UnlearningReport:
    """Forget what ``datamodule.forget`` has staged: correct the model and take the forgotten out of graph and data.

    Also ``Trainer.unlearn`` once the package is imported.

    A checkpoint that a trainer writes which has not fitted, but loaded one with ``ckpt_path``, holds the weights, the
    data and the ledger, yet epoch 0 and no optimizer state: a fit that resumes from it counts its epochs anew.

    Args:
        trainer: a trainer with one :class:`IFRUCallback`.
        datamodule: the data; by default those of the trainer.
        model: the model; by default that of the trainer, with the weights it has now.
        request: staged first, in addition to what is staged: a request, or the path of a request file.
        ckpt_path: a checkpoint to load first: a path, ``"best"`` or ``"last"``. What it has forgotten stays forgotten.
        output: the checkpoint to write, in place of one that is there; by default the trainer's checkpoint callbacks
            say where, and without any none is written. It appears as a whole, at once and last of all: until then
            nothing is changed, and from then on all is. A ledger stands beside it, see :mod:`~lightning_ifru.ledger`.
        dry_run: only say what would be forgotten and at what cost; nothing is changed.
        weights_only: ``False`` allows any Python object in the checkpoint, whose code is then run; by default nothing
            but tensors and plain values is loaded, whatever the version of Lightning.

    Returns:
        What happened. Where a checkpoint has been written, ``"best"`` and ``"last"`` now stand for it.

    Raises:
        MisconfigurationException: no callback or two, no model, no data, an unsuitable strategy or precision, a
            callback that averages weights.
        UnlearningError: the request, the data, the checkpoint or the objective is at fault; nothing was changed. On
            the other processes of the trainer a :class:`~lightning_ifru.errors.RankError`.
    """
    callback = _callback(trainer)
    module, data = check_pair(_model(trainer, model), datamodule or getattr(trainer, "datamodule", None))
    check_setup(trainer, module)
    reports: list[UnlearningReport] = []
    refused: list[UnlearningError] = []
    asked: UnlearningRequest | None = None

    def meet() -> None:
        # Lightning copies rank 0's weights to all, for which they need one shape.
        with together(trainer) as ranks:
            for refusal in refused:
                raise refusal
            check_keys(ranks, throwaway=rehearsed)
            sizes = [(name, getattr(part, "shape", None)) for name, part in module.state_dict().items()]
            ranks.check_equal({"numbers of users or items": [data.num_users, data.num_items], "models": sizes})

    def run() -> list[Any]:
        with together(trainer):
            if trainer.ckpt_path:
                _take_over(callback, data, trainer.strategy.load_checkpoint(trainer.ckpt_path))
                if asked is not None:  # the checkpoint knows what was forgotten before
                    data.forget(asked)
            _check_key(data, target)
            reports.append(callback.unlearn(trainer, module, data, transaction, target, dry_run))
        return []

    target = None if output is None or dry_run else Path(output)
    rehearsed = dry_run and not has_key()  # a rehearsal needs no key that stays
    with (
        throwaway_key() if rehearsed else nullcontext(),
        all_or_nothing(trainer, callback, module, data, undo=dry_run) as transaction,
        safe_loading(trainer, weights_only),
    ):
        try:
            asked = None if request is None else as_request(request)
            if asked is not None and ckpt_path is None:
                data.forget(asked)
            if data.pending is None and asked is None:
                data.removal()  # raises: nothing is staged
            if target is not None:
                if trainer.is_global_zero:
                    check_target(target, True, "output")
                    transaction.hold(target.parent)
                wanted = [one for one in (data.pending, asked) if one is not None]
                digest = functools.reduce(operator.or_, wanted).digest(digest_key())
                if ckpt_path is not None and is_result(target, digest, Path(ckpt_path), callback.method):
                    ckpt_path = target  # a run that broke off had come to its end
        except UnlearningError as refusal:
            if trainer.world_size == 1:
                raise
            refused.append(refusal)  # the other ranks learn of it as soon as they are connected
        try:
            with _instead(trainer, callback, meet, run):
                trainer.predict(model=module, datamodule=data, ckpt_path=ckpt_path, return_predictions=False)
        except Exception as error:
            if ckpt_path is None or not while_loading(error):
                raise
            raise loading_refusal(error, ckpt_path, module) from error
        finally:
            # Lightning keeps a checkpoint whose loading was refused, and would load it in the next run of any kind.
            trainer._checkpoint_connector._loaded_checkpoint = {}
        if callback.retrains():
            reports = [callback.retrain(trainer, module, data, reports[0])]
    # Under a key that nobody keeps, a digest is evidence of nothing.
    return replace(reports[0], digest="") if rehearsed else reports[0]


def _callback(trainer: lightning.Trainer) -> IFRUCallback:
    found = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, IFRUCallback)]
    if len(found) != 1:
        raise MisconfigurationException(
            f"unlearn found {len(found)} IFRUCallbacks on the trainer; wanted one: Trainer(callbacks=[IFRUCallback()])."
        )
    return found[0]


def _model(trainer: lightning.Trainer, model: lightning.LightningModule | None) -> lightning.LightningModule:
    found = model if model is not None else trainer.lightning_module
    if found is None:
        raise MisconfigurationException(
            "unlearn got no model and the trainer has none yet; pass model=, together with ckpt_path= if its weights "
            "are in a checkpoint."
        )
    return found


def _check_key(data: InteractionDataModule, target: Path | None) -> None:
    """Say what about the key of digests somebody should know before another checkpoint is written under it."""
    beside = None if target is None else key_file_in(target.parent)
    if beside is not None:
        warn(
            f"The key of the digests is in {beside}, beside the models, so that whoever gets them can find out who was "
            "forgotten; move it elsewhere.",
        )
    record = data.table.record
    others = record.under(digest_key()).others if record and has_key() else []
    if others:
        warn(
            f"What was forgotten before was recorded under the key named {' and '.join(map(repr, others))}, and the "
            f"present one is {key_name(digest_key())!r}: who was forgotten then is not recognised now; give all "
            "unlearnings of a model the same key.",
        )


def _take_over(callback: IFRUCallback, data: InteractionDataModule, checkpoint: Mapping[str, Any]) -> None:
    """Take over the checkpoint's ledger, which Lightning restores for fitting only, unless it remembers too much.

    The module has looked before its weights were loaded, unless its own ``on_load_checkpoint`` took the place of the
    mixin's.
    """
    data.check_checkpoint(checkpoint)
    states = checkpoint.get("callbacks", {})
    if callback.state_key in states:
        callback.load_state_dict(states[callback.state_key])


@contextmanager
def _instead(
    trainer: lightning.Trainer, callback: IFRUCallback, meet: Callable[[], None], run: Callable[[], list[Any]]
) -> Iterator[None]:
    """Run a function in place of the prediction loop, with everything that the trainer sets up around it.

    ``meet`` is called before, as soon as the trainer's processes are connected.
    """
    loop, setup = trainer.predict_loop, callback.setup
    # Before a run Lightning logs the hyper-parameters, and those of the erased are among them until it has ended.
    logs, trainer.enable_autolog_hparams = getattr(trainer, "enable_autolog_hparams", True), False

    def set_up(*args: Any, **kwargs: Any) -> None:
        meet()
        setup(*args, **kwargs)

    def run_now() -> list[Any]:
        trainer.enable_autolog_hparams = logs
        return run()

    loop.run, callback.setup = run_now, set_up  # type: ignore[method-assign]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        del loop.run, callback.setup
        trainer.enable_autolog_hparams = logs


lightning.Trainer.unlearn = unlearn  # type: ignore[attr-defined]
