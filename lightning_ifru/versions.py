"""Which software an unlearning or an audit was done with."""

from __future__ import annotations

import platform

import lightning
import torch
import torch_geometric
import torchmetrics

import lightning_ifru


def versions() -> dict[str, str]:
    """Return the version of each package that numbers depend on, and Python's.

    Example:
        >>> sorted(versions())
        ['lightning', 'lightning-ifru', 'python', 'torch', 'torch-geometric', 'torchmetrics']
    """
    return {
        "lightning-ifru": lightning_ifru.__version__,
        "lightning": lightning.__version__,
        "torch": str(torch.__version__),
        "torch-geometric": torch_geometric.__version__,
        "torchmetrics": torchmetrics.__version__,
        "python": platform.python_version(),
    }
