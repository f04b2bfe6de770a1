"""Ids of a request that the next checkpoint would hold: refused by name, before anything is done."""

import lightning
import pytest
import torch

from lightning_ifru import IFRU, IFRUCallback, ObjectiveError, UnlearningRequest

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


PEOPLE = UnlearningRequest(users=["person-003"])
PAIR = ("person-003", "film-001")
#: What to plant, the request, and what is said of it.
PLANTED = {
    "a list of names": (
        settings(["x", "person-003"]),
        PEOPLE,
        r"hyper-parameters of LightGCN hold an id .* at 'names'",
    ),
    "keys of a dict": (settings({"a": {"person-003": 1}}), PEOPLE, r"hyper-parameters .* at 'names\.a'"),
    "a text": (settings("for person-003"), PEOPLE, "hyper-parameters"),
    "a callback": (
        state([["person-003"]]),
        PEOPLE,
        r"the state of Seen holds? an id .* take it out of Seen\.state_dict",
    ),
    "a pair": (
        state([("person-003", "film-001")]),
        UnlearningRequest(interactions=[PAIR]),
        "the state of Seen .* a pair",
    ),
}


@pytest.fixture
def ready(make_data, make_model, make_trainer):
    trainer = make_trainer(max_epochs=1)
    model, data = make_model(), make_data()
    trainer.fit(model, datamodule=data)
    return trainer, model, data


@pytest.mark.parametrize("what", PLANTED)
def test_an_id_beside_weights_and_data_is_refused_before_anything_is_done(what, ready, snapshot):
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


def test_a_number_in_a_buffer_is_refused(make_data, make_model, make_trainer, planted):
    source = planted | {"user": [NUMBER + int(user[-3:]) for user in planted["user"]]}
    trainer, model, data = make_trainer(max_epochs=1), make_model(), make_data(source=source)
    model.register_buffer("kept", torch.tensor([5, NUMBER + 3]))
    trainer.fit(model, datamodule=data)
    with pytest.raises(ObjectiveError, match="the buffer 'kept' of LightGCN holds an id"):
        trainer.unlearn(data, request=UnlearningRequest(users=[NUMBER + 3]))


def test_what_only_looks_like_an_id_does_not_stop_an_erasure(make_data, make_model, make_trainer, planted):
    source = planted | {"user": [int(user[-3:]) for user in planted["user"]]}
    trainer, model, data = make_trainer(callbacks=[IFRUCallback(IFRU(max_steps=1)), Seen([3])]), make_model(), None
    data = make_data(source=source)
    model.hparams.update(users=3, depth=3, layers=[3, 3], name="person")
    model.register_buffer("users", torch.arange(40))
    trainer.fit(model, datamodule=data)
    assert trainer.unlearn(data, request=UnlearningRequest(users=[3])).num_users_erased == 1
