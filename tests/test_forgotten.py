"""What is remembered of the forgotten: that it is recognised, where it matters, and by nobody without the key."""

import hashlib
import hmac
import pickle

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from states import assert_same, through_a_file
from torch_geometric.data import HeteroData

from lightning_ifru import restoring
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, RequestError, UnlearningError
from lightning_ifru.forgotten import ForgottenRecord
from lightning_ifru.keys import KEY, digest_key, key_name
from lightning_ifru.models import MatrixFactorization
from lightning_ifru.request import UnlearningRequest

USERS, ITEMS = 9, 7
GRID = [(f"u{u}", f"i{i}") for u in range(USERS) for i in range(ITEMS)]
REQUEST = UnlearningRequest(users=["u3"], interactions=[("u5", "i2"), ("u6", "i0")])


def module(pairs=GRID, **changes):
    columns = dict(zip(("user", "item"), zip(*pairs, strict=True), strict=True)) | changes.pop("more", {})
    source = {name: list(column) for name, column in columns.items()}
    return InteractionDataModule(source, **({"val_fraction": 0.2, "test_fraction": 0.2, "seed": 1} | changes))


def forgetting(data, request=REQUEST):
    data.forget(request)
    data.commit(data.removal())
    return data


def beside(state, pairs=GRID, **changes):
    data = module(pairs, **changes)
    data.load_state_dict(through_a_file(state))
    return data


def left(data):
    return {
        (data.user_ids[user], data.item_ids[item])
        for some in (data.train, data.val, data.test)
        for user, item in zip(some.user.tolist(), some.item.tolist(), strict=True)
    }


GONE = {pair for pair in GRID if pair[0] == "u3"} | {("u5", "i2"), ("u6", "i0")}


def absent(data, request):
    data.forget(request)
    removal = data.removal()
    data.discard()
    return len(removal.positions), removal.absent


# --- the digests


def test_a_digest_is_an_hmac_that_another_library_can_work_out():
    """The format is fixed: what a checkpoint of today holds, a program of tomorrow has to recognise."""

    def digest(content):
        return hmac.new(b"the key of all tests", content, hashlib.sha256).digest()[:16]

    user, item = digest(b"user\0u5"), digest(b"item\0i2")
    (part,) = forgetting(module()).table.record.parts.values()
    assert digest(b"interaction\0" + user + item) in part.pairs
    assert part.users == {digest(b"user\0u3"): 3}
    assert part.items == {}
    assert len(part.pairs) == len(GONE)


def test_the_state_is_small_sorted_and_names_nobody():
    state = forgetting(module(), UnlearningRequest(users=["u8", "u3"], items=["i6"])).state_dict()
    record = state["forgotten_record"]
    assert [*record] == [key_name(digest_key())]
    (part,) = record.values()
    assert {name: (tuple(t.shape), t.dtype) for name, t in part.items()} == {
        "pairs": ((2 * ITEMS + USERS - 2, 16), torch.uint8),
        "users": ((2, 16), torch.uint8),
        "users_at": ((2,), torch.int64),
        "items": ((1, 16), torch.uint8),
        "items_at": ((1,), torch.int64),
    }
    for name in ("pairs", "users", "items"):
        assert part[name].tolist() == sorted(part[name].tolist())
    written = pickle.dumps({name: tensor.numpy() for name, tensor in part.items()})
    for text in (b"u8", b"u3", b"i6"):
        assert text not in written
        for plain in ("md5", "sha1", "sha256"):
            assert hashlib.new(plain, text).digest()[:16] not in written


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: {name: part | {"pairs": part["pairs"][:, :8]} for name, part in record.items()},
        lambda record: {name: part | {"users": part["users"].long()} for name, part in record.items()},
        lambda record: {name: part | {"users_at": part["users_at"][:0]} for name, part in record.items()},
        lambda record: {name: {"pairs": part["pairs"]} for name, part in record.items()},
    ],
)
def test_a_damaged_record_is_refused_and_nothing_changes(damage):
    state = forgetting(module()).state_dict()
    data = module()
    before = data.state_dict()
    with pytest.raises(DataError, match=r"as it was written|record of what was forgotten has no"):
        data.load_state_dict(state | {"forgotten_record": damage(state["forgotten_record"])})
    assert_same(data.state_dict(), before)
    with pytest.raises(DataError, match="lacks 'forgotten_record'"):
        data.load_state_dict({name: value for name, value in state.items() if name != "forgotten_record"})


