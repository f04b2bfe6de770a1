"""Bad input gets a sentence that says what was got, what was wanted and what to do; and nothing is lost."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_ifru import (
    IFRU,
    DataError,
    IFRUCallback,
    IFRUMixin,
    InteractionDataModule,
    ObjectiveError,
    RequestError,
    UnlearningError,
    UnlearningRequest,
)
from lightning_ifru.models import LightGCN


@dataclass
class World:
    """A call of ``unlearn`` that would work, until a case breaks it."""

    trainer: Any
    model: Any
    data: Any
    make: dict[str, Any]
    folder: Any
    planted: dict[str, list[Any]]
    request: Any = None
    ckpt_path: Any = None
    dry_run: bool = False

    def call(self):
        return self.trainer.unlearn(
            self.data, model=self.model, request=self.request, ckpt_path=self.ckpt_path, dry_run=self.dry_run
        )


def user(world, position=3):
    return UnlearningRequest(users=[world.data.user_ids[position]])


# --- cases: each breaks one thing. It returns what raises, if that is not the call of unlearn itself.


def unknown_ids(world):
    world.request = UnlearningRequest(users=["nobody", "person-003"], items=["no-film"])


def many_unknown_ids(world):
    world.request = UnlearningRequest(users=[f"stranger-{k}" for k in range(9)])


def unknown_ids_in_a_file(world):
    world.request = world.folder / "forget.csv"
    world.request.write_text("user,item\nperson-003,\nnobody,\nperson-004,no-film\n")


def a_pair_that_never_was(world):
    data = world.data
    there = set(zip(data.table.user.tolist(), data.table.item.tolist(), strict=True))
    pair = next((3, i) for i in range(data.num_items) if (3, i) not in there)
    world.request = UnlearningRequest(interactions=[(data.user_ids[pair[0]], data.item_ids[pair[1]])])


def nothing_staged(world):
    world.request = None


def an_empty_request(world):
    return lambda: UnlearningRequest(users=[], items=[])


def an_empty_file(world):
    world.request = world.folder / "forget.csv"
    world.request.write_text("user,item\n")


def request_file(header):
    def breaks(world):
        world.request = world.folder / "forget.csv"
        world.request.write_text(f"{header}\nperson-003,film-004\n")

    breaks.__name__ = f"a_request_file_of_{header}"
    return breaks


def a_missing_request_file(world):
    world.request = world.folder / "nowhere.csv"


def no_request_at_all(world):
    world.request = ["person-003"]


def a_request_for_everybody(world):
    world.request = UnlearningRequest(users=[u for u in world.data.user_ids if u is not None])


def a_missing_column(world):
    return lambda: InteractionDataModule(world.planted, user="user", item="movie").num_users


def a_missing_column_of_a_file(world):
    path = world.folder / "ratings.csv"
    path.write_text("person,item\na,b\n")
    return lambda: InteractionDataModule(path).num_users


def an_unreadable_file(world):
    path = world.folder / "ratings.csv.gz"
    path.write_bytes(b"this is no gzip")
    return lambda: InteractionDataModule(path).num_users


def a_missing_file(world):
    return lambda: InteractionDataModule(world.folder / "nowhere.csv").num_users


def nan_in_the_data(world):
    rating = [*world.planted["rating"]]
    rating[5] = float("nan")
    return lambda: InteractionDataModule(world.planted | {"rating": rating}, rating="rating").num_users


def nan_in_the_weights(world):
    with torch.no_grad():
        world.model.net.embedding.weight[11, 2] = float("nan")


def infinity_in_the_weights(world):
    with torch.no_grad():
        world.model.net.embedding.weight[11, 2] = float("inf")


def nan_in_the_loss(world):
    world.model.loss = lambda scores, target: (scores - 100).sqrt()


class Unfinished(LightGCN):
    encode = IFRUMixin.encode


class Short(LightGCN):
    def encode(self, edge_index):
        return super().encode(edge_index)[:-1]


class Flat(LightGCN):
    def encode(self, edge_index):
        return super().encode(edge_index).flatten()


class Cut(LightGCN):
    def encode(self, edge_index):
        return super().encode(edge_index).detach()


class Fined(LightGCN):
    def regularization(self):
        return 0.01 * F.dropout(self.net.embedding.weight, 0.3, training=True).square().sum()


def dropout_in_the_loss(world):
    world.model.loss = lambda scores, target: F.dropout((scores - target).square(), 0.3, training=True)


class Dropped(LightGCN):
    def encode(self, edge_index):
        return F.dropout(super().encode(edge_index), 0.3, training=True)


class DroppedPairs(LightGCN):
    def decode(self, src, dst):
        return F.dropout(src * dst, 0.3, training=True).sum(-1)


def another_model(cls, **settings):
    def breaks(world):
        world.model = cls(40, 30, 4, 1, **{"loss": "bce"} | settings)

    breaks.__name__ = cls.__name__
    return breaks


def no_callback(world):
    world.trainer = world.make["trainer"](callbacks=[])


def two_callbacks(world):
    world.trainer.callbacks.append(IFRUCallback())  # Trainer(callbacks=[...]) itself would refuse two


def no_model(world):
    world.trainer, world.model = world.make["trainer"](), None


class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)


def a_model_without_the_mixin(world):
    world.model = Plain()


class Foreign(lightning.LightningDataModule):
    pass


def a_foreign_datamodule(world):
    foreign = Foreign()
    return lambda: world.trainer.unlearn(foreign, model=world.model, request=world.request)


def no_datamodule(world):
    trainer = world.make["trainer"]()
    return lambda: trainer.unlearn(model=world.model, request=world.request)


def checkpoint_of(**settings):
    def breaks(world):
        _, _, path = world.make["checkpoint"](**settings)
        world.ckpt_path = path

    breaks.__name__ = f"checkpoint_of_{'_'.join(map(str, settings.values()))}"
    return breaks


def a_missing_checkpoint(world):
    world.ckpt_path = str(world.folder / "nowhere.ckpt")


def a_checkpoint_that_is_none(world):
    world.ckpt_path = str(world.folder / "noise.ckpt")
    (world.folder / "noise.ckpt").write_bytes(b"not a checkpoint")


def a_checkpoint_of_other_data(world):
    changed = {**world.planted, "user": ["stranger" if u == "person-005" else u for u in world.planted["user"]]}
    data = world.make["data"](source=changed)
    # The same numbers of users and items, so that the weights fit.
    assert (data.num_users, data.num_items) == (world.data.num_users, world.data.num_items)
    _, _, world.ckpt_path = world.make["checkpoint"](data=data, forget=True)


def a_checkpoint_older_than_the_data(world):
    world.ckpt_path = world.trainer.checkpoint_callback.best_model_path
    world.trainer.unlearn(world.data, request=UnlearningRequest(users=["person-009"]))


def best_without_a_fit(world):
    world.trainer, world.ckpt_path = world.make["trainer"](), "best"


def spawned_processes(world):
    world.trainer = world.make["trainer"](strategy="ddp_spawn", devices=2)


def forked_processes(world):
    world.trainer = world.make["trainer"](strategy="ddp_fork", devices=2)


class Decoupled(LightGCN):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), weight_decay=0.01)


def a_frozen_model(world):
    world.model.requires_grad_(False)


def bpr_on_labels(world):
    world.model.loss = "bpr"


def bce_on_implicit_feedback(world):
    world.data = world.make["data"]("bpr")


def an_unknown_loss(world):
    world.model.loss = "logistic"


def hinge(scores, target):
    return (1 - (2 * target - 1) * scores).clamp(min=0)


def a_hinge_loss(world):
    world.model.loss = hinge


class OtherStep(LightGCN):
    """Its training step has a term that its objective knows nothing of."""

    def training_step(self, batch, batch_idx):
        self.log("mine", 1.0)
        return super().training_step(batch, batch_idx) + 0.01 * self.net.embedding.weight.square().sum()


class HalfStep(LightGCN):
    """Its training step weights the loss."""

    def training_step(self, batch, batch_idx):
        return {"loss": 0.5 * super().training_step(batch, batch_idx)}


class ByHand(LightGCN):
    """Its training step makes the steps itself."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.net.embedding.weight.add_(1.0)


