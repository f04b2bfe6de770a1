"""What is trained and how: a recipe, and a model trained by it with Lightning."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_ifru import IFRUMixin, InteractionDataModule, UnlearningRequest
from lightning_ifru.metrics import block_scores, pair_scores
from lightning_ifru.models import LightGCN, MatrixFactorization

#: Reads the data anew, with everything in them that is to be forgotten later.
Source = Callable[[], InteractionDataModule]


@dataclass(frozen=True)
class Recipe:
    """A model and its training; nothing in it depends on what is forgotten.

    Attributes:
        model: ``"mf"`` or ``"lightgcn"``.
        num_layers: propagations of LightGCN.
        loss: ``"bce"`` on labels or ``"bpr"`` on sampled negatives.
        embedding_dim, lr, weight_decay, epochs, batch_size: of training with Adam.
    """

    model: Literal["mf", "lightgcn"] = "lightgcn"
    num_layers: int = 2
    loss: Literal["bce", "bpr"] = "bce"
    embedding_dim: int = 32
    lr: float = 1e-2
    weight_decay: float = 1e-5
    epochs: int = 30
    batch_size: int = 2048

    @property
    def name(self) -> str:
        """A short name for tables."""
        return "MF" if self.model == "mf" else f"LightGCN-{self.num_layers}"

    def module(self, data: InteractionDataModule, seed: int) -> IFRUMixin:
        """Return the untrained model, initialised from ``seed``."""
        shared = {
            "num_users": data.num_users,
            "num_items": data.num_items,
            "embedding_dim": self.embedding_dim,
            "loss": self.loss,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
        }
        lightning.seed_everything(seed, verbose=False)
        if self.model == "mf":
            return MatrixFactorization(**shared)
        return LightGCN(num_layers=self.num_layers, **shared)


@dataclass(frozen=True)
class Scorer:
    """What scores pairs after training or forgetting: one model's representations.

    Methods of several models have a class of their own with the same methods; their ``h`` and ``parameters`` are
    ``None``.
    """

    h: Tensor | None
    num_users: int
    parameters: dict[str, Tensor] | None

    @classmethod
    def of(cls, module: IFRUMixin, data: InteractionDataModule) -> Scorer:
        """Return the scorer of a module on the graph of the data as they stand now."""
        with torch.no_grad():
            h = module.eval().encode(data.graph()).detach()
        return cls(h, data.num_users, {name: p.detach().clone() for name, p in module.named_parameters()})

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the logits ``[n]`` of pairs."""
        assert self.h is not None
        return pair_scores(lambda s, d: (s * d).sum(-1), self.h, user, item + self.num_users)

    def block(self, users: Tensor) -> Tensor:
        """Return the logits ``[n, num_items]`` of users with all items."""
        assert self.h is not None
        items = torch.arange(self.num_users, len(self.h))
        return block_scores(None, self.h, users, items)


@dataclass(frozen=True)
class Trained:
    """A trained model, the data it was trained on, and how long that took."""

    recipe: Recipe
    seed: int
    source: Source
    module: IFRUMixin
    data: InteractionDataModule
    seconds: float

    @property
    def scorer(self) -> Scorer:
        """The scores of the model on its own graph."""
        return Scorer.of(self.module, self.data)

    def copy(self) -> tuple[IFRUMixin, InteractionDataModule]:
        """Return the model and the data as a method may change them; the original stays as it is."""
        data = self.source()
        data.load_state_dict(self.data.state_dict())
        module = copy.deepcopy(self.module)
        module.release_graph()
        return module, data


@contextmanager
def quiet_trainer(**settings: Any) -> Iterator[lightning.Trainer]:
    """Give a trainer for one CPU that says nothing and leaves nothing on the disk."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        yield lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=folder,
            **settings,
        )


def fit(
    module: IFRUMixin, data: InteractionDataModule, epochs: int, callbacks: list[Callback] | None = None
) -> lightning.Trainer:
    """Fit a module for some epochs."""
    with quiet_trainer(max_epochs=epochs, callbacks=callbacks) as trainer:
        trainer.fit(module, datamodule=data)
    return trainer


def train(
    recipe: Recipe, source: Source, seed: int, without: UnlearningRequest | None = None, jitter: float = 0.0
) -> Trained:
    """Train a model from ``seed``, on all data or on those without a request.

    With the seed of the original model and ``without`` this is *paired* retraining: the same initialisation, the same
    batches and negatives, without the forgotten. With another seed it is *free* retraining. ``jitter`` is a relative
    change of the initialisation, in order to see what of a difference between trainings is chance.
    """
    data = source()
    if without is not None:
        data.forget(without)
        data.commit(data.removal())
    clock = time.perf_counter()
    module = recipe.module(data, seed)
    if jitter:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1 + jitter * torch.randn(parameter.shape, generator=generator))
    fit(module, data, recipe.epochs)
    return Trained(recipe, seed, source, module, data, time.perf_counter() - clock)
