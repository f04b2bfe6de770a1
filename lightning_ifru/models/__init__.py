"""Ready-made recommenders that can forget."""

from lightning_ifru.models.lightgcn import LightGCN
from lightning_ifru.models.matrix_factorization import MatrixFactorization
from lightning_ifru.models.neumf import NeuMF
from lightning_ifru.models.ngcf import NGCF

__all__ = ["NGCF", "LightGCN", "MatrixFactorization", "NeuMF"]