class Lossless(LightGCN):
    """Its training step skips the batch."""

    def training_step(self, batch, batch_idx):
        return None


class Unsafe:
    """An object that is not loaded unasked."""


def a_checkpoint_with_an_object(world):
    _, _, path = world.make["checkpoint"]()
    world.ckpt_path = world.folder / "object.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"extra": Unsafe()}, world.ckpt_path)


class Unseeded(LightGCN):
    """Its rows cannot be drawn anew."""

    def initial_rows(self, name, rows, seed=0):
        return torch.full((len(rows), 4), float("nan"))


def a_wrong_method(world):
    return lambda: IFRU(keep_ratio=0)


def a_method_that_is_none(world):
    return lambda: IFRUCallback("hessian")


def averages():
    """The callbacks of this Lightning that keep averages of past weights."""
    made = [StochasticWeightAveraging(swa_lrs=0.01)]
    for name in ("WeightAveraging", "EMAWeightAveraging"):
        kind = getattr(lightning.pytorch.callbacks, name, None)  # since Lightning 2.6
        made += [] if kind is None else [kind()]
    return made


def averaged_weights(callback):
    def breaks(world):
        world.trainer = world.make["trainer"](callbacks=[IFRUCallback(), callback])

    breaks.__name__ = type(callback).__name__
    return breaks


