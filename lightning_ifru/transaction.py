"""All of an unlearning or none of it: what is undone if it fails, and from when on nothing is."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.node_buffers import saved_settings
from lightning_ifru.outputs import alone_in, sync, sync_folder, unfinished, writing


class Transaction:
    """One unlearning, to be undone if it fails until its checkpoint is in its place; see :func:`all_or_nothing`.

    Args:
        trainer: in which it runs.
        stack: of what ends with it: the lock of a folder, a file that is not in its place yet.
    """

    def __init__(self, trainer: lightning.Trainer, stack: ExitStack) -> None:
        self._trainer, self._stack = trainer, stack
        self._move: tuple[Path, Path, os.stat_result] | None = None
        self._settled = False

    @property
    def final(self) -> bool:
        """Whether nothing is undone any more: the checkpoint has its name."""
        if self._settled or self._move is None:
            return self._settled
        # A signal can come between the renaming and whatever would make a note of it: the file system knows.
        _, path, written = self._move
        try:
            return os.path.samestat(os.stat(path), written)
        except OSError:
            return False

    def check(self) -> None:
        """End here if the process was asked to; Lightning makes a note of the signal, and a solve has no batches.

        Raises:
            SIGTERMException: it was; as an exit code 143, which shells give a process that the signal has ended.
        """
        if self._trainer.received_sigterm:
            raise SIGTERMException(128 + signal.SIGTERM)

    def hold(self, folder: Path) -> None:
        """Keep other processes out of a folder until the end.

        Raises:
            DataError: one is in it already, or nothing can be written there.
        """
        self._stack.enter_context(alone_in(folder))

    def write(self, path: Path, save: Callable[[Path], None]) -> None:
        """Have a file written, and on the disk, that :meth:`publish` gives its name.

        Raises:
            DataError: it could not be written.
        """
        with writing(path):
            place = self._stack.enter_context(unfinished(path))
            save(place)
            sync(place)
            self._move = place, path, os.stat(place)

    def publish(self) -> None:
        """Give the file its name, after which nothing is undone.

        Raises:
            DataError: it could not be given its name.
        """
        self.check()
        assert self._move is not None
        place, path, _ = self._move
        with writing(path):
            os.replace(place, path)
        self._settled = True
        try:
            sync_folder(path.parent)
        except OSError as error:
            warnings.warn(f"{path} is written, but may not outlive a loss of power ({error}).", stacklevel=2)

    def settle(self) -> None:
        """Take note that another process has published."""
        self._settled = True


@contextmanager
def all_or_nothing(
    trainer: lightning.Trainer,
    callback: lightning.Callback,
    module: IFRUMixin,
    data: InteractionDataModule,
    *,
    undo: bool = False,
) -> Iterator[Transaction]:
    """Put everything back as it was if anything in the block fails before its end, or before it has published.

    Weights and buffers, the table, what is staged, the trainer's optimizers with their moments and its place in the
    training, the callback with its ledger and the other callbacks that a checkpoint would restore; with ``undo`` also
    if nothing fails.
    """
    weights, training = _Weights(module), _Training(trainer, callback)
    with ExitStack() as stack, data.revocable() as undo_data:
        transaction = Transaction(trainer, stack)
        try:
            yield transaction
        except BaseException:
            undo = True
            raise
        finally:
            with _uninterrupted():
                if transaction.final or not undo:
                    drop_loaders(trainer)
                else:
                    weights.put_back()
                    undo_data()
                    training.put_back()


def drop_loaders(trainer: lightning.Trainer) -> None:
    """Let go of the loaders of past runs, which hold what was forgotten; every run asks for its own anew."""
    fitting = trainer.fit_loop
    for loop in (fitting, fitting.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
        loop._combined_loader = None


class _Weights:
    """A module's weights, buffers and hyper-parameters as they are now."""

    def __init__(self, module: IFRUMixin) -> None:
        self._module, self._device, self._dtype = module, module.device, module.dtype
        self._tensors = {name: tensor.detach().clone() for name, tensor in _tensors(module)}
        self._settings = [(settings, dict(settings)) for settings in saved_settings(module)]

    def put_back(self) -> None:
        module = self._module
        with torch.inference_mode(False), torch.no_grad():
            if module.dtype != self._dtype:  # the trainer has converted it
                module.to(self._dtype)
            for name, tensor in _tensors(module):
                if name in self._tensors:
                    tensor.data = tensor.data.to(self._tensors[name].dtype)
                    tensor.copy_(self._tensors[name])
        module.to(self._device)
        module.release_graph()
        for settings, known in self._settings:
            settings.update(known)


class _Training:
    """How far a trainer has trained, with what optimizers, and what its callbacks know of it now."""

    def __init__(self, trainer: lightning.Trainer, callback: lightning.Callback) -> None:
        strategy = trainer.strategy
        self._trainer, self._loop = trainer, trainer.fit_loop
        self._optimizers, self._schedules = strategy.optimizers, strategy.lr_scheduler_configs
        self._moments = [(optimizer, dict(optimizer.state)) for optimizer in strategy.optimizers]
        # What no checkpoint restores is not of the training: a progress bar, a note of the error.
        self._attributes = [
            (one, _unshared(vars(one)))
            for one in trainer.callbacks  # type: ignore[attr-defined]
            if one is callback or isinstance(one, Checkpoint) or is_overridden("state_dict", one)
        ]

    def put_back(self) -> None:
        trainer = self._trainer
        trainer.fit_loop = self._loop
        trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = self._optimizers, self._schedules
        for optimizer, state in self._moments:
            optimizer.state.clear()
            optimizer.state.update(state)
        for one, known in self._attributes:
            vars(one).clear()
            vars(one).update(known)


def _unshared(value: Any) -> Any:
    """The same values in dictionaries and lists of their own, for callbacks add to theirs."""
    if type(value) is dict:
        return {name: _unshared(each) for name, each in value.items()}
    return [_unshared(each) for each in value] if type(value) is list else value


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let no second Ctrl-C break off what the first has begun."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:  # no signals, or none of Python's
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
