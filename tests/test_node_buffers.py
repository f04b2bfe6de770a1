"""Features and other rows of nodes beside the trained weights: which they are, and that the rows of the erased go."""

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from lightning_ifru import IFRUMixin, InteractionDataModule, ObjectiveError, UnlearningRequest
from lightning_ifru.node_buffers import node_buffers

USERS, ITEMS = 40, 30
NODES = USERS + ITEMS


class Featured(IFRUMixin, lightning.LightningModule):
    """Embeddings and linear encoders of features; one of each way in which a module can hold them."""

    loss = "bce"

    def __init__(self, features, genres):
        super().__init__()
        self.save_hyperparameters()
        self.register_buffer("features", features)
        self.register_buffer("ages", torch.arange(1.0, USERS + 1), persistent=False)
        self.register_buffer("mean", torch.ones(3))
        self.genres = nn.Embedding.from_pretrained(genres, freeze=True)
        self.embedding = nn.Embedding(NODES, 4)
        self.of_user, self.of_item = nn.Linear(features.shape[1] + 1, 4), nn.Linear(genres.shape[1], 4)
        self.norm = nn.BatchNorm1d(4)

    def encode(self, edge_index):
        users = self.of_user(torch.cat([self.features, self.ages.unsqueeze(1) / USERS], dim=1))
        h = self.embedding.weight + torch.cat([users, self.of_item(self.genres.weight)])
        beside = torch.zeros_like(h).index_add(0, edge_index[1], h[edge_index[0]])
        degree = torch.bincount(edge_index[1], minlength=NODES).clamp(min=1).unsqueeze(1)
        return self.norm(h + beside / degree)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.03, weight_decay=1e-3)


@pytest.fixture
def featured():
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(2)
    features, genres = torch.rand(USERS, 3, generator=generator) + 1, torch.rand(ITEMS, 2, generator=generator) + 1
    return Featured(features, genres), features, genres


def buffers(**tensors):
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module


CASES = {
    "by size": (
        buffers(a=torch.ones(3, 2), b=torch.ones(4), c=torch.ones(7, 1)),
        {"a": "user", "b": "item", "c": "node"},
    ),
    "of other sizes": (buffers(a=torch.ones(2, 3), b=torch.tensor(3.0)), {}),
    "statistics of columns": (nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(4)), {}),
    "a frozen table": (nn.Sequential(nn.Embedding(4, 2).requires_grad_(False)), {"0.weight": "item"}),
    "a frozen layer": (nn.Sequential(nn.Linear(2, 4).requires_grad_(False)), {}),
    "a trained table": (nn.Sequential(nn.Embedding(4, 2)), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_holds_rows_of_nodes_is_found_by_its_size(case):
    module, expected = CASES[case]
    assert node_buffers(module, None, 3, 4) == expected


def test_sizes_that_leave_a_doubt_say_nothing_and_a_declaration_does():
    module = buffers(a=torch.ones(3, 2))
    assert node_buffers(module, None, 3, 3) == {}
    assert node_buffers(module, {"a": "item"}, 3, 3) == {"a": "item"}
    for wrong in ({"b": "item"}, {"a": "node"}, {"a": "person"}):
        with pytest.raises(ObjectiveError, match="node_buffers names"):
            node_buffers(module, wrong, 3, 3)


def test_rows_of_the_erased_are_zero_and_nobody_elses_answers_move(featured, trained, make_data):
    model, features, genres = featured
    given = features.clone(), genres.clone()
    trainer, model, data = trained(data=make_data(), model=model)
    film = data.train.item.bincount(minlength=ITEMS).argmin()
    request = UnlearningRequest(users=["person-003", "person-030"], items=[data.item_ids[film]])
    gone = data.table.users.lookup(["person-003", "person-030"])
    report = trainer.unlearn(data, request=request)
    assert report.steps

    stay = np.setdiff1d(np.arange(USERS), gone)
    hyper = [getattr(model, name) for name in ("_hparams", "_hparams_initial")]
    for held in (model.features, *(settings["features"] for settings in hyper)):
        assert not held[gone].any()
        assert torch.equal(held[stay], given[0][stay])
    for held in (model.genres.weight, *(settings["genres"] for settings in hyper)):
        assert held.any(1).tolist() == [place != film for place in range(ITEMS)]
    assert not model.ages[gone].any()
    assert torch.equal(model.mean, torch.ones(3))
    # What the caller has is the caller's.
    assert torch.equal(features, given[0])
    assert torch.equal(genres, given[1])

    model.eval()
    with torch.no_grad():
        cleared = model.encode(data.graph())
        model.features, model.genres = features, nn.Embedding.from_pretrained(genres)
        full = model.encode(data.graph())
    there = torch.ones(NODES, dtype=torch.bool)
    there[gone], there[USERS + film] = False, False
    assert torch.equal(cleared[there], full[there])
    assert not torch.allclose(cleared[~there], full[~there])


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_features_and_arrays_are_cleared_too(layout, featured, trained, make_data):
    model, features, _ = featured
    model.register_buffer("words", features.to_sparse(layout=layout))
    model.hparams["array"] = features.numpy()
    trainer, model, data = trained(data=make_data(), model=model, max_epochs=2)
    trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]))
    assert model.words.layout == layout
    assert len(model.words.to_sparse_coo().coalesce().values()) == 3 * (USERS - 1)  # and not zeros in their place
    assert torch.equal(model.words.to_dense(), model.features)
    assert np.array_equal(model.hparams["array"], model.features.numpy())
    assert int((model.features == 0).all(1).sum()) == 1
    assert features.all()


