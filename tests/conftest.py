"""Tiny planted data and trained models, shared by the tests of the Lightning layer."""

import copy
import logging
import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hypothesis import settings
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule
from lightning_ifru.models import LightGCN, MatrixFactorization
from lightning_ifru.outputs import LOCK

NUM_USERS, NUM_ITEMS = 40, 30

# The gate must not depend on how busy a machine is, nor find on Monday what it did not find on Sunday.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate")


@pytest.fixture(autouse=True)
def _quiet():
    """Lightning's advice on workers, loggers and devices is not what is tested here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (".*does not have many workers", ".*exists and is not empty", ".*log_every_n_steps", ".*logger"):
            warnings.filterwarnings("ignore", message=message)
        for category in ("LeafSpec", "isinstance.treespec"):
            warnings.filterwarnings("ignore", message=f".*{category}")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def planted():
    """Ratings 1 to 5 of rank 2, two in five pairs seen; ids that can be found in a file if they are in it."""
    rng = np.random.default_rng(7)
    taste, trait = rng.normal(size=(NUM_USERS, 2)), rng.normal(size=(NUM_ITEMS, 2))
    seen = rng.random((NUM_USERS, NUM_ITEMS)) < 0.4
    user, item = np.nonzero(seen)
    rating = np.clip(np.rint(3 + (taste @ trait.T)[seen] + 0.3 * rng.normal(size=len(user))), 1, 5)
    return {
        "user": [f"person-{u:03d}" for u in user],
        "item": [f"film-{i:03d}" for i in item],
        "rating": rating.tolist(),
    }


@pytest.fixture
def make_data(planted):
    """Return a data module on the planted ratings: labelled for "bce" and "mse", implicit for "bpr"."""

    def make(loss="bce", **changes):
        rated = {} if loss == "bpr" else {"rating": "rating", "threshold": 3.0}
        source = changes.pop("source", planted)
        return InteractionDataModule(source, **{"batch_size": 64, "seed": 3} | rated | changes)

    return make


@pytest.fixture
def make_model():
    """Return an untrained built-in model of dimension 4, always from the same seed."""

    def make(loss="bce", layers=1, **changes):
        changes = {
            "num_users": NUM_USERS,
            "num_items": NUM_ITEMS,
            "embedding_dim": 4,
            "lr": 0.05,
            "weight_decay": 1e-3,
        } | changes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            if layers is None:
                return MatrixFactorization(loss=loss, **changes)
            return LightGCN(num_layers=layers, loss=loss, **changes)

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """Return a quiet trainer on the CPU that writes below ``tmp_path``."""

    def make(method=None, callbacks=None, **changes):
        if callbacks is None:
            callbacks = [IFRUCallback(IFRU(max_steps=2) if method is None else method)]
        return lightning.Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 10,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": tmp_path,
                "callbacks": callbacks,
            }
            | changes
        )

    return make


@pytest.fixture
def best():
    """Return a checkpoint callback that keeps the best by validation loss, and the last."""
    return lambda: ModelCheckpoint(monitor="val_loss", save_last=True, filename="best")


@pytest.fixture
def trained(make_data, make_model, make_trainer):
    """Return ``(trainer, model, data)`` after a fit."""

    def make(loss="bce", layers=1, *, data=None, model=None, **changes):
        data = make_data(loss) if data is None else data
        model = make_model(loss, layers) if model is None else model
        trainer = make_trainer(**changes)
        torch.manual_seed(5)
        trainer.fit(model, datamodule=data)
        return trainer, model, data

    return make


def _columns(data):
    splits = {f"{name}.{c}": getattr(getattr(data, name), c) for name in ("train", "val", "test") for c in _FIELDS}
    table = data.table
    held = {name: getattr(table, name) for name in ("user", "item", "label", "alive", "split")}
    return splits | held | {"graph": data.graph(), "candidates": data.candidates}


_FIELDS = ("user", "item", "label")


def _files(folder):
    """The files below a folder, but for the empty ones that keep others out while somebody writes."""
    return [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != LOCK]


class State:
    """All that an unlearning may change, as it is now; ``check`` asserts that it still is, to the bit."""

    def __init__(self, folder, *, model=None, data=None, trainer=None):
        self.folder, self.model, self.data, self.trainer = folder, model, data, trainer
        self.seen = self._read()

    def _read(self):
        seen = {"files": {p: p.read_bytes() for p in _files(self.folder)}}
        if self.model is not None:
            seen["weights"] = {name: p.detach().clone() for name, p in self.model.state_dict().items()}
            seen["modes"] = {name: part.training for name, part in self.model.named_modules()}
            seen["frozen"] = {name: p.requires_grad for name, p in self.model.named_parameters()}
        if self.data is not None:
            seen["data"] = {name: column.clone() for name, column in _columns(self.data).items()}
            seen["pending"] = self.data.pending
            seen["ids"] = (self.data.user_ids.tolist(), self.data.item_ids.tolist())
        if self.trainer is not None:
            callbacks = [c for c in self.trainer.callbacks if isinstance(c, (IFRUCallback, ModelCheckpoint))]
            seen["callbacks"] = copy.deepcopy([c.state_dict() for c in callbacks])
            seen["optimizers"] = copy.deepcopy([o.state_dict() for o in self.trainer.optimizers])
        seen["rng"] = torch.get_rng_state()
        return seen

    def check(self, *, but=()):
        now = self._read()
        assert now.keys() == self.seen.keys()
        for part in now.keys() - set(but):
            _same(now[part], self.seen[part], part)


def _same(now, then, name):
    if isinstance(then, torch.Tensor):
        assert torch.allclose(now, then, rtol=0, atol=0, equal_nan=True), f"{name} has changed"
    elif isinstance(then, dict):
        assert now.keys() == then.keys(), f"{name} has changed"
        for key, value in then.items():
            _same(now[key], value, f"{name}/{key}")
    elif isinstance(then, list):
        assert len(now) == len(then), f"{name} has changed"
        for position, value in enumerate(then):
            _same(now[position], value, f"{name}[{position}]")
    else:
        assert now == then, f"{name} has changed"


@pytest.fixture
def snapshot(tmp_path):
    """Return a record of weights, data, ledger and files to compare with later."""
    return lambda **parts: State(tmp_path, **parts)