NOT_FINITE = ["finite"]
L, M = UnlearningError, MisconfigurationException
CASES = [
    (unknown_ids, RequestError, ["2 of", "user 'nobody'", "item 'no-film'", "correct or remove"]),
    (many_unknown_ids, RequestError, ["9 of", "'stranger-0'", "and 4 more"]),
    (unknown_ids_in_a_file, RequestError, ["2 of", "user 'nobody' (line 3)", "('person-004', 'no-film') (line 4)"]),
    (a_pair_that_never_was, RequestError, ["1 of", "interaction ('person-003', 'film-"]),
    (nothing_staged, RequestError, ["nothing is staged", "forget("]),
    (an_empty_request, RequestError, ["empty", "at least one"]),
    (an_empty_file, RequestError, ["'forget.csv'", "empty"]),
    (a_missing_request_file, RequestError, ["'nowhere.csv'"]),
    (request_file("person,film"), RequestError, ["'forget.csv'", "column 'user' or 'item'", "'person'", "rename them"]),
    (request_file("user,film"), RequestError, ["'forget.csv'", "not 'item' beside ['film']", "name both"]),
    (no_request_at_all, RequestError, ["list", "UnlearningRequest("]),
    (a_request_for_everybody, RequestError, ["leaves none of the", "training interactions", "fewer"]),
    (a_missing_column, DataError, ["no column 'movie'", "'item'", "item="]),
    (a_missing_column_of_a_file, DataError, ["'ratings.csv' has no column 'user'", "'person'", "user="]),
    (an_unreadable_file, DataError, ["'ratings.csv.gz'"]),
    (a_missing_file, DataError, ["nowhere.csv"]),
    (nan_in_the_data, DataError, ["'rating'", "1 values that are not finite", "row 5", "correct or delete"]),
    (nan_in_the_weights, ObjectiveError, ["of LightGCN is nan", "finite", "check weights and data for NaN"]),
    (infinity_in_the_weights, ObjectiveError, ["of LightGCN is nan", "finite", "check weights and data"]),
    (nan_in_the_loss, ObjectiveError, ["nan", "finite"]),
    (another_model(Unfinished), ObjectiveError, ["Unfinished does not implement encode", "encode(edge_index) ->"]),
    (
        another_model(Short),
        ObjectiveError,
        ["encode of Short returned shape (69, 4)", "[70, d]", "40 users", "30 items"],
    ),
    (another_model(Flat), ObjectiveError, ["encode of Flat returned shape (280,)", "[70, d]"]),
    (another_model(Cut), ObjectiveError, ["scores of Cut do not depend", "net.embedding.weight", "detach()"]),
    (another_model(Fined), ObjectiveError, ["the regularization of Fined gave two different answers", "dropout"]),
    (dropout_in_the_loss, ObjectiveError, ["the loss of LightGCN gave two different answers", "dropout"]),
    (another_model(Dropped), ObjectiveError, ["two different answers", "dropout"]),
    (another_model(DroppedPairs), ObjectiveError, ["two different answers", "dropout"]),
    (no_callback, M, ["found 0 IFRUCallbacks", "Trainer(callbacks=[IFRUCallback()])"]),
    (two_callbacks, M, ["found 2 IFRUCallbacks", "wanted one"]),
    (no_model, M, ["no model", "pass model="]),
    (a_model_without_the_mixin, M, ["Plain as model", "IFRUMixin"]),
    (a_foreign_datamodule, M, ["Foreign as datamodule", "InteractionDataModule"]),
    (no_datamodule, M, ["NoneType as datamodule", "InteractionDataModule"]),
    (checkpoint_of(embedding_dim=5), L, ["does not fit LightGCN", "(70, 4)", "give the checkpoint of this model"]),
    (checkpoint_of(layers=None), L, ["does not fit LightGCN", "embedding.weight"]),
    (checkpoint_of(users=20), L, ["does not fit LightGCN", "(70, 4)"]),
    (a_missing_checkpoint, L, ["nowhere.ckpt could not be loaded", "FileNotFoundError", "give the path"]),
    (a_checkpoint_that_is_none, L, ["noise.ckpt could not be loaded", "UnpicklingError", "give the path"]),
    (a_checkpoint_of_other_data, DataError, ["not those the checkpoint was trained on", "read the same source"]),
    (
        a_checkpoint_older_than_the_data,
        L,
        ["has forgotten 0 interactions and the data", "the last unlearning wrote", "read the data anew"],
    ),
    (best_without_a_fit, L, ["checkpoint best could not be loaded", "give the path"]),
    (spawned_processes, M, ["spawn", "lost", "devices=1"]),
    (forked_processes, M, ["spawn", "lost", "devices=1"]),
    (another_model(Decoupled), ObjectiveError, ["AdamW", "weight_decay=0.01", "Adam(weight_decay"]),
    (a_frozen_model, ObjectiveError, ["LightGCN is frozen", "unfreeze"]),
    (bpr_on_labels, ObjectiveError, ["'bpr' needs negatives", "rating column", "loss='bce'"]),
    (bce_on_implicit_feedback, ObjectiveError, ["'bce' needs labels", "rating column", "loss='bpr'"]),
    (an_unknown_loss, ObjectiveError, ["loss='logistic'", "'bce', 'bpr', 'margin', 'mse'"]),
    (a_hinge_loss, ObjectiveError, ["'hinge' has no curvature", "'bce'"]),
    (
        another_model(OtherStep),
        ObjectiveError,
        ["OtherStep.training_step", "differs by", "put what training minimises"],
    ),
    (another_model(HalfStep), ObjectiveError, ["HalfStep.training_step", "differs by", "norm"]),
    (another_model(ByHand), ObjectiveError, ["ByHand.training_step optimises by itself", "automatic", "drop"]),
    (another_model(Lossless), ObjectiveError, ["Lossless.training_step returned NoneType", "wanted", "drop"]),
    (a_checkpoint_with_an_object, L, ["object.ckpt holds more than", "pass weights_only=False"]),
    (another_model(Unseeded), ObjectiveError, NOT_FINITE),
    (a_method_that_is_none, M, ["'hessian' as method", "wanted an IFRU"]),
    *(
        (averaged_weights(callback), M, [type(callback).__name__, "still remember", "ckpt_path="])
        for callback in averages()
    ),
    (a_wrong_method, L, ["keep_ratio=0", "above 0 and at most 1"]),
]