def test_rows_in_nested_settings_are_cleared_and_the_callers_own_are_not(featured, trained, make_data):
    model, features, genres = featured
    nested = {"inputs": [features, {"genres": genres.numpy(), "width": 3}], "none": (1, "a")}
    model.hparams["nested"] = nested
    trainer, model, data = trained(data=make_data(), model=model, max_epochs=2)
    trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]))
    held = model.hparams["nested"]
    assert torch.equal(held["inputs"][0], model.features)
    assert held["inputs"][0].all(1).tolist() == [user != 3 for user in range(USERS)]
    assert (held["inputs"][1]["genres"] == nested["inputs"][1]["genres"]).all()
    assert held["none"] is nested["none"]
    assert nested["inputs"][0] is features
    assert features.all()


def test_a_dense_matrix_of_numbers_is_no_graph(featured, make_data, make_trainer):
    data = make_data()
    model, trainer = Kept(*featured[1:], torch.rand(USERS, ITEMS) + 1), make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]))
    assert model.edges.all(1).tolist() == [user != 3 for user in range(USERS)]


def test_a_failure_afterwards_puts_the_rows_back(featured, trained, make_data, snapshot, monkeypatch):
    trainer, model, data = trained(data=make_data(), model=featured[0])
    hyper = {name: dict(getattr(model, name)) for name in ("_hparams", "_hparams_initial")}
    before = snapshot(model=model, data=data, trainer=trainer)
    ages = model.ages.clone()
    cleared = []

    def fail(*_, **__):
        cleared.append(not model.features[3].any() and not model.hparams["features"][3].any())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", fail)
    request = UnlearningRequest(users=[data.user_ids[3]])
    with pytest.raises(Exception, match="No space left"):
        trainer.unlearn(data, request=request)
    assert cleared == [True]
    data.discard()
    before.check(but={"pending"})
    assert torch.equal(model.ages, ages)
    for name, settings in hyper.items():
        assert all(torch.equal(value, getattr(model, name)[key]) for key, value in settings.items())


def test_nothing_is_cleared_where_the_module_says_so(featured, trained, make_data):
    model, features, _ = featured
    model.node_buffers = {}
    trainer, model, data = trained(data=make_data(), model=model, max_epochs=2)
    trainer.unlearn(data, request=UnlearningRequest(users=["person-003"]))
    assert torch.equal(model.features, features)
    assert torch.equal(model.hparams["features"], features)


def test_who_is_left_in_test_keeps_the_features(featured, trained, make_data):
    trainer, model, data = trained(data=make_data(), model=featured[0], max_epochs=2)
    held_out = data.test.user.tolist() + data.val.user.tolist()
    place = next(user for user in held_out if (data.train.user == user).any())
    pairs = [(data.user_ids[place], data.item_ids[item]) for item in data.train.item[data.train.user == place].tolist()]
    report = trainer.unlearn(data, request=UnlearningRequest(interactions=pairs))
    assert report.num_users_erased == 1
    assert data.user_ids[place] is not None
    assert model.features[place].all()


class Kept(Featured):
    """Keeps a copy of the graph."""

    def __init__(self, features, genres, edges):
        super().__init__(features, genres)
        self.register_buffer("edges", edges)


