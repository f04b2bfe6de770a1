"""Ids of a request that the next checkpoint would hold: refused, before anything is done or before it has its name."""

import dataclasses
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch

from lightning_ifru import IFRU, IFRUCallback, ObjectiveError, UnlearningRequest
from lightning_ifru.opaque import read_all
from lightning_ifru.scan import scan
from lightning_ifru.unlearning import Unlearning

NUMBER = 7_340_112_905_866


class Seen(lightning.Callback):
    """Remembers what it is given."""

    def __init__(self, seen):
        self.seen = seen

    def state_dict(self):
        return {"seen": self.seen}


def settings(value):
    return lambda model, trainer: model.hparams.update(names=value)


def state(value):
    return lambda model, trainer: trainer.callbacks.append(Seen(value))


def buffer(tensor):
    return lambda model, trainer: model.register_buffer("kept", tensor)


def bare(model, trainer):
    del model._hparams, model._hparams_initial
    trainer.callbacks.append(Seen(["person-003"]))


PEOPLE = UnlearningRequest(users=["person-003"])
PAIR = ("person-003", "film-001")
#: What to plant, the request, and what is said of it.
PLANTED = {
    "a list of names": (
        settings(["x", "person-003"]),
        PEOPLE,
        r"an id .* at 'hyper_parameters\.names'; leave it out",
    ),
    "keys of a dict": (settings({"a": {"person-003": 1}}), PEOPLE, r"an id .* at 'hyper_parameters\.names\.a'"),
    "a text": (settings("for person-003"), PEOPLE, "an id .* at 'hyper_parameters"),
    "a callback": (
        state([["person-003"]]),
        PEOPLE,
        r"an id .* at 'callbacks\.Seen\.seen.*; take it out of that callback's state_dict",
    ),
    "a pair": (
        state([("person-003", "film-001")]),
        UnlearningRequest(interactions=[PAIR]),
        r"a pair .* at 'callbacks\.Seen",
    ),
    "a callback beside a module without settings": (bare, PEOPLE, r"an id .* at 'callbacks\.Seen\.seen"),
}


@pytest.fixture
def ready(make_data, make_model, make_trainer):
    trainer = make_trainer(max_epochs=1)
    model, data = make_model(), make_data()
    trainer.fit(model, datamodule=data)
    return trainer, model, data


@pytest.mark.parametrize("what", PLANTED)
def test_an_id_beside_weights_and_data_is_refused_before_anything_is_done(what, ready, snapshot, monkeypatch):
    monkeypatch.setattr(Unlearning, "solve", lambda *_: pytest.fail("it was solved"))
    plant, request, said = PLANTED[what]
    trainer, model, data = ready
    if request is not PEOPLE:
        place = data.train.user[0], data.train.item[0]
        pair = data.user_ids[place[0]], data.item_ids[place[1]]
        request = UnlearningRequest(interactions=[pair])
        plant = state([pair])
    plant(model, trainer)
    before = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(ObjectiveError, match=said) as error:
        trainer.unlearn(data, request=request)
    assert not any(text in str(error.value) for text in ("person-", "film-"))
    data.discard()
    before.check(but={"pending"})


@dataclasses.dataclass
class Team:
    people: list[str]


def on_save(one):
    """Add the name in a hook that Lightning calls while it writes."""
    before = one.on_save_checkpoint

    def add(*given):
        before(*given)
        given[-1]["who"] = {"watched": ["person-003"]}

    one.on_save_checkpoint = add


def of_data(data):
    data.state_dict = lambda before=data.state_dict: before() | {"extra": ["person-003"]}


def other_format(trainer):
    trainer.save_checkpoint = lambda path, **_: Path(path).write_bytes(b"a format of its own: person-003\0")


#: What only the file shows: what is planted in the model, the trainer or the data, and where it is found.
LATE = {
    "a module's hook": (lambda m, t, d: on_save(m), r"'who\.watched'; take it out of the state_dict or"),
    "a callback's hook": (lambda m, t, d: on_save(t.callbacks[0]), r"'who\.watched'"),
    "the state of the data": (lambda m, t, d: of_data(d), r"'InteractionDataModule\.extra'"),
    "a key among the data's": (
        lambda m, t, d: d.save_hyperparameters({"note": {"person-003": 1}}),
        r"'datamodule_hyper_parameters\.note'; leave it out",
    ),
    "a dataclass": (lambda m, t, d: m.hparams.update(a=Team(["person-003"])), r"'hyper_parameters\.a\[\]\.people'"),
    "a frame": (lambda m, t, d: m.hparams.update(a=pd.DataFrame({"x": ["person-003"]})), r"'hyper_parameters\.a\["),
    "an index": (lambda m, t, d: m.hparams.update(a=pd.Index(["person-003"])), r"'hyper_parameters\.a\["),
    "a path": (lambda m, t, d: m.hparams.update(a=Path("/x/person-003.csv")), r"'hyper_parameters\.a'"),
    "no file of torch's": (lambda m, t, d: other_format(t), "'bytes'"),
}


