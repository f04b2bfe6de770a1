"""Ids of a request in what a checkpoint holds beside weights and data: settings, callbacks' states, buffers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.needles import Needles
from lightning_ifru.node_buffers import saved_settings
from lightning_ifru.scan_values import look_through

if TYPE_CHECKING:
    from lightning_ifru.datamodule import InteractionDataModule
    from lightning_ifru.mixin import IFRUMixin

#: Numbers of a buffer that is searched: what is larger holds features, and searching it would take longer than a solve.
_MOST = 1 << 20


def check_leftovers(module: IFRUMixin, data: InteractionDataModule) -> None:
    """Refuse a module or a trainer whose next checkpoint would hold ids of the staged request.

    Args:
        module: the model, in a trainer or not.
        data: with the staged request.

    Raises:
        ObjectiveError: it would; the message says where.
    """
    if data.pending is None:
        return
    needles = Needles(data.pending)
    for what, remedy, value in _written(module):
        for hit in look_through(value, needles):
            raise ObjectiveError(
                f"{what} {'a pair' if _is_pair(needles, hit.found) else 'an id'} that is to be forgotten, at "
                f"{hit.where!r}, and would be written into the checkpoint; {remedy}."
            )


def _written(module: IFRUMixin) -> Iterator[tuple[str, str, Any]]:
    name = type(module).__name__
    for settings in saved_settings(module):
        # One number below "users" is how many there are.
        value = {key: each for key, each in settings.items() if not isinstance(each, (int, float))}
        yield f"the hyper-parameters of {name} hold", "leave it out: save_hyperparameters(ignore=[...])", value
    trainer = getattr(module, "_trainer", None)
    for callback in trainer.callbacks if trainer is not None else ():
        who = type(callback).__name__
        yield f"the state of {who} holds", f"take it out of {who}.state_dict()", callback.state_dict()
    for path, buffer in module.named_buffers():
        if buffer.numel() <= _MOST and not (buffer.is_floating_point() or buffer.is_complex()):
            # No name says that these are ids: below "users" buffers have positions.
            yield f"the buffer '{path}' of {name} holds", "leave it out, or store positions and no ids", [buffer]


def _is_pair(needles: Needles, found: Any) -> bool:
    return all(needles.keys[number][0] == "interaction" for number in found)