FORMS = (
    *("edges of nodes", "pairs of users and items", "a sparse matrix", "a history", "a mask", "a mask of items"),
    *("an adjacency", "a sparse mask", "with times", "rows with times", "floats", "short integers", "bytes"),
)


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_of_the_graph_is_refused_before_anything_is_done(form, featured, make_data, make_trainer):
    data = make_data()
    graph = data.graph()
    pairs = torch.stack([data.train.user, data.train.item])
    sparse = torch.sparse_coo_tensor(graph, torch.ones(graph.shape[1]), (NODES, NODES))
    mask = torch.zeros(USERS, ITEMS, dtype=torch.bool)
    mask[tuple(pairs)] = True
    forms = (
        graph,
        pairs,
        sparse,
        pairs.T,
        mask,
        mask.T.to(torch.int64),
        sparse.to_dense(),
        mask.float().to_sparse(),
        torch.cat([pairs, 1_700_000_000 + torch.arange(pairs.shape[1])[None]]),
        torch.stack([torch.arange(pairs.shape[1]) % 5, pairs[1] + USERS, pairs[0]], dim=1),
        pairs.T.float(),
        pairs.short(),
        pairs.to(torch.uint8),
    )
    edges = dict(zip(FORMS, forms, strict=True))[form]
    model, trainer = Kept(*featured[1:], edges.clone()), make_trainer(max_epochs=1)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ObjectiveError, match="the buffer 'edges' of Kept is a graph of its own"):
        trainer.unlearn(data, model=model, request=UnlearningRequest(users=["person-003"]))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert isinstance(data, InteractionDataModule)
    assert data.user_ids[3] == "person-003"


#: Where else pairs may be kept, and what is said of it.
KEEPING = {
    "a frozen parameter": (
        lambda model, pairs: model.register_parameter("seen", nn.Parameter(pairs.T.float(), requires_grad=False)),
        "the frozen parameter 'seen' of",
    ),
    "two buffers": (
        lambda model, pairs: [model.register_buffer(n, p) for n, p in zip(("who", "what"), pairs, strict=True)],
        "the buffer 'who' with the buffer 'what' of",
    ),
    "a hyper-parameter": (lambda model, pairs: model.hparams.update(seen=pairs), "the hyper-parameter 'seen' of"),
    "a nested array": (
        lambda model, pairs: model.hparams.update(seen={"a": [pairs.T.numpy()]}),
        "the hyper-parameter 'seen' of",
    ),
    "two arrays": (
        lambda model, pairs: model.hparams.update(who=pairs[0].numpy(), what=pairs[1].tolist(), items=pairs[1]),
        "the hyper-parameter 'who' with the hyper-parameter 'items' of",
    ),
}


@pytest.mark.parametrize("where", KEEPING)
def test_a_history_is_refused_wherever_it_is_kept(where, featured, make_data, make_trainer):
    keep, said = KEEPING[where]
    data, model = make_data(), featured[0]
    keep(model, torch.stack([data.train.user, data.train.item]))
    with pytest.raises(ObjectiveError, match=f"{said} Featured is a graph of its own"):
        make_trainer().unlearn(data, model=model, request=UnlearningRequest(users=["person-003"]))


def test_features_of_few_numbers_are_no_history(featured, make_data, make_trainer):
    data, model = make_data(), featured[0]
    pair = data.train.user[0], data.train.item[0]
    # Most are pairs of the data and one is to be forgotten, but they are one pair all the time.
    codes = torch.stack([pair[0].expand(50), pair[1].expand(50), torch.arange(50) % 2])
    codes[:2, 1::2] = torch.tensor([[data.train.user[1]], [data.train.item[1]]])
    model.register_buffer("codes", codes.T)
    model.register_buffer("who", codes[0])
    model.register_buffer("what", codes[1].double())
    trainer = make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    request = UnlearningRequest(interactions=[(data.user_ids[pair[0]], data.item_ids[pair[1]])])
    assert trainer.unlearn(data, request=request).num_forgotten == 1


def test_two_rows_of_other_numbers_are_no_graph(featured, make_data, make_trainer):
    data = make_data()
    table = torch.arange(2 * 50).reshape(2, 50) % 37
    table[0, 0], table[1, 0] = data.train.user[0], data.train.item[0]  # a forgotten pair, by chance
    model, trainer = Kept(*featured[1:], table), make_trainer(max_epochs=1)
    trainer.fit(model, datamodule=data)
    pair = (data.user_ids[data.train.user[0]], data.item_ids[data.train.item[0]])
    trainer.unlearn(data, request=UnlearningRequest(interactions=[pair]))
    assert torch.equal(model.edges, table)