@pytest.mark.parametrize("what", LATE)
def test_a_checkpoint_with_an_id_in_it_is_not_published_and_all_is_undone(what, ready, snapshot, tmp_path):
    plant, said = LATE[what]
    trainer, model, data = ready
    plant(model, trainer, data)
    before = snapshot(model=model, data=data, trainer=trainer)
    (tmp_path / "new").mkdir()
    with pytest.raises(ObjectiveError, match=f"an id that is to be forgotten would be .* at {said}") as error:
        trainer.unlearn(data, request=PEOPLE, output=tmp_path / "new" / "a.ckpt")
    assert "person-" not in str(error.value)
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {".lightning-ifru.lock"}
    data.discard()
    before.check(but={"pending"})


NUMBERS = {
    "whole": (buffer(torch.tensor([5, NUMBER + 3])), "state_dict.kept"),
    "doubles": (buffer(torch.tensor([0.5, NUMBER + 3], dtype=torch.float64)), "state_dict.kept"),
    "many": (buffer(torch.cat([torch.arange(1 << 20), torch.tensor([NUMBER + 3])])), "state_dict.kept"),
    "a setting": (lambda model, trainer: model.hparams.update(guest=NUMBER + 3), "hyper_parameters.guest"),
    "a count's name": (lambda model, trainer: model.hparams.update(users=NUMBER + 3), "hyper_parameters.users"),
    "numpy's": (lambda model, trainer: model.hparams.update(a=[np.int64(NUMBER + 3)]), "hyper_parameters.a"),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_a_long_number_is_an_id_wherever_it_stands(what, make_data, make_model, make_trainer, planted, tmp_path):
    plant, where = NUMBERS[what]
    source = planted | {"user": [NUMBER + int(user[-3:]) for user in planted["user"]]}
    trainer, model, data = make_trainer(max_epochs=1), make_model(), make_data(source=source)
    plant(model, trainer)
    trainer.fit(model, datamodule=data)
    with pytest.raises(ObjectiveError, match=f"an id .* at '{where}"):
        trainer.unlearn(data, request=UnlearningRequest(users=[NUMBER + 3]), output=tmp_path / "a.ckpt")


def test_ids_that_stay_beside_each_other_are_no_pair(ready, tmp_path):
    trainer, model, data = ready
    model.hparams.update(folder=Path("/data"))  # which a scan does not load
    pairs = np.stack([data.train.user, data.train.item], axis=1)
    last, first = pairs[np.lexsort([pairs[:, 1], -pairs[:, 0]])[0]]
    request = UnlearningRequest(interactions=[(data.user_ids[last], data.item_ids[first])])
    assert trainer.unlearn(data, request=request, output=tmp_path / "a.ckpt").num_forgotten == 1
    model.hparams.pop("folder")
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    assert scan(tmp_path / "b.ckpt", request).checkpoints == {"b.ckpt": "has forgotten"}


class Loud:
    """Would be heard if it were loaded."""

    def __reduce__(self):
        return Path.touch, (Path("loaded"),)


def test_nothing_is_run_by_looking_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensor = torch.eye(3).to_sparse()
    torch.save({"a": Loud(), "b": {"c": np.array(["x", 1], dtype=object)}, "d": tensor, "e": {Team}}, "a.ckpt")
    read = read_all(Path("a.ckpt"))
    assert not Path("loaded").exists()
    assert read["b"]["c"].tolist() == ["x", 1]
    assert torch.equal(read["d"].to_dense(), torch.eye(3))
    torch.load("a.ckpt", weights_only=False)
    assert Path("loaded").exists()


def test_what_only_looks_like_an_id_does_not_stop_an_erasure(make_data, make_model, make_trainer, planted):
    source = planted | {"user": [int(user[-3:]) for user in planted["user"]]}
    trainer, model, data = make_trainer(callbacks=[IFRUCallback(IFRU(max_steps=1)), Seen([3])]), make_model(), None
    data = make_data(source=source)
    model.hparams.update(users=3, depth=3, layers=[3, 3], name="person")
    model.register_buffer("users", torch.arange(40))
    trainer.fit(model, datamodule=data)
    assert trainer.unlearn(data, request=UnlearningRequest(users=[3])).num_users_erased == 1
