"""Ids of a request that the next checkpoint would hold, or that the one just written holds: it is not published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.keys import digest_key
from lightning_ifru.needles import Needles
from lightning_ifru.node_buffers import saved_settings
from lightning_ifru.opaque import read_all
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.scan_checkpoints import hits_in, look_at
from lightning_ifru.scan_files import look_into
from lightning_ifru.scan_values import Hit

if TYPE_CHECKING:
    from lightning_ifru.datamodule import InteractionDataModule
    from lightning_ifru.mixin import IFRUMixin

#: Numbers of a buffer that is searched before a solve; larger ones, and what only a file shows, wait for the file.
_MOST = 1 << 20


def check_leftovers(module: IFRUMixin, data: InteractionDataModule) -> None:
    """Refuse, before any work, a module or a trainer whose checkpoint would hold ids of the staged request.

    That is what can be seen without writing one; :func:`check_written` sees the rest.

    Args:
        module: the model, in a trainer or not.
        data: with the staged request.

    Raises:
        ObjectiveError: it would; the message says where.
    """
    if data.pending is None:
        return
    trainer = getattr(module, "_trainer", None)
    callbacks = trainer.callbacks if trainer is not None else ()
    buffers = {
        name: buffer
        for name, buffer in module.named_buffers()
        if buffer.numel() <= _MOST and not (buffer.is_floating_point() or buffer.is_complex())
    }
    state = {"state_dict": buffers, "callbacks": {one.state_key: one.state_dict() for one in callbacks}}
    needles = Needles(data.pending)
    for settings in saved_settings(module) or [{}]:
        _refuse(hits_in(state | {"hyper_parameters": settings}, needles), needles)


def check_written(path: Path, request: UnlearningRequest) -> None:
    """Refuse a checkpoint in which a scan for a request would find anything.

    What the data say of its entries counts as well; what is no file of torch's is searched byte by byte.

    Args:
        path: of the checkpoint, which was written after the request was forgotten.
        request: what was forgotten.

    Raises:
        ObjectiveError: the request is still in it; the message says where.
    """
    needles = Needles(request)
    try:
        hits = look_at(path, read_all(path), needles, digest_key()).hits
    except Exception:  # what a module, a callback or a plugin has put there can be anything
        hits = list(_in_bytes(path, needles))
    _refuse(hits, needles)


def _in_bytes(path: Path, needles: Needles) -> Iterator[Hit]:
    with path.open("rb") as file:
        for hit in look_into(path.name, file, needles):
            if isinstance(hit, Hit):
                yield hit


def _refuse(hits: Iterable[Hit], needles: Needles) -> None:
    for hit in hits:
        pair = all(needles.keys[number][0] == "interaction" for number in hit.found)
        remedy = _REMEDIES.get(
            hit.where.partition(".")[0], "take it out of the state_dict or on_save_checkpoint it is of"
        )
        raise ObjectiveError(
            f"{'a pair' if pair else 'an id'} that is to be forgotten would be written into the checkpoint, at "
            f"{hit.where!r}; {remedy}."
        )


_REMEDIES = {
    "hyper_parameters": "leave it out: save_hyperparameters(ignore=[...])",
    "datamodule_hyper_parameters": "leave it out: save_hyperparameters(ignore=[...])",
    "callbacks": "take it out of that callback's state_dict(), or of the path that stands there",
    "state_dict": "leave that buffer or parameter out, or store positions and no ids",
}
