"""Training anew where an unlearning is not to be trusted: all of it or nothing."""

import copy
import errno
import os

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping
from stock_layers import GraphSAGE
from test_verdict import EVERYTHING, pairs

from conftest import NUM_ITEMS, NUM_USERS
from lightning_ifru import DataError, IFRUCallback, IFRUMixin, ObjectiveError, UnlearningRequest
from lightning_ifru.ledger import entries_in
from lightning_ifru.models import NGCF, LightGCN, MatrixFactorization, NeuMF
from lightning_ifru.retraining import check_retrainable, redraw
from lightning_ifru.verdict import RETRAINED, Drift


def retraining(*others):
    return [IFRUCallback(tolerance=EVERYTHING, on_incomplete="retrain"), *others]


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_retraining_is_a_fit_from_epoch_0_without_the_forgotten(
    trained, make_data, make_trainer, best, tmp_path, loss, planted
):
    stopping = EarlyStopping("val_loss", patience=20)
    trainer, model, data = trained(loss, callbacks=retraining(best(), stopping), max_epochs=4)
    request = pairs(data, 0, 1, 2)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.ckpt")}
    lightning.seed_everything(11, verbose=False)
    report = trainer.unlearn(data, request=request)
    assert report.verdict == RETRAINED
    said = " ".join(report.verdict_reasons)
    assert "trained anew" in report.verdict_reasons[0]
    assert "might have left" in said
    assert "more than the 0%" in said
    assert "may be left" not in said
    assert "are without" not in said
    assert (report.num_forgotten, report.steps, report.residual_after) == (3, 0, None)
    assert report.seconds["retrain"] > 0
    assert "retrained" in str(report)
    assert trainer.current_epoch == 4

    fresh = make_data(loss)
    fresh.forget(request)
    fresh.commit(fresh.removal())
    twin = copy.deepcopy(model)
    lightning.seed_everything(11, verbose=False)
    redraw(twin)
    make_trainer(max_epochs=4).fit(twin, datamodule=fresh)
    for (name, got), wanted in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, wanted), name

    assert all(path.read_bytes() == content for path, content in files.items()), "old files are left to their owner"
    content = torch.load(report.checkpoint, weights_only=True)
    assert torch.equal(content["state_dict"]["net.embedding.weight"], model.state_dict()["net.embedding.weight"])
    (entry,) = content["callbacks"]["IFRUCallback"]["ledger"]
    assert (entry["verdict"], Drift.of(entry)) == (RETRAINED, Drift())
    assert len(data.train) == len(fresh.train)
    assert data.pending is None


def test_what_is_complete_is_not_retrained(trained):
    callback = IFRUCallback(on_incomplete="retrain")
    trainer, _, data = trained(layers=1, max_epochs=60, callbacks=[callback])
    callback.tolerance = type(callback.tolerance)(doubt=1.0)
    report = trainer.unlearn(data, request=pairs(data, 0))
    assert report.steps > 0
    assert "retrain" not in report.seconds


class Breaks(lightning.Callback):
    """Ends a fit in its second epoch once it is armed, and counts epochs as a checkpoint would restore them."""

    def __init__(self):
        self.armed, self.epochs = False, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)
        if self.armed and trainer.current_epoch == 1:
            raise KeyError("broken")

    def state_dict(self):
        return {"epochs": [*self.epochs]}


