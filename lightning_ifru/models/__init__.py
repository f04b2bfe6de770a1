"""Ready-made recommenders that can forget."""

from lightning_ifru.models.lightgcn import LightGCN
from lightning_ifru.models.matrix_factorization import MatrixFactorization

__all__ = ["LightGCN", "MatrixFactorization"]
