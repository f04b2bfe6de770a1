"""Checkpoints as Lightning loads them: by which arguments, and what is said of one that cannot be loaded."""

from __future__ import annotations

import inspect
import re
import struct
from pathlib import Path
from pickle import UnpicklingError

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn import Module

from lightning_ifru.errors import UnlearningError

#: What loading a checkpoint raises: no such file, no checkpoint, another shape, no "best" yet.
LOADING_ERRORS = (OSError, EOFError, UnpicklingError, LookupError, RuntimeError, ValueError, struct.error)


def loading_arguments(trainer: lightning.Trainer, weights_only: bool | None) -> dict[str, bool]:
    """Return the arguments for loading a checkpoint; Lightning before 2.6 takes none and allows every object.

    Args:
        trainer: loads it, by ``strategy.load_checkpoint`` or as the ``ckpt_path`` of a run.
        weights_only: whether nothing but tensors and plain values is allowed; ``None`` is Lightning's default.

    Raises:
        MisconfigurationException: ``weights_only=True`` with a Lightning that cannot keep it.

    Example:
        >>> loading_arguments(lightning.Trainer(logger=False, accelerator="cpu"), None)
        {}
    """
    if "weights_only" in inspect.signature(trainer.predict).parameters:
        return {} if weights_only is None else {"weights_only": weights_only}
    if weights_only:
        raise MisconfigurationException(
            f"got weights_only=True, which Lightning {lightning.__version__} cannot keep; leave it out, or install "
            "Lightning 2.6 or later."
        )
    return {}


def loading_refusal(error: Exception, path: str | Path, module: Module) -> UnlearningError:
    """Return what to raise for one of :data:`LOADING_ERRORS`: one sentence with what is wrong and what to do.

    Args:
        error: what was raised.
        path: of the checkpoint.
        module: what it was loaded into.

    Example:
        >>> str(loading_refusal(EOFError("Ran out of input"), "my.ckpt", Module()))  # doctest: +ELLIPSIS
        'the checkpoint my.ckpt could not be loaded (EOFError: Ran out of input); give the path of one that ...'
    """
    reason = " ".join(str(error).split())
    # Torch writes paragraphs, in bold.
    first = re.sub(r"\x1b\[\d*m", "", str(error).strip().partition("\n")[0])[:200].strip()
    if isinstance(error, UnpicklingError) and re.search("Unsupported (global|class)|unrecognized function", reason):
        return UnlearningError(
            f"the checkpoint {path} holds more than tensors and plain values, which is not loaded unasked ({first}); "
            "pass weights_only=False if you trust where it comes from."
        )
    if "loading state_dict" not in reason:
        return UnlearningError(
            f"the checkpoint {path} could not be loaded ({type(error).__name__}: {first}); give the path of one that "
            "Lightning has written."
        )
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return UnlearningError(
        f"the checkpoint {path} does not fit {type(module).__name__} with parameters {shapes}; give the checkpoint of "
        f"this model, or build the model as it was trained. ({reason})"
    )