@pytest.mark.parametrize(("stop", "moment"), [(True, "fit"), (False, "fit"), (True, "write"), (False, "write")])
def test_a_retraining_that_breaks_off_leaves_everything_as_it_was(
    trained, make_model, snapshot, best, monkeypatch, stop, moment
):
    model, breaks = make_model(), Breaks()
    adam = model.configure_optimizers()
    model.configure_optimizers = lambda: ([adam], [torch.optim.lr_scheduler.StepLR(adam, 1)])
    others = [EarlyStopping("val_loss", patience=9)] if stop else []
    trainer, model, data = trained(model=model, callbacks=retraining(best(), breaks, *others), max_epochs=4)
    model.configure_optimizers = type(model).configure_optimizers.__get__(model)  # a retraining makes others
    data.forget(pairs(data, 0, 1))
    before = snapshot(model=model, data=data, trainer=trainer)

    def training():
        loop, strategy = trainer.fit_loop, trainer.strategy
        own = [loop, trainer.optimizers, strategy.lr_scheduler_configs, *trainer.callbacks]
        known = [[type(one).__name__, one.state_dict()] for one in trainer.callbacks]
        return [id(one) for one in own], trainer.current_epoch, trainer.global_step, copy.deepcopy(known)

    assert all(optimizer.state for optimizer in trainer.optimizers), "there are moments to lose"
    then, breaks.armed = training(), moment == "fit"
    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(os, "replace", no_space)
        with pytest.raises(KeyError if moment == "fit" else DataError):
            trainer.unlearn(data)
    before.check(but=("rng",))
    assert training() == then
    breaks.armed = False
    assert trainer.unlearn(data).verdict == RETRAINED


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_is_retrained_in_a_new_process(trained, make_data, make_model, make_trainer, best, tmp_path):
    trainer, _, data = trained(callbacks=[IFRUCallback(), best()], max_epochs=3)
    path = trainer.checkpoint_callback.best_model_path
    again = make_data()
    output = tmp_path / "new.ckpt"
    new = make_trainer(callbacks=retraining(), max_epochs=2)
    report = new.unlearn(again, model=make_model(), ckpt_path=path, request=pairs(data, 0), output=output)
    assert (report.verdict, report.checkpoint) == (RETRAINED, str(output))
    assert path in report.older_checkpoints
    assert torch.load(output, weights_only=True)["epoch"] == 2
    assert new.unlearn(again, request=pairs(data, 3), output=tmp_path / "newer.ckpt").verdict == RETRAINED
    lines = [entry["line"] for entry in entries_in(tmp_path / "newer.ckpt")]
    assert len(lines) == 2 > len(set(lines)), "a retrained model stands for the one before"


def test_a_dry_run_retrains_nothing(trained, snapshot):
    trainer, model, data = trained(callbacks=retraining())
    data.forget(pairs(data, 0))
    before = snapshot(model=model, data=data, trainer=trainer)
    assert trainer.unlearn(data, dry_run=True).verdict is None
    before.check(but=("rng",))


MODELS = {
    "mf": lambda: MatrixFactorization(NUM_USERS, NUM_ITEMS, 4),
    "lightgcn": lambda: LightGCN(NUM_USERS, NUM_ITEMS, 4),
    "ngcf": lambda: NGCF(NUM_USERS, NUM_ITEMS, 4),
    "neumf": lambda: NeuMF(NUM_USERS, NUM_ITEMS, 4),
    "stock": lambda: GraphSAGE(NUM_USERS, NUM_ITEMS, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_model_is_drawn_anew_by_the_seed(make_trainer, name):
    model = MODELS[name]()
    check_retrainable(make_trainer(), model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        redraw(model)
        drawn.append({n: p.clone() for n, p in model.named_parameters()})
    for n, p in before.items():
        assert torch.equal(drawn[0][n], drawn[1][n])
        if p.numel() > 10:
            assert not torch.equal(drawn[0][n], p), n


class Own(IFRUMixin, lightning.LightningModule):
    loss = "bce"

    def __init__(self):
        super().__init__()
        self.rows = torch.nn.Embedding(NUM_USERS + NUM_ITEMS, 3)
        self.features = torch.nn.Embedding(NUM_USERS + NUM_ITEMS, 3).requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.ones(3))

    def encode(self, edge_index):
        return self.rows.weight * self.scale + self.features.weight

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def test_a_weight_that_nothing_draws_is_refused_before_anything_is_solved(trained, snapshot):
    model = Own()
    trainer, model, data = trained(model=model, callbacks=retraining())
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    before = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(ObjectiveError, match="nothing that draws the parameter 'scale' of Own anew"):
        trainer.unlearn(data)
    before.check()


class Reset(Own):
    def reset_parameters(self):
        torch.nn.init.ones_(self.scale)


def test_frozen_features_stay(make_trainer):
    model = Reset()
    check_retrainable(make_trainer(), model)
    rows, features = model.rows.weight.clone(), model.features.weight.clone()
    redraw(model)
    assert torch.equal(model.features.weight, features)
    assert not torch.equal(model.rows.weight, rows)


def test_a_trainer_that_would_not_end_or_has_several_processes_is_refused(make_trainer, monkeypatch):
    with pytest.raises(MisconfigurationException, match="without max_epochs"):
        check_retrainable(make_trainer(max_epochs=None), MODELS["mf"]())
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer), "world_size", property(lambda self: 2))
    with pytest.raises(MisconfigurationException, match="2 processes"):
        check_retrainable(trainer, MODELS["mf"]())