@pytest.fixture
def world(trained, make_data, make_model, make_trainer, tmp_path, planted):
    def checkpoint(*, layers=1, users=None, data=None, forget=False, **settings):
        if users is not None:
            kept = [k for k, u in enumerate(planted["user"]) if int(u[-3:]) < users]
            data = make_data(source={name: [column[k] for k in kept] for name, column in planted.items()})
        data = make_data() if data is None else data
        model = make_model("bce", layers, num_users=data.num_users, num_items=data.num_items, **settings)
        trainer, model, data = trained(data=data, model=model, max_epochs=1)
        path = trainer.checkpoint_callback.best_model_path
        if forget:
            path = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[0]])).checkpoint
        return trainer, model, path

    trainer, model, data = trained(max_epochs=3)
    make = {"trainer": make_trainer, "data": make_data, "checkpoint": checkpoint}
    made = World(trainer, model, data, make, tmp_path, planted)
    made.request = user(made)
    return made


def name_of(value):
    return value.__name__ if callable(value) and not isinstance(value, type) else ""


def table():
    """Every case in every circumstance, but for contradictions and for what only a solve can find out."""
    for how in ("nothing pending", "something pending", "dry run"):
        for breaks, error, fragments in CASES:
            if (how, breaks) == ("something pending", nothing_staged) or (how == "dry run" and fragments is NOT_FINITE):
                continue
            yield pytest.param(how, breaks, error, fragments, id=f"{how}-{name_of(breaks)}")


