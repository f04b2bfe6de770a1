"""The sizes of the ready-made models, refused where there is no model of that size."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from lightning_ifru.errors import UnlearningError

_LEAST = {"num_users": 1, "num_items": 1, "embedding_dim": 1, "num_layers": 0}


def check_sizes(model: object, **sizes: Any) -> None:
    """Refuse sizes that are no integers or too small.

    Args:
        model: the model being built.
        sizes: of ``num_users``, ``num_items``, ``embedding_dim`` and ``num_layers`` those that it has.

    Raises:
        UnlearningError: The sentence says which size of which model.

    Example:
        >>> from lightning_ifru.models import LightGCN
        >>> LightGCN(num_users=2, num_items=3, num_layers=-1)
        Traceback (most recent call last):
        lightning_ifru.errors.UnlearningError: LightGCN got num_layers=-1; wanted an integer of at least 0.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < _LEAST[name]:
            raise UnlearningError(
                f"{type(model).__name__} got {name}={size!r}; wanted an integer of at least {_LEAST[name]}."
            )
