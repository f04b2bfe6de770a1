import gc
import gzip
import weakref
import zipfile

import lightning
import numpy as np
import pytest
import torch

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.influence import IFRU
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.unlearning import Unlearning


def source(n=400, users=30, items=20, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.integers(0, users, n),
        "item": rng.integers(0, items, n),
        "rating": rng.integers(1, 6, n).astype(float),
    }


def labelled(**changes):
    return InteractionDataModule(source(), **({"rating": "rating", "threshold": 3.0, "batch_size": 32} | changes))


def implicit(**changes):
    return InteractionDataModule(source(), **({"batch_size": 32, "num_negatives": 3} | changes))


def pairs(interactions):
    return set(zip(interactions.user.tolist(), interactions.item.tolist(), strict=True))


def from_batches(loader):
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


class Model(lightning.LightningModule):
    """Reads every batch and remembers the pairs it saw, by stage."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Embedding(50, 4)
        self.seen = {}

    def score(self, stage, batch):
        seen = zip(batch["user"].tolist(), batch["item"].tolist(), strict=True)
        self.seen.setdefault(stage, set()).update(seen)
        return (self.weight(batch["user"]) * self.weight(batch["item"] + 30)).sum(-1)

    def training_step(self, batch):
        return self.score("fit", batch).square().mean()

    def validation_step(self, batch):
        self.log("val", self.score("validate", batch).mean())

    def test_step(self, batch):
        self.log("test", self.score("test", batch).mean())

    def predict_step(self, batch):
        return self.score("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **changes):
    return lightning.Trainer(
        **{
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
        }
        | changes
    )


# --- what is there after construction


def test_everything_is_there_without_setup(tmp_path):
    path = tmp_path / "ratings.csv.gz"
    path.write_bytes(gzip.compress(b"who,what,stars\n007,NA,5\n8,x,1\n007,x,4\n007,x,2\n9,x,4\n"))
    data = InteractionDataModule(
        path, user="who", item="what", rating="stars", threshold=4, val_fraction=0, test_fraction=0
    )
    assert (data.num_users, data.num_items, data.labelled) == (3, 2, True)
    assert data.user_ids.tolist() == ["007", "8", "9"]
    assert data.item_ids.tolist() == ["NA", "x"]
    assert data.train.user.tolist() == [0, 1, 0, 2]
    assert data.train.item.tolist() == [0, 1, 1, 1]
    assert data.train.label.tolist() == [1, 0, 0, 1]
    assert data.graph().tolist() == [[0, 2, 3, 4], [3, 4, 0, 2]]
    assert len(data.val) == len(data.test) == 0
    assert data.candidates.tolist() == [0, 1]
    assert data.pending is None


def test_the_graph_is_of_positive_training_interactions_in_both_directions():
    data = labelled()
    train = data.train
    wanted = set()
    for user, item, label in zip(train.user.tolist(), train.item.tolist(), train.label.tolist(), strict=True):
        if label > 0:
            wanted |= {(user, data.num_users + item), (data.num_users + item, user)}
    graph = data.graph()
    assert {tuple(edge) for edge in graph.T.tolist()} == wanted
    assert graph.shape == (2, len(wanted))
    assert 0 < len(wanted) < 2 * len(train)
    assert data.graph() is graph


def test_the_splits_are_disjoint_and_complete():
    data = implicit(val_fraction=0.2, test_fraction=0.3)
    splits = [pairs(data.train), pairs(data.val), pairs(data.test)]
    every = {(data.user_ids[u], data.item_ids[i]) for split in splits for u, i in split}
    assert every == set(zip(source()["user"].tolist(), source()["item"].tolist(), strict=True))
    assert sum(map(len, splits)) == len(every)
    assert min(map(len, splits)) > 0


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"split": "temporal"}, "split='temporal'"),
        ({"split": "by_moon"}, "split='by_moon'"),
        ({"split": "leave_one_out", "val_fraction": 0.3}, "val_fraction=0.3 does not apply"),
        ({"split": "given", "test_fraction": 0}, "test_fraction=0 does not apply"),
        ({"duplicates": "first"}, "duplicates='first' is not known; choose 'latest' or 'keep'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"num_negatives": -1}, "num_negatives=-1"),
        ({"seed": "x"}, "seed='x'"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "sum below 1"),
        ({"rating": None}, "threshold=3.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
    ],
)
def test_bad_arguments_are_refused_at_once(changes, fragment):
    with pytest.raises(DataError, match=fragment):
        labelled(**changes)


TIMED, KEPT = {"timestamp": "when"}, {"duplicates": "keep"}
LAST, OLDEST, GIVEN = {"split": "leave_one_out"}, {"split": "temporal", **TIMED}, {"split": "given"}


@pytest.mark.parametrize(
    ("changes", "train", "val", "test"),
    [
        (LAST, "at bs au bu", "as", "av"),
        (LAST | TIMED, "at bs au bu", "av", "as"),
        (LAST | TIMED | KEPT, "at bs au bu", "av", "as as"),
        (LAST | {"test_fraction": 0}, "at bs au as bu", "av", ""),
        (OLDEST | {"val_fraction": 0.17, "test_fraction": 0.34}, "at bs au", "bu", "as av"),
        (OLDEST | KEPT | {"val_fraction": 0.17, "test_fraction": 0.34}, "at bs au", "bu", "as as av"),
        (OLDEST | {"val_fraction": 0, "test_fraction": 0.17}, "at bs au bu av", "", "as"),
        (GIVEN, "bs bu av", "au as", "at"),
        (GIVEN | KEPT, "bs bu av", "au as as", "at"),
        (GIVEN | TIMED, "as bs bu av", "au", "at"),
        (GIVEN | TIMED | KEPT, "as as bs bu av", "au", "at"),
    ],
    ids=str,
)
def test_a_split_worked_out_by_hand(tmp_path, changes, train, val, test):
    """Of ``as`` there are two, of which the first of the source is the later by time; ``b`` has too few to hold out."""
    path = tmp_path / "events.csv"
    path.write_text(
        "user,item,when,split\na,s,2024-07-07,train\na,t,2024-01-01,test\nb,s,2024-03-03,train\na,u,2024-02-01,val\n"
        "a,s,2024-06-01,val\nb,u,2024-04-01T00:00Z,train\na,v,2024-05-01,train\n"
    )
    data = InteractionDataModule(path, **changes)
    for name, wanted in (("train", train), ("val", val), ("test", test)):
        some = getattr(data, name)
        found = [
            data.user_ids[u] + data.item_ids[i] for u, i in zip(some.user.tolist(), some.item.tolist(), strict=True)
        ]
        assert sorted(found) == sorted(wanted.split()), name


def test_a_given_split_needs_its_column():
    with pytest.raises(DataError, match=r"no column 'split' .* add it"):
        _ = implicit(split="given").num_users


def test_a_bad_source_is_refused_on_first_use(tmp_path):
    data = InteractionDataModule(tmp_path / "ratings.csv")
    with pytest.raises(DataError, match="no file"):
        _ = data.num_users
    (tmp_path / "ratings.csv").write_text("user,item\n1,2\n3,4\n")
    assert data.num_users == 2


def test_nothing_is_kept_of_a_mapping_of_arrays():
    class Column(np.ndarray):
        pass

    arrays = {name: values.view(Column) for name, values in source().items()}
    mapping = dict(arrays)  # only the module may hold it from here on
    alive = [weakref.ref(array) for array in arrays.values()]
    data = InteractionDataModule(mapping, rating="rating")
    del arrays, mapping
    gc.collect()
    assert all(ref() is not None for ref in alive)
    assert data.num_users == 30
    gc.collect()
    assert all(ref() is None for ref in alive)
    assert not data.hparams


# --- batches


def test_a_labelled_epoch_holds_every_training_interaction_once():
    data = labelled()
    loader = data.train_dataloader()
    shapes = [batch["user"].shape for batch in loader]
    assert shapes[:-1] == [(32,)] * (len(loader) - 1)
    epoch = from_batches(loader)
    assert epoch.keys() == {"user", "item", "label"}
    triples = sorted(zip(*(epoch[name].tolist() for name in ("user", "item", "label")), strict=True))
    train = data.train
    wanted = list(zip(train.user.tolist(), train.item.tolist(), train.label.tolist(), strict=True))
    assert triples == sorted(wanted)
    assert list(zip(*(epoch[name].tolist() for name in ("user", "item", "label")), strict=True)) != wanted
    assert (epoch["label"].dtype, epoch["user"].dtype) == (torch.float32, torch.int64)


def test_training_negatives_are_new_each_epoch_and_follow_the_global_seed():
    data = implicit()
    lightning.seed_everything(1, verbose=False)
    loader = data.train_dataloader()
    one, other = from_batches(loader), from_batches(loader)
    lightning.seed_everything(1, verbose=False)
    again = from_batches(data.train_dataloader())
    assert one.keys() == {"user", "item", "negative"}
    assert one["negative"].shape == (len(data.train), 3)
    assert not torch.equal(one["negative"], other["negative"])
    assert torch.equal(one["negative"], again["negative"])
    assert torch.equal(one["user"], again["user"])


def test_negatives_are_uniform_over_the_candidates():
    data = implicit(num_negatives=200)
    data.forget(UnlearningRequest(items=[data.item_ids[5]]))
    data.commit(data.removal())
    drawn = torch.bincount(from_batches(data.train_dataloader())["negative"].flatten(), minlength=20)
    assert drawn[5] == 0
    others = drawn[torch.arange(20) != 5].double()
    assert ((others / others.mean() - 1).abs() < 5 / others.mean().sqrt()).all()


def test_held_out_batches_are_the_same_every_time_and_for_every_batch_size():
    data, larger = implicit(), implicit(batch_size=1000)
    for name in ("val", "test", "predict"):
        first, second, third = (from_batches(getattr(d, f"{name}_dataloader")()) for d in (data, data, larger))
        interactions = data.val if name == "val" else data.test
        assert torch.equal(first["user"], interactions.user)
        assert torch.equal(first["item"], interactions.item)
        for key in first:
            assert torch.equal(first[key], second[key])
            assert torch.equal(first[key], third[key])
    other = implicit(seed=1, val_fraction=0.2)
    negatives = [from_batches(d.val_dataloader())["negative"][:30] for d in (implicit(val_fraction=0.2), other)]
    assert not torch.equal(*negatives)


@pytest.mark.parametrize("make", [labelled, implicit])
@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_a_trainer_runs_with_and_without_held_out_interactions(tmp_path, make, fractions):
    data, model = make(val_fraction=fractions[0], test_fraction=fractions[1]), Model()
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    assert model.seen["fit"] == pairs(data.train)
    assert ("validate" in model.seen) == (fractions[0] > 0)
    for stage, interactions in (("validate", data.val), ("test", data.test), ("predict", data.test)):
        model.seen.clear()
        getattr(run, stage)(model, datamodule=data)
        assert model.seen.get(stage, set()) == pairs(interactions)


# --- forgetting


def test_forgetting_is_staged_and_then_committed():
    data = implicit()
    user, item = data.user_ids[3], data.item_ids[4]
    before, graph = pairs(data.train), data.graph()
    data.forget(UnlearningRequest(users=[user]))
    data.forget(UnlearningRequest(items=[str(item)]))
    assert data.pending == UnlearningRequest(users=[user], items=[item])
    assert pairs(data.train) == before
    assert data.graph() is graph

    removal = data.removal()
    data.commit(removal)
    assert data.pending is None
    assert pairs(data.train) == {(u, i) for u, i in before if u != 3 and i != 4} != before
    assert removal.counts["train"] == len(before) - len(data.train)
    assert data.user_ids[3] is None
    assert (data.num_users, data.num_items) == (30, 20)
    assert not ({3, 30 + 4} & set(data.graph().flatten().tolist()))
    assert 4 not in data.candidates.tolist()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batches = from_batches(loader)
        assert 3 not in batches["user"].tolist()
        assert 4 not in batches["item"].tolist() + batches["negative"].flatten().tolist()


def test_what_is_staged_can_be_dropped():
    data = implicit()
    data.forget(UnlearningRequest(users=[data.user_ids[0]]))
    data.discard()
    assert data.pending is None
    with pytest.raises(RequestError, match="nothing is staged"):
        data.removal()


def test_a_refused_request_leaves_what_was_staged():
    data = implicit()
    data.forget(UnlearningRequest(users=[data.user_ids[0]]))
    for request in (UnlearningRequest(users=["ghost"]), UnlearningRequest(users=data.user_ids)):
        with pytest.raises(RequestError):
            data.forget(request)
    with pytest.raises(RequestError, match="pass UnlearningRequest"):
        data.forget({"users": [1]})
    assert data.pending == UnlearningRequest(users=[data.user_ids[0]])


def test_a_later_fit_never_sees_what_was_forgotten(tmp_path):
    data, model = labelled(), Model()
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    gone = pairs(data.train[:5]) | pairs(data.val[:2]) | pairs(data.test[:2])
    assert len(gone) == 9
    data.forget(
        UnlearningRequest(
            users=[data.user_ids[7]], interactions=[(data.user_ids[u], data.item_ids[i]) for u, i in gone]
        )
    )
    data.commit(data.removal())
    model.seen.clear()
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data)
    for stage in ("fit", "validate", "test"):
        assert model.seen[stage]
        assert not model.seen[stage] & gone
        assert 7 not in {user for user, _ in model.seen[stage]}


def test_a_checkpoint_carries_what_is_forgotten_into_a_new_process(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("user,item\n" + "".join(f"u{u},i{i}\n" for u in range(12) for i in range(9) if (u * i) % 4))
    data, model = InteractionDataModule(path), Model()
    data.forget(UnlearningRequest(users=["u3"], interactions=[("u5", "i1")]))
    data.commit(data.removal())
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    with zipfile.ZipFile(tmp_path / "last.ckpt") as archive:
        (pickled,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"u3" not in pickled
    assert b"u5" in pickled

    fresh = InteractionDataModule(path, seed=4)
    assert (graph := fresh.graph()).shape != data.graph().shape
    again = Model()
    trainer(tmp_path, max_epochs=2).fit(again, datamodule=fresh, ckpt_path=tmp_path / "last.ckpt")
    assert fresh.user_ids.tolist() == data.user_ids.tolist()
    for name in ("train", "val", "test"):
        assert pairs(getattr(fresh, name)) == pairs(getattr(data, name))
    assert torch.equal(fresh.graph(), data.graph())
    assert fresh.graph() is not graph
    assert again.seen["fit"] == pairs(data.train)
    graph = fresh.graph()
    fresh.forget(UnlearningRequest(users=["u3"], interactions=[("u5", "i1"), ("u3", "i2")]))
    removal = fresh.removal()
    assert (len(removal.positions), removal.absent) == (0, 3)
    assert fresh.graph(without=removal) is graph
    fresh.commit(removal)
    assert fresh.graph() is graph
    assert fresh.pending is None
    with pytest.raises(RequestError, match="u33"):
        fresh.forget(UnlearningRequest(users=["u3", "u33"]))


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_an_item_only_held_out_stays_a_candidate_and_its_row_an_unknown_where_it_is_drawn(make_data, make_model, loss):
    data = make_data(loss, val_fraction=0.3, test_fraction=0.3)
    train, held = data.train, torch.cat([data.val.item, data.test.item])
    item = int(train.item[torch.isin(train.item, held)][0])
    users = train.user[train.item == item].tolist()
    gone = int(train.item[train.item != item][0])
    request = UnlearningRequest(
        interactions=[(data.user_ids[user], data.item_ids[item]) for user in users], items=[data.item_ids[gone]]
    )
    data.forget(request)
    problem = Unlearning.of(make_model(loss), data, IFRU()).problem
    erased = problem.erased[data.num_users :].nonzero().flatten().tolist()
    assert erased == ([gone] if loss == "bpr" else sorted([item, gone]))
    left = sorted(set(range(data.num_items)) - {gone})
    assert problem.candidates_after.tolist() == left
    data.commit(data.removal())
    assert data.candidates.tolist() == left
    if loss == "bpr":
        drawn = torch.cat([from_batches(data.train_dataloader())["negative"] for _ in range(5)])
        assert drawn.unique().tolist() == left


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_what_occurs_twice_is_trained_on_twice_and_forgotten_at_once(planted, make_data, trained, loss):
    twice = {name: [*column, *column[:40]] for name, column in planted.items()}
    once, data = make_data(loss, source=twice), make_data(loss, source=twice, duplicates="keep")
    assert len(data.table) - len(once.table) == 40
    again = list(zip(data.train.user.tolist(), data.train.item.tolist(), strict=True))
    repeated = {pair for pair in again if again.count(pair) == 2}
    assert len(repeated) > 20
    every = [pairs(one.train) | pairs(one.val) | pairs(one.test) for one in (data, once)]
    assert every[0] == every[1]
    assert not pairs(data.train) & (pairs(data.val) | pairs(data.test))
    edges = [tuple(edge) for edge in data.graph().T.tolist()]
    assert max(edges.count(edge) for edge in edges) == 2

    user, item = sorted(repeated)[0]
    trainer, _, data = trained(loss, data=data, max_epochs=2)
    batch = from_batches(data.train_dataloader())
    assert int(((batch["user"] == user) & (batch["item"] == item)).sum()) == 2
    request = UnlearningRequest(interactions=[(data.user_ids[user], data.item_ids[item])])
    report = trainer.unlearn(data, request=request)
    assert report.num_forgotten == 2
    assert (user, item) not in pairs(data.train)
    assert len(data.train) == len(again) - 2


def test_the_graph_after_a_removal_is_known_before_and_is_the_one_built_anew():
    data = labelled()
    before = data.graph()
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    removal = data.removal()
    after = data.graph(without=removal)
    assert data.graph() is before
    assert after.shape[1] < before.shape[1]
    data.commit(removal)
    assert data.graph() is after
    edges = data.table.select("train", positive=True)
    assert torch.equal(after, bipartite_edge_index(edges.user, edges.item, data.num_users))


def test_the_graph_stays_where_no_edge_goes():
    data = labelled()
    held_out = data.test
    pair = data.user_ids[int(held_out.user[0])], data.item_ids[int(held_out.item[0])]
    data.forget(UnlearningRequest(interactions=[pair]))
    assert data.graph(without=data.removal()) is data.graph()


def test_what_is_staged_and_forgotten_can_be_undone():
    data = labelled()
    graph, state = data.graph(), str(data.state_dict())
    data.forget(staged := UnlearningRequest(users=[data.user_ids[3]]))
    with data.revocable() as undo:
        data.forget(UnlearningRequest(users=[data.user_ids[4]]))
        data.commit(data.removal())
        assert str(data.state_dict()) != state
        undo()
    assert data.pending == staged
    assert data.graph() is graph
    assert str(data.state_dict()) == state