@pytest.mark.parametrize(("how", "breaks", "error", "fragments"), [*table()])
def test_bad_input_is_refused_with_a_sentence_and_nothing_is_lost(world, snapshot, how, breaks, error, fragments):
    call = breaks(world) or world.call
    world.dry_run = how == "dry run"
    if how == "something pending":
        world.data.forget(user(world, 8))
    state = snapshot(model=world.model, data=world.data, trainer=world.trainer)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message
    assert "\x1b" not in message
    state.check(but={"rng"} if "two different answers" in message else ())
    assert "run" not in vars(world.trainer.predict_loop)
    assert torch.is_grad_enabled()


def test_the_call_that_the_cases_break_does_work(world, snapshot):
    before = world.model.net.embedding.weight.detach().clone()
    report = world.call()
    assert report.num_users_erased == 1
    assert not torch.equal(world.model.net.embedding.weight, before)


def fit_end(breaks):
    """Settings of a fit with a request that cannot be met, and what refuses it."""
    return {
        "no file": ({"request": "nowhere.csv"}, RequestError),
        "unknown": ({"request": UnlearningRequest(users=["nobody"])}, RequestError),
        "everybody": ({"request": UnlearningRequest(users=[f"person-{k:03d}" for k in range(40)])}, RequestError),
        "with what is staged": ({"staged": True}, RequestError),
        "no mixin": ({"model": Plain()}, MisconfigurationException),
        **{type(c).__name__: ({"callbacks": [c]}, MisconfigurationException) for c in averages()},
    }[breaks]


@pytest.mark.parametrize(
    "breaks",
    ["no file", "unknown", "everybody", "with what is staged", "no mixin", *(type(c).__name__ for c in averages())],
)
def test_a_callbacks_request_that_cannot_be_met_is_refused_before_training(
    make_data, make_model, make_trainer, breaks, snapshot
):
    changes, error = fit_end(breaks)
    data, model = make_data(), changes.get("model", make_model())
    request = changes.get("request", UnlearningRequest(users=[f"person-{k:03d}" for k in range(20)]))
    if "staged" in changes:
        data.forget(UnlearningRequest(users=[f"person-{k:03d}" for k in range(20, 40)]))
    callback = IFRUCallback(request=request)
    trainer = make_trainer(callbacks=[callback, *changes.get("callbacks", [])])
    state = snapshot(model=model, data=data)
    with pytest.raises(error):
        trainer.fit(model, datamodule=data)
    state.check(but={"rng"})
    assert trainer.global_step == 0
    assert callback.ledger == []
    assert callback.request is request


def test_a_callbacks_request_that_the_resumed_checkpoint_has_forgotten_is_done_already(
    trained, make_data, make_model, make_trainer
):
    request = UnlearningRequest(users=["person-003"])
    first, _, _ = trained(callbacks=[IFRUCallback(request=request)])
    trainer = make_trainer(callbacks=[IFRUCallback(request=request)], max_epochs=12)
    data = make_data()
    trainer.fit(make_model(), datamodule=data, ckpt_path=first.checkpoint_callback.best_model_path)
    (callback,) = (c for c in trainer.callbacks if isinstance(c, IFRUCallback))
    assert (callback.report.num_forgotten, callback.report.already_absent, len(callback.ledger)) == (0, 1, 1)
    assert data.user_ids[3] is None
    assert trainer.fit_loop.epoch_progress.current.completed == 12


