"""Recommendation unlearning with influence functions, as a PyTorch Lightning plugin.

Importing the package adds ``unlearn`` to ``lightning.pytorch.Trainer``.
"""

from lightning_ifru.audit_report import AuditReport
from lightning_ifru.auditing import audit
from lightning_ifru.callback import IFRUCallback
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import (
    DataError,
    DegradationError,
    IncompleteError,
    ObjectiveError,
    RankError,
    RequestError,
    SolverError,
    UnlearningError,
)
from lightning_ifru.influence import IFRU
from lightning_ifru.losses import Loss
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.trainer import unlearn
from lightning_ifru.verdict import Tolerance
from lightning_ifru.versions import __version__ as __version__

__all__ = [
    "IFRU",
    "AuditReport",
    "DataError",
    "DegradationError",
    "IFRUCallback",
    "IFRUMixin",
    "IncompleteError",
    "InteractionDataModule",
    "Loss",
    "ObjectiveError",
    "RankError",
    "RequestError",
    "SolverError",
    "Tolerance",
    "UnlearningError",
    "UnlearningReport",
    "UnlearningRequest",
    "audit",
    "unlearn",
]
