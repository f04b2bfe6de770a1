"""Training anew without the forgotten, for where a correction of the weights is not to be trusted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import ObjectiveError, UnlearningError
from lightning_ifru.mixin import IFRUMixin


def check_retrainable(trainer: lightning.Trainer, module: IFRUMixin) -> None:
    """Refuse, before anything is solved, what could not be trained anew.

    Args:
        trainer: that would fit again.
        module: whose parameters would be drawn again.

    Raises:
        MisconfigurationException: the trainer has several processes, or limits nothing: neither epochs nor steps.
        ObjectiveError: a parameter belongs to no part with a ``reset_parameters`` that draws it.
    """
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"on_incomplete='retrain' got a trainer of {trainer.world_size} processes; wanted one: use devices=1, or "
            "on_incomplete='warn' or 'raise' and retrain yourself."
        )
    if trainer.max_epochs is None and trainer.max_steps == -1:
        raise MisconfigurationException(
            "on_incomplete='retrain' got a trainer without max_epochs; wanted that of the training, which is to be "
            "repeated: Trainer(max_epochs=...)."
        )
    # A copy in which every number is no number: what a reset leaves so, it does not draw.
    trial = copy.deepcopy(module).cpu()
    with torch.no_grad():
        for parameter in _trained(trial):
            parameter.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        redraw(trial)
    named = [(name, parameter) for name, parameter in trial.named_parameters() if parameter.requires_grad]
    left = [name for name, parameter in named if bool(parameter.isnan().any())]
    if left:
        raise ObjectiveError(
            f"on_incomplete='retrain' found nothing that draws the parameter '{left[0]}' of {type(module).__name__} "
            "anew; give the module or the part that has it a reset_parameters(), or choose on_incomplete='raise'."
        )


@torch.no_grad()
def redraw(module: torch.nn.Module) -> None:
    """Draw all trainable parameters anew by every part's ``reset_parameters``, inner parts first.

    So the outermost has the last word, as it has in most constructors. Frozen parameters, such as features, stay. The
    numbers are those of torch's generator as it stands: ``lightning.seed_everything`` before makes them the same every
    time.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Linear(1, 1))
        >>> _ = layer[0].weight.data.fill_(99.0)
        >>> redraw(layer)
        >>> bool(layer[0].weight.abs() <= 1)
        True
    """
    frozen = [(parameter, parameter.clone()) for parameter in module.parameters() if not parameter.requires_grad]
    for part in reversed([*module.modules()]):
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    for parameter, value in frozen:
        parameter.copy_(value)


def train_anew(trainer: lightning.Trainer, module: IFRUMixin, data: InteractionDataModule) -> None:
    """Draw the module's parameters anew and fit it, from epoch 0, to the data as they now stand.

    The trainer's own limits hold. Its checkpoint callbacks take no part: in place of an old file they would delete
    another one. What is left are the weights of the last epoch; after an error, whatever the block
    :func:`~lightning_ifru.transaction.all_or_nothing` around it undoes.

    Raises:
        UnlearningError: the fit has not come to its end.
    """
    module.release_graph()
    redraw(module)
    with _from_the_beginning(trainer):
        trainer.fit(module, datamodule=data)
        if not trainer.state.finished:
            raise UnlearningError(
                f"the retraining has ended early, after {trainer.current_epoch} epochs; nothing was changed: ask again."
            )


def _trained(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


@contextmanager
def _from_the_beginning(trainer: lightning.Trainer) -> Iterator[None]:
    """Give a trainer loops that have not run, and no checkpoint callbacks until the end."""
    loop, callbacks = trainer.fit_loop, trainer.callbacks  # type: ignore[attr-defined]
    loaded = trainer.ckpt_path
    fresh = type(loop)(trainer, min_epochs=loop.min_epochs, max_epochs=loop.max_epochs)
    fresh.epoch_loop.min_steps, fresh.epoch_loop.max_steps = loop.min_steps, loop.max_steps
    try:
        trainer.fit_loop = fresh
        trainer.callbacks = [each for each in callbacks if not isinstance(each, Checkpoint)]  # type: ignore[attr-defined]
        for callback in (each for each in callbacks if isinstance(each, EarlyStopping)):
            worst = torch.tensor(torch.inf if callback.monitor_op == torch.lt else -torch.inf)
            begun = {"wait_count": 0, "stopped_epoch": 0, "best_score": worst}
            callback.load_state_dict({**callback.state_dict(), **begun})
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        trainer._checkpoint_connector._ckpt_path = loaded  # whose file still remembers