def test_a_model_that_cannot_be_unlearned_is_left_trained_by_a_callbacks_request(make_data, trained):
    data, model = make_data(), Decoupled(40, 30, 4, 1, loss="bce")
    callback = IFRUCallback(request=UnlearningRequest(users=["person-003"]))
    rows = {split: len(getattr(data, split)) for split in ("train", "val", "test")}
    before = next(model.parameters()).detach().clone()
    with pytest.raises(L):
        trained(data=data, model=model, callbacks=[callback])
    assert not torch.equal(next(model.parameters()), before)  # training is not thrown away
    assert {split: len(getattr(data, split)) for split in rows} == rows
    assert data.user_ids[3] == "person-003"
    assert callback.ledger == []
    assert callback.request is not None


def test_a_checkpoint_with_an_object_is_loaded_if_asked_for(world):
    a_checkpoint_with_an_object(world)
    report = world.trainer.unlearn(world.data, request=world.request, ckpt_path=world.ckpt_path, weights_only=False)
    assert report.num_users_erased == 1
    assert str(world.ckpt_path) in report.older_checkpoints


class CountingStep(LightGCN):
    """A training step that counts in buffers, in place and anew."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()), persistent=False)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        self.batches = self.batches + 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("dry_run", [False, True])
def test_trying_the_training_step_leaves_its_buffers(trained, dry_run):
    torch.manual_seed(0)
    trainer, model, data = trained(model=CountingStep(40, 30, 4, 1, loss="bce", lr=0.05, weight_decay=1e-3))
    steps, batches, buffers = float(model.steps), float(model.batches), dict(model.named_buffers())
    assert steps == batches > 1
    trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]), dry_run=dry_run)
    assert (float(model.steps), float(model.batches)) == (steps, batches)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())


class SameStep(LightGCN):
    """A training step of its own that minimises what the objective says, and logs."""

    def training_step(self, batch, batch_idx):
        h = self.encode(self.edge_index)
        scores = self.decode(h[batch["user"]], h[40 + batch["item"]])
        loss = F.binary_cross_entropy_with_logits(scores, batch["label"])
        self.log("mine", loss)
        self.log_dict({"more": loss})
        return {"loss": loss}


class SameStepWithPenalty(SameStep):
    """The same with a term that is said to be part of the objective."""

    def regularization(self):
        return 0.001 * self.net.embedding.weight.square().sum()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)["loss"] + self.regularization()


@pytest.mark.parametrize("cls", [SameStep, SameStepWithPenalty])
def test_an_own_training_step_that_agrees_with_the_objective_is_accepted(trained, cls):
    torch.manual_seed(0)
    model = cls(40, 30, 4, 1, loss="bce", lr=0.05, weight_decay=1e-3)
    trainer, _, data = trained(model=model)
    state = torch.get_rng_state()
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]))
    assert report.steps >= 1
    assert torch.equal(torch.get_rng_state(), state)
    assert "log" not in vars(model)
    assert "log_dict" not in vars(model)


def test_both_numbers_are_in_the_refusal_of_a_training_step(world):
    world.model = HalfStep(40, 30, 4, 1, loss="bce")
    with pytest.raises(ObjectiveError) as caught:
        world.call()
    words = str(caught.value).replace(",", " ").replace(";", " ").split()
    numbers = [float(word) for word in words if word[0].isdigit()]
    got, apart, wanted = numbers
    assert got == pytest.approx(wanted / 2, rel=1e-3)
    assert apart == pytest.approx(wanted / 2, rel=1e-2)
    assert wanted > 0


def full_disk(world, monkeypatch):
    def full(path, **_):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of a checkpoint")
        raise OSError("no space left on device")

    monkeypatch.setattr(world.trainer, "save_checkpoint", full)


def logger_offline(world, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no space left for the log")

    logger = DummyLogger()
    logger.log_metrics = refuse
    monkeypatch.setattr(world.trainer, "_loggers", [logger])


def interrupted(world, monkeypatch):
    def interrupt(*_):
        raise SystemExit("no space left for patience")

    monkeypatch.setattr("lightning_ifru.callback.new_entry", interrupt)


def late_teardown(world, monkeypatch):
    class Late(lightning.Callback):
        def teardown(self, trainer, module, stage):
            raise OSError("no space left to tear down")

    monkeypatch.setattr(world.trainer, "callbacks", [*world.trainer.callbacks, Late()])


@pytest.mark.parametrize("by", ["staged", "argument", "both"])
@pytest.mark.parametrize(
    ("how", "fails"),
    [
        *itertools.product(["current weights", "from a checkpoint"], [full_disk, logger_offline, interrupted]),
        ("dry run", late_teardown),  # it writes nothing
    ],
)
def test_what_fails_after_the_solve_leaves_all_as_it_was(world, monkeypatch, snapshot, how, by, fails):
    if how == "from a checkpoint":
        _, _, world.ckpt_path = world.make["checkpoint"]()
    world.dry_run = how == "dry run"
    if by != "argument":
        world.data.forget(user(world, 8) if by == "both" else world.request)
        world.request = world.request if by == "both" else None
    assert any(optimizer.state for optimizer in world.trainer.optimizers)
    with monkeypatch.context() as patch:
        fails(world, patch)
        state = snapshot(model=world.model, data=world.data, trainer=world.trainer)
        with pytest.raises((OSError, SystemExit, DataError), match="no space left"):
            world.call()
        state.check()
    assert world.model.edge_index is world.data.graph()
    assert (world.data.pending is None) == (by == "argument")
    world.dry_run = False
    assert world.call().num_users_erased == (2 if by == "both" else 1)  # as if nothing had happened


@pytest.mark.parametrize("checkpointing", [True, False])
def test_what_fails_after_the_checkpoint_has_its_name_leaves_the_new_state_and_without_one_the_old(
    world, monkeypatch, snapshot, checkpointing
):
    late_teardown(world, monkeypatch)
    if not checkpointing:
        kept = [c for c in world.trainer.callbacks if not isinstance(c, ModelCheckpoint)]
        monkeypatch.setattr(world.trainer, "callbacks", kept)
    state = snapshot(model=world.model, data=world.data, trainer=world.trainer)
    with pytest.raises(OSError, match="no space left to tear down"):
        world.call()
    if not checkpointing:
        state.check()
        return
    (callback,) = (c for c in world.trainer.callbacks if isinstance(c, IFRUCallback))
    written = torch.load(callback.report.checkpoint, weights_only=True)
    assert torch.equal(written["state_dict"]["net.embedding.weight"], world.model.net.embedding.weight)
    assert world.data.user_ids[3] is None
    assert len(callback.ledger) == 1
    assert world.trainer.checkpoint_callback.best_model_path == callback.report.checkpoint
    assert world.trainer.train_dataloader is None


@pytest.mark.parametrize("fails", [full_disk, logger_offline, interrupted])
def test_what_fails_when_fitting_has_ended_leaves_the_trained_model_and_the_data(
    make_data, make_model, make_trainer, snapshot, monkeypatch, fails, tmp_path
):
    request, states = UnlearningRequest(users=["person-003"]), []
    callback, data, model = IFRUCallback(IFRU(max_steps=2), request=request), make_data(), make_model()

    class Before(lightning.Callback):
        def on_fit_end(self, trainer, module):
            fails(World(trainer, model, data, {}, tmp_path, {}), monkeypatch)
            states.append(snapshot(model=model, data=data, trainer=trainer))

    data.forget(UnlearningRequest(users=["person-008"]))
    trainer = make_trainer(callbacks=[Before(), callback])
    with pytest.raises((OSError, SystemExit, DataError), match="no space left"):
        trainer.fit(model, datamodule=data)
    (state,) = states
    state.check()
    assert callback.request is request
    assert Path(trainer.checkpoint_callback.best_model_path).is_file()