# --- once


def shuffled(pairs):
    return [pairs[k] for k in np.random.default_rng(0).permutation(len(pairs))]


@pytest.mark.parametrize(
    "pairs",
    [GRID, [pair for pair in GRID if pair not in GONE], shuffled(GRID), [*GRID, ("u1", "i1")], GRID[8:]],
    ids=["the same", "without the forgotten", "in another order", "with a row twice", "with fewer rows"],
)
def test_a_request_is_applied_once_whatever_stands_beside_the_checkpoint(pairs):
    done = forgetting(module())
    for data in (done, beside(done.state_dict(), pairs)):
        assert not left(data) & GONE
        assert left(data) == set(pairs) - GONE or data is done
        assert absent(data, REQUEST) == (0, 3)
        assert absent(data, UnlearningRequest(interactions=[("u3", "i1"), ("u3", "unheard of")])) == (0, 2)
        assert absent(data, REQUEST | UnlearningRequest(users=["u8"])) == (ITEMS, 3)
        with pytest.raises(RequestError, match="1 of the request's entries are not in the data and were not"):
            data.forget(REQUEST | UnlearningRequest(users=["u33"]))


def test_another_checkpoint_of_the_same_line_knows_it_too():
    first = forgetting(module(), UnlearningRequest(users=["u3"]))
    second = beside(first.state_dict())
    forgetting(second, UnlearningRequest(users=["u5"]))
    other = beside(first.state_dict())
    forgetting(other, UnlearningRequest(users=["u7"]))
    assert absent(other, UnlearningRequest(users=["u3", "u7"])) == (0, 2)
    assert absent(other, UnlearningRequest(users=["u5"])) == (ITEMS, 0)
    other.load_state_dict(through_a_file(second.state_dict()))
    assert absent(other, UnlearningRequest(users=["u3", "u5", "u7"])) == (0, 3)
    assert {user for user, _ in left(other)} == {"u0", "u1", "u2", "u4", "u6", "u8"}


def test_positions_are_the_checkpoints_whatever_order_the_process_had_before():
    data = forgetting(module(shuffled(GRID)), UnlearningRequest(users=["u3"]))
    assert data.user_ids.tolist() != [None if k == 3 else f"u{k}" for k in range(USERS)]
    data.load_state_dict(forgetting(module(), UnlearningRequest(users=["u3", "u5"])).state_dict())
    assert data.user_ids.tolist() == [None if k in (3, 5) else f"u{k}" for k in range(USERS)]
    assert left(data) == {pair for pair in GRID if pair[0] not in ("u3", "u5")}
    before = data.state_dict()
    with pytest.raises(DataError, match="not those the checkpoint was trained on"):  # whose positions are others
        data.load_state_dict(module(shuffled(GRID)).state_dict())
    assert_same(data.state_dict(), before)


def test_weights_that_know_what_the_data_have_forgotten_are_not_loaded():
    first, other = (forgetting(module(), UnlearningRequest(users=users)) for users in (["u3"], ["u5", "u6"]))
    name = InteractionDataModule.__qualname__
    for data, state in ((first, module().state_dict()), (first, other.state_dict()), (first, None)):
        with pytest.raises(DataError, match=r"has forgotten \d+ interactions and the data 7, some of them others"):
            data.check_checkpoint({} if state is None else {name: state})
    both = forgetting(beside(first.state_dict()), UnlearningRequest(users=["u5"]))
    first.check_checkpoint({name: both.state_dict()})


