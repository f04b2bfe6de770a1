"""Checkpoints are data: how they are read, and what is said of one that cannot be loaded.

A checkpoint is a pickle, and a pickle is a program. None is run: torch's own reader of tensors and plain values takes
them, ``torch.load(weights_only=True)``, whatever the version of Lightning and its defaults.
"""

from __future__ import annotations

import inspect
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from traceback import walk_tb
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn import Module

from lightning_ifru.bounded import reason
from lightning_ifru.errors import UnlearningError


@contextmanager
def safe_loading(trainer: lightning.Trainer, weights_only: bool | None = None) -> Iterator[None]:
    """Let a trainer load, in the block, nothing from checkpoints but tensors and plain values.

    Args:
        trainer: loads checkpoints in the block, by itself or by ``trainer.strategy.load_checkpoint(path)``.
        weights_only: ``False`` allows every object, whose code is run; ``None`` and ``True`` do not.

    Raises:
        UnlearningError: in the block: a checkpoint cannot be read, holds other objects, or is none.
    """
    strategy, load = trainer.strategy, trainer.strategy.load_checkpoint

    def read(path: str | Path) -> Any:
        if "weights_only" in inspect.signature(load).parameters:
            return load(path, weights_only=weights_only is not False)
        # Lightning before 2.6 would load every object.
        return load(path) if weights_only is False else read_plain(path)

    def load_checked(checkpoint_path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(checkpoint_path, read)

    strategy.load_checkpoint = load_checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        del strategy.load_checkpoint


def read_plain(path: str | Path) -> Any:
    """Return what a file holds of tensors, on the CPU, and plain values; nothing in it is run."""
    with get_filesystem(path).open(str(path), "rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(path: str | Path, read: Callable[[str | Path], Any] = read_plain) -> dict[str, Any]:
    """Return a checkpoint, of which a mapping holds the callbacks' states, if there are any.

    Args:
        path: of the checkpoint.
        read: how to read it.

    Raises:
        UnlearningError: it cannot be read, holds more than tensors and plain values, or is no checkpoint.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.ckpt")
        >>> torch.save({"state_dict": {"weight": torch.ones(2)}}, path)
        >>> read_checkpoint(path)["state_dict"]
        {'weight': tensor([1., 1.])}
        >>> torch.save([1, 2], path)
        >>> read_checkpoint(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning_ifru.errors.UnlearningError: the checkpoint ...a.ckpt could not be loaded (it holds a list); give ...
    """
    try:
        if is_packed(path):
            raise _refused(path, "it holds packed parts")
        checkpoint = read(path)
    except (UnlearningError, MisconfigurationException):
        raise
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise loading_refusal(error, path) from error
    if not isinstance(checkpoint, dict):
        raise _refused(path, f"it holds a {type(checkpoint).__name__}")
    states = checkpoint.get("callbacks", {})
    if not (isinstance(states, Mapping) and all(isinstance(state, Mapping) for state in states.values())):
        raise _refused(path, "its callbacks are not states by name")
    return checkpoint


def data_state(path: str | Path, name: str, weights_only: bool | None = None) -> Mapping[str, Any]:
    """Return the state of the data in a checkpoint, without reading its weights; empty where there is none.

    Args:
        path: of the checkpoint; what is no file of this machine, as ``"last"``, has no state.
        name: of the class of the data.
        weights_only: ``False`` allows every object, whose code is run; ``None`` and ``True`` do not.

    Raises:
        UnlearningError: it cannot be read, holds other objects, or is no checkpoint.
    """
    if not Path(path).is_file():
        return {}

    def read(path: str | Path) -> Any:
        mapped = zipfile.is_zipfile(path)  # others, of old versions of torch, are read as a whole
        return torch.load(path, map_location="cpu", weights_only=weights_only is not False, mmap=mapped)

    state = read_checkpoint(path, read).get(name)
    return state if isinstance(state, Mapping) else {}


def while_loading(error: BaseException) -> bool:
    """Return whether Lightning was finding a checkpoint, reading it or putting it into a model as the error came up.

    Not so for errors that say by themselves what is wrong with it.
    """
    if isinstance(error, (UnlearningError, MisconfigurationException)):
        return False
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.endswith("trainer.connectors.checkpoint_connector") for name in frames)


def loading_refusal(error: Exception, path: str | Path, module: Module | None = None) -> UnlearningError:
    """Return what to raise for an error :func:`while_loading`: one sentence with what is wrong and what to do.

    Args:
        error: what was raised.
        path: of the checkpoint.
        module: what it was loaded into, if it came to that.

    Example:
        >>> str(loading_refusal(EOFError("Ran out of input"), "my.ckpt"))  # doctest: +ELLIPSIS
        'the checkpoint my.ckpt could not be loaded (EOFError: Ran out of input); give the path of one that ...'
    """
    said = re.sub(r"\x1b\[\d*m", "", str(error))  # torch writes paragraphs, in bold
    core = re.search("(?:WeightsUnpickler error: |(?=Trying to load unsupported ))(.*)", said)
    short = reason(ValueError(core[1] if core else said or type(error).__name__))
    if isinstance(error, UnpicklingError) and re.search(
        "unsupported (global|class)|unrecognized function", said, re.IGNORECASE
    ):
        return UnlearningError(
            f"the checkpoint {path} holds more than tensors and plain values, which is not loaded unasked ({short}); "
            "pass weights_only=False if you trust where it comes from."
        )
    if module is None or "loading state_dict" not in said:
        return _refused(path, f"{type(error).__name__}: {short}")
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return UnlearningError(
        f"the checkpoint {path} does not fit {type(module).__name__} with parameters {shapes}; give the checkpoint of "
        f"this model, or build the model as it was trained{_sizes(path)}. ({' '.join(said.split())})"
    )


def _sizes(path: str | Path) -> str:
    """Say of how many users and items a checkpoint is, if it does so itself: the source may have fewer by now."""
    if not Path(path).is_file():
        return ""
    for state in read_checkpoint(path).values():
        ids = [state.get(name) for name in ("user_ids", "item_ids")] if isinstance(state, Mapping) else []
        counts = [len(each) for each in ids if isinstance(each, list)]
        if len(counts) == 2:
            return f", with num_users={counts[0]} and num_items={counts[1]}"
    return ""


def _refused(path: str | Path, what: str) -> UnlearningError:
    return UnlearningError(
        f"the checkpoint {path} could not be loaded ({what}); give the path of one that Lightning has written."
    )


def is_packed(path: str | Path) -> bool:
    """Return whether parts of a file have to be unpacked: torch packs none, and they could be of any size."""
    if not (Path(path).is_file() and zipfile.is_zipfile(path)):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(part.file_size > part.compress_size for part in archive.infolist())
