"""A model and its data, if they can forget."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch._dynamo import OptimizedModule

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.mixin import IFRUMixin


def check_pair(module: Any, data: Any, asking: str = "unlearn") -> tuple[IFRUMixin, InteractionDataModule]:
    """Return a module, without ``torch.compile`` around it, and its data if they can forget.

    ``asking`` is who wants to know.

    Raises:
        MisconfigurationException: they cannot; the message says what would.
    """
    if isinstance(module, OptimizedModule):
        module = module._orig_mod
    if not isinstance(module, IFRUMixin):
        raise MisconfigurationException(
            f"{asking} got {type(module).__name__} as model; wanted a LightningModule with IFRUMixin: "
            "class MyModel(IFRUMixin, LightningModule)."
        )
    if not isinstance(data, InteractionDataModule):
        raise MisconfigurationException(
            f"{asking} got {type(data).__name__} as datamodule; wanted the InteractionDataModule that the model was "
            "trained on."
        )
    return module, data