def test_digests_are_made_of_what_goes_alone_and_compared_only_where_a_sum_does_not_do(monkeypatch):
    made = []

    def counted(key, message, digest):
        made.append(message)
        return digests(key, message, digest)

    digests = hmac.digest
    monkeypatch.setattr(hmac, "digest", counted)
    data = forgetting(module())
    rows = sum(message.startswith(b"interaction\0") for message in made)
    assert rows == len(GONE)
    monkeypatch.setattr(restoring, "digest_key", lambda: pytest.fail("no digest is needed"))
    for pairs in (GRID, [pair for pair in GRID if pair not in GONE], shuffled([p for p in GRID if p not in GONE])):
        again = beside(data.state_dict(), pairs)
        assert left(again) == set(GRID) - GONE
        again.load_state_dict(data.state_dict())
    data.load_state_dict(module().state_dict())
    assert left(data) == set(GRID) - GONE


# --- who has come back

NEW = [("u3", "i0"), ("u3", "i5"), ("u6", "i0"), ("u1", "i1")]


@pytest.mark.parametrize("kept", [False, True], ids=["without the old rows", "with the old rows"])
def test_who_came_back_with_something_new_is_there_again_and_can_leave_again(kept):
    pairs = [pair for pair in GRID if pair != ("u3", "i5")]  # which comes later
    data = forgetting(module(pairs))
    splits = {name: left_in(data, name) for name in ("train", "val", "test")}
    old = pairs if kept else [pair for pair in pairs if pair not in GONE]
    with pytest.warns(UserWarning, match="does not hold the rows that the checkpoint was saved with"):
        grown = beside(data.state_dict(), [*old, *NEW], seed=7)
    assert left(grown) == (set(pairs) - GONE) | {("u3", "i5")}
    assert grown.user_ids.tolist() == [f"u{k}" for k in range(USERS)]
    for name, some in splits.items():
        assert some <= left_in(grown, name) <= some | {("u3", "i5")}
    assert absent(grown, UnlearningRequest(interactions=[("u3", "i0"), ("u6", "i0")])) == (0, 2)

    grown.forget(UnlearningRequest(users=["u3"]))
    removal = grown.removal()
    assert (len(removal.positions), removal.users.tolist(), removal.absent) == (1, [3], 0)
    grown.commit(removal)
    assert grown.user_ids[3] is None
    for again in (grown, beside(grown.state_dict(), [*old, *NEW]), beside(grown.state_dict(), pairs)):
        assert left(again) == set(pairs) - GONE
        assert absent(again, UnlearningRequest(users=["u3"], interactions=[("u3", "i5")])) == (0, 2)


def left_in(data, name):
    some = getattr(data, name)
    return {(data.user_ids[u], data.item_ids[i]) for u, i in zip(some.user.tolist(), some.item.tolist(), strict=True)}


def test_a_title_that_was_taken_down_and_is_back_is_a_candidate_again():
    pairs = [pair for pair in GRID if pair != ("u2", "i4")]
    data = forgetting(module(pairs), UnlearningRequest(items=["i4"]))
    assert 4 not in data.candidates.tolist()
    grown = beside(data.state_dict(), GRID)
    assert left(grown) == {pair for pair in GRID if pair[1] != "i4"} | {("u2", "i4")}
    assert grown.item_ids[4] == "i4"
    assert 4 in grown.candidates.tolist()


def test_who_came_back_elsewhere_and_has_no_rows_here_is_no_forgotten_one():
    pairs = [pair for pair in GRID if pair != ("u3", "i5")]
    grown = beside(forgetting(module(pairs)).state_dict(), GRID)
    data = beside(grown.state_dict(), pairs)
    assert "u3" in data.user_ids.tolist()
    with pytest.raises(RequestError, match="user 'u3'"):  # the model has learned from a row that this source lacks
        data.forget(UnlearningRequest(users=["u3"]))


