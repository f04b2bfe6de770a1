"""What a checkpoint says of its data, looked at before it is believed: the file may be from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.errors import DataError
from lightning_ifru.ids import id_text

#: What every state of the data holds; one that lists its held-out pairs has no cuts and some more.
STATE_KEYS = {
    *("user_ids", "item_ids", "withdrawn_items", "seed", "cuts"),
    *("num_rows", "forgotten", "num_forgotten", "forgotten_record", "fingerprint"),
}


def check_state(state: Any) -> None:
    """Refuse a state of the data whose parts are not of the kinds and in the ranges that a table writes.

    Tensors are as long as what the file holds of them: one number that stands for a trillion is refused.

    Raises:
        DataError: it is none, and the message names the part and no id.

    Example:
        >>> check_state({"user_ids": ["a"]})
        Traceback (most recent call last):
        lightning_ifru.errors.DataError: the state of the data lacks 'cuts'; pass one that state() has returned.
    """
    if not isinstance(state, Mapping):
        raise DataError(
            f"the state of the data is a {type(state).__name__}; pass one that state() has returned, a mapping."
        )
    absent = sorted(STATE_KEYS - set(state))
    if absent:
        raise DataError(f"the state of the data lacks {absent[0]!r}; pass one that state() has returned.")
    wanted = {
        "user_ids": _are_ids(state["user_ids"]),
        "item_ids": _are_ids(state["item_ids"]),
        "seed": type(state["seed"]) is int,
        "cuts": state["cuts"] is None or _are_cuts(state["cuts"]),
        **{name: _is_whole(state[name]) for name in ("num_rows", "num_forgotten", "fingerprint")},
    }
    _refuse(wanted)
    users, items, rows = len(state["user_ids"]), len(state["item_ids"]), state["num_rows"]
    wanted = {
        "withdrawn_items": _are_numbers(state["withdrawn_items"], items),
        "forgotten": _are_numbers(state["forgotten"], rows),
        **{name: _are_numbers(state[name]) for name in ("val_pairs", "test_pairs") if name in state},
        "forgotten_record": _is_record(state["forgotten_record"], users, items),
    }
    _refuse(wanted)
    if "forgotten_trained" in state:
        trained = state["forgotten_trained"]
        whole = _is_list(trained, torch.bool) and len(trained) == len(state["forgotten"])
        _refuse({"forgotten_trained": whole})


def _refuse(wanted: Mapping[str, bool]) -> None:
    wrong = [name for name, right in wanted.items() if not right]
    if wrong:
        raise DataError(
            f"the state of the data has as {wrong[0]!r} something else than a table writes; give a checkpoint as it "
            "was written."
        )


def _are_ids(values: Any) -> bool:
    if not isinstance(values, list) or not {*map(type, values)} <= {str, int, float, type(None)}:
        return False
    texts = [id_text(value) for value in values if value is not None]
    return len({*texts}) == len(texts)


def _are_cuts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == 2 and all(map(_is_whole, values))


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _is_list(tensor: Any, dtype: torch.dtype, ndim: int = 1) -> bool:
    """Whether something is a tensor whose every element stands in the file."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.dtype == dtype
        and tensor.ndim == ndim
        and tensor.is_contiguous()
    )


def _are_numbers(tensor: Any, below: int | None = None) -> bool:
    if not _is_list(tensor, torch.int64):
        return False
    return below is None or not len(tensor) or (int(tensor.min()) >= 0 and int(tensor.max()) < below)


def _is_record(record: Any, users: int, items: int) -> bool:
    """Whether its tensors are what they should be; what is missing is said by whoever reads it."""
    if not isinstance(record, Mapping):
        return False
    for name, part in record.items():
        if not isinstance(name, str) or not isinstance(part, Mapping):
            return False
        for place, below in (("users_at", users), ("items_at", items)):
            if place in part and not _are_numbers(part[place], below):
                return False
        if not all(_is_list(part[one], torch.uint8, 2) for one in ("pairs", "users", "items") if one in part):
            return False
    return True
