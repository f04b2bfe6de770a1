"""Which software an unlearning or an audit was done with."""

from __future__ import annotations

import platform

import lightning
import torch
import torch_geometric
import torchmetrics

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the version of each package that numbers depend on, and Python's.

    Example:
        >>> sorted(versions())
        ['lightning', 'lightning-ifru', 'python', 'torch', 'torch-geometric', 'torchmetrics']
    """
    return {
        "lightning-ifru": __version__,
        "lightning": lightning.__version__,
        "torch": str(torch.__version__),
        "torch-geometric": torch_geometric.__version__,
        "torchmetrics": torchmetrics.__version__,
        "python": platform.python_version(),
    }