def test_somebody_new_has_no_position_and_stays_an_error():
    state = forgetting(module()).state_dict()
    data = module([*GRID, ("u99", "i1")])
    before = data.state_dict()
    with pytest.raises(DataError, match="not those the checkpoint was trained on"):
        data.load_state_dict(state)
    assert_same(data.state_dict(), before)


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_where_the_held_out_are_listed_new_rows_are_trained_on(split):
    changes = {"split": split, "more": {"when": range(len(GRID) - 1)}, "timestamp": "when"}
    changes |= {"val_fraction": 0.1, "test_fraction": 0.1}
    pairs = [pair for pair in GRID if pair != ("u3", "i5")]
    data = forgetting(module(pairs, **changes))
    held_out = left_in(data, "val") | left_in(data, "test")
    assert held_out
    grown = beside(data.state_dict(), [*pairs, *NEW], **changes | {"more": {"when": range(len(GRID) - 1 + len(NEW))}})
    assert left_in(grown, "val") | left_in(grown, "test") == held_out
    assert ("u3", "i5") in left_in(grown, "train")
    assert left(grown) == (set(pairs) - GONE) | {("u3", "i5")}


def test_all_occurrences_of_a_forgotten_pair_are_left_out():
    """Which of two like rows is the forgotten one nobody can say; so a pair that was forgotten stays so."""
    twice = [*GRID, ("u5", "i2"), ("u1", "i1")]
    data = forgetting(module(twice, duplicates="keep"))
    assert data.table.num_forgotten == ITEMS + 3
    grown = beside(data.state_dict(), [*twice, ("u5", "i2"), ("u1", "i1"), ("u5", "i3")], duplicates="keep")
    assert len(grown.table) - int(grown.table.alive.sum()) == ITEMS + 4
    assert left(grown) == set(GRID) - GONE


def test_what_was_forgotten_stays_so_under_another_threshold():
    rated = {"rating": "stars", "more": {"stars": [1 + k % 5 for k in range(len(GRID))]}}
    data = forgetting(module(threshold=4.0, **rated))
    lower = beside(data.state_dict(), threshold=2.0, **rated)
    assert left(lower) == set(GRID) - GONE
    assert not torch.equal(lower.table.label, data.table.label)


def test_nodes_that_have_edges_again_are_the_ones_they_were():
    edges = torch.tensor([(u, i) for u in range(USERS) for i in range(ITEMS) if (u, i) != (3, 5)]).T

    def graph(edges):
        source = HeteroData()
        source["user"].num_nodes, source["item"].num_nodes = USERS + 1, ITEMS
        source["user", "likes", "item"].edge_index = edges
        return InteractionDataModule(source, val_fraction=0, test_fraction=0)

    data = forgetting(graph(edges), UnlearningRequest(users=[3]))
    grown = graph(torch.cat([edges, torch.tensor([[3], [5]])], dim=1))
    grown.load_state_dict(through_a_file(data.state_dict()))
    assert grown.user_ids.tolist() == [*range(USERS + 1)]
    assert grown.train.item[grown.train.user == 3].tolist() == [5]
    assert absent(grown, UnlearningRequest(users=[3])) == (1, 0)


def test_a_person_who_came_back_is_learned_from_and_forgotten_again_by_the_model(
    trained, planted, make_data, make_model, make_trainer
):
    person = UnlearningRequest(users=["person-004"])
    first, _, data = trained()
    old = first.unlearn(data, request=person).checkpoint
    seen = {item for user, item in zip(planted["user"], planted["item"], strict=True) if user == "person-004"}
    new = sorted(set(planted["item"]) - seen)[:12]
    grown = {
        "user": [*planted["user"], *(["person-004"] * 12)],
        "item": [*planted["item"], *new],
        "rating": [*planted["rating"], *([5.0] * 12)],
    }
    data, trainer = make_data(source=grown), make_trainer(max_epochs=12)
    trainer.fit(make_model(), datamodule=data, ckpt_path=old)  # two more epochs
    assert {data.item_ids[k] for k in data.train.item[data.train.user == 4].tolist()} <= set(new)
    assert (data.train.user == 4).any()
    assert data.user_ids[4] == "person-004"

    report = trainer.unlearn(data, request=person)
    assert (report.num_forgotten, report.already_absent, report.num_users_erased) == (12, 0, 1)
    assert data.user_ids[4] is None
    assert [entry["num_forgotten"] for entry in trainer.callbacks[0].ledger] == [len(seen), 12]
    for source in (grown, planted):
        again = make_trainer()
        last = again.unlearn(make_data(source=source), model=make_model(), request=person, ckpt_path=report.checkpoint)
        assert (last.num_forgotten, last.already_absent) == (0, 1)


# --- the key


def test_under_another_key_it_cannot_be_told_and_that_is_said(monkeypatch):
    state = forgetting(module()).state_dict()
    monkeypatch.setenv(KEY, "the key of another machine")
    ours, theirs = key_name(b"the key of another machine"), key_name(b"the key of all tests")
    data = beside(state)  # a sum says that it is the same source
    assert left(data) == set(GRID) - GONE
    assert absent(data, UnlearningRequest(users=["u8"])) == (ITEMS, 0)
    with pytest.raises(RequestError) as caught:
        data.forget(REQUEST)
    for fragment in ("3 of the request's entries", "user 'u3'", repr(theirs), repr(ours), "set LIGHTNING_IFRU_KEY"):
        assert fragment in str(caught.value)
    assert data.pending is None

    for pairs in ([*shuffled(GRID)], [*(p for p in GRID if p not in GONE), ("u3", "i0")]):
        fresh = module(pairs)
        before = fresh.state_dict()
        with pytest.raises(UnlearningError, match=rf"recorded under the key named '{theirs}' .* '{ours}'"):
            fresh.load_state_dict(state)
        assert_same(fresh.state_dict(), before)

    # Each key answers for what was recorded under it.
    forgetting(data, UnlearningRequest(users=["u8"]))
    assert absent(data, UnlearningRequest(users=["u8"])) == (0, 1)
    both = through_a_file(data.state_dict())
    assert sorted(both["forgotten_record"]) == sorted([ours, theirs])
    monkeypatch.setenv(KEY, "the key of all tests")
    data = beside(both)
    assert absent(data, REQUEST) == (0, 3)
    with pytest.raises(RequestError, match=f"user 'u8'; whether .* under the key named '{ours}'"):
        data.forget(REQUEST | UnlearningRequest(users=["u8"]))


def test_without_a_key_nothing_is_forgotten(monkeypatch, tmp_path):
    data = module()
    before = data.state_dict()
    monkeypatch.delenv(KEY)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(UnlearningError, match="neither read nor made"):
        data.forget(REQUEST)
    assert data.pending is None
    assert_same(data.state_dict(), before)
    with pytest.raises(RequestError, match="user 'u99'"):  # for which no key is needed
        data.forget(UnlearningRequest(users=["u99"]))


def test_an_empty_record_knows_nobody():
    assert not ForgottenRecord()
    known = ForgottenRecord().under(b"k")
    assert (known.user("a"), known.item("a"), known.pair("a", "b")) == (False, False, False)
    assert ForgottenRecord().adding(b"k", []) == ForgottenRecord()


# --- hyper-parameters


class Saving(InteractionDataModule):
    """What a user may write: everything that was given is saved."""

    def __init__(self, source, extra=None, **kwargs):
        super().__init__(source, **kwargs)
        self.save_hyperparameters()


class Derived(Saving):
    def __init__(self, users, items, **kwargs):
        super().__init__({"user": users, "item": items}, **kwargs)


MARKED = [(f"marked-{u}", f"title-{i}") for u, i in GRID]
COLUMNS = {"user": [u for u, _ in MARKED], "item": [i for _, i in MARKED]}


def as_graph():
    source = HeteroData()
    source["user"].num_nodes, source["item"].num_nodes = USERS, ITEMS
    source["user", "likes", "item"].edge_index = torch.tensor([(int(u[1:]), int(i[1:])) for u, i in GRID]).T
    return source


@pytest.mark.parametrize(
    "make",
    [
        lambda: Saving(dict(COLUMNS), batch_size=16),
        lambda: Saving(pd.DataFrame(COLUMNS), batch_size=16),
        lambda: Saving({name: np.array(column) for name, column in COLUMNS.items()}, batch_size=16),
        lambda: Saving({name: pd.Series(column) for name, column in COLUMNS.items()}, batch_size=16),
        lambda: Saving(as_graph(), batch_size=16),
        lambda: Derived(COLUMNS["user"], COLUMNS["item"], batch_size=16),
        lambda: Saving("ratings.csv", {"again": [pd.DataFrame(COLUMNS)]}, batch_size=16),
        lambda: Saving("ratings.csv", [torch.arange(3), torch.arange(3)], batch_size=16),
    ],
    ids=["lists", "a frame", "arrays", "series", "a graph", "columns", "a frame in a list", "tensors in a list"],
)
def test_no_hyper_parameter_is_data(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(COLUMNS).to_csv("ratings.csv", index=False)
    data = make()
    assert data.hparams["batch_size"] == 16
    assert not {"users", "items"} & data.hparams.keys()
    assert data.hparams.get("source", "ratings.csv") == "ratings.csv"
    assert not data.hparams.get("extra")
    assert data.hparams_initial == data.hparams
    trainer = lightning.Trainer(max_epochs=1, logger=CSVLogger(tmp_path), accelerator="cpu", enable_progress_bar=False)
    trainer.fit(MatrixFactorization(data.num_users, data.num_items, 2, loss="bpr"), datamodule=data)
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    data.commit(data.removal())
    trainer.save_checkpoint("last.ckpt")
    held = torch.load("last.ckpt", weights_only=False)["datamodule_hyper_parameters"]
    assert held == dict(data.hparams)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*.yaml")) + (tmp_path / "last.ckpt").read_bytes()
    assert b"batch_size" in written
    assert b"marked-u3" not in written
    assert (b"marked-u4" in written) == (type(data.user_ids[4]) is str)


def test_a_path_is_a_setting_and_so_are_lists_of_numbers(tmp_path):
    path = tmp_path / "ratings.csv"
    data = Saving(path, {"layers": 2}, val_fraction=0.2)
    assert data.hparams == {"source": path, "extra": {"layers": 2}, "val_fraction": 0.2}
    assert Saving(str(path), [64, 64]).hparams == {"source": str(path), "extra": [64, 64]}


# --- ids as tables with gaps write them


def numbered(users=(7, 8, 42), items=(1, 2, 3)):
    return module([(user, item) for user in users for item in items])


@pytest.mark.parametrize(
    ("rows", "gone"),
    [
        ("42.0,", {(42, item) for item in (1, 2, 3)}),
        (",2.0", {(user, 2) for user in (7, 8, 42)}),
        ("42.0,3.0", {(42, 3)}),
        ("42.00,\n42,", {(42, item) for item in (1, 2, 3)}),
    ],
    ids=["user", "item", "pair", "both ways"],
)
def test_a_whole_number_written_with_a_point_is_that_number(tmp_path, rows, gone):
    (tmp_path / "forget.csv").write_text(f"user,item\n{rows}\n")
    request = UnlearningRequest.from_file(tmp_path / "forget.csv")
    whole, data = left(numbered()), forgetting(numbered(), request)
    assert whole - left(data) == gone
    assert absent(data, request) == (0, len(request.texts))


def test_whoever_is_or_was_written_with_a_point_is_nobody_else():
    request, pair = UnlearningRequest(users=["42.0"]), UnlearningRequest(interactions=[("42.0", 1)])
    data = forgetting(numbered((7, 42, "42.0")), request)
    assert left(data) == left(numbered((7, 42, "42.0"))) - {("42.0", item) for item in (1, 2, 3)}
    assert absent(data, request) == (0, 1)
    assert absent(data, pair) == (0, 1)


@pytest.mark.parametrize("name", ["43.0", "42.5", "42.", "x42.0", "042.0"])
def test_no_other_number_is_guessed(name):
    with pytest.raises(RequestError, match=f"user '{name}'"):
        numbered().forget(UnlearningRequest(users=[name]))


def test_under_another_key_no_number_is_guessed(monkeypatch):
    data = forgetting(numbered((7, 42, "42.0")), UnlearningRequest(users=["42.0"]))
    monkeypatch.setenv(KEY, "the key of another machine")
    with pytest.raises(RequestError, match=r"user '42\.0'; whether they were forgotten before cannot be told"):
        data.forget(UnlearningRequest(users=["42.0"]))
