"""Interactions of a PyG graph: positions are those of its nodes, whether they have edges or not."""

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from lightning_ifru import InteractionDataModule, UnlearningRequest
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.hetero import edge_columns, node_counts
from lightning_ifru.sources import read_source

NUM_USERS, NUM_ITEMS = 40, 30  # of which the last two each have no edge
RATES = ("user", "rates", "film")


def graph_of(edges=None, *, reverse=False, **attributes):
    """Two in five pairs, with features that name their node."""
    if edges is None:
        edges = np.argwhere(np.random.default_rng(7).random((NUM_USERS - 2, NUM_ITEMS - 2)) < 0.4).T
    data = HeteroData()
    data["user"].x = torch.arange(NUM_USERS).float()[:, None]
    data["film"].num_nodes = NUM_ITEMS
    # The order of the edges is not that of the nodes.
    data[RATES].edge_index = torch.as_tensor(np.ascontiguousarray(edges[:, ::-1]))
    for name, value in attributes.items():
        data[RATES][name] = value
    if reverse:
        data["film", "rated_by", "user"].edge_index = data[RATES].edge_index.flip(0)
    return data


def module(data, **changes):
    return InteractionDataModule(data, **{"user": "user", "item": "film", "batch_size": 32} | changes)


def pairs(interactions):
    return list(zip(interactions.user.tolist(), interactions.item.tolist(), strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_positions_are_those_of_the_nodes(reverse):
    source = graph_of(reverse=reverse)
    data = module(source, val_fraction=0.2, test_fraction=0.2)
    assert (data.num_users, data.num_items) == (NUM_USERS, NUM_ITEMS)
    assert data.user_ids.tolist() == list(range(NUM_USERS))
    assert data.item_ids.tolist() == list(range(NUM_ITEMS))
    found = pairs(data.train) + pairs(data.val) + pairs(data.test)
    assert sorted(found) == sorted(map(tuple, source[RATES].edge_index.T.tolist()))
    assert data.candidates.tolist() == list(range(NUM_ITEMS - 2))
    # Row for row the features' node.
    assert source["user"].x[data.train.user].flatten().tolist() == data.train.user.tolist()
    assert int(data.graph().max()) < NUM_USERS + NUM_ITEMS
    negatives = torch.cat([batch["negative"] for batch in data.train_dataloader()])
    assert int(negatives.max()) < NUM_ITEMS - 2
    assert set(source[RATES].keys()) == {"edge_index"}


def test_edge_attributes_are_ratings_times_and_splits():
    edges = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    source = graph_of(
        edges, stars=torch.tensor([1.0, 5.0, 3.0, 4.0]), when=torch.tensor([9, 8, 7, 6]), split=["train"] * 3 + ["test"]
    )
    data = module(source, rating="stars", threshold=3.0, timestamp="when", split="given")
    assert pairs(data.train) == [(3, 0), (2, 1), (1, 2)]
    assert pairs(data.test) == [(0, 3)]
    assert data.train.label.tolist() == [0, 1, 1]
    assert data.graph().tolist() == [[2, 1, 41, 42], [41, 42, 2, 1]]
    frame = read_source(source, user="user", item="film", timestamp="when")
    assert frame["timestamp"].tolist() == [9, 8, 7, 6]


@pytest.mark.parametrize("labels", [None, [1, 0, 1], [3, 0, 2], [1.0, 0.0, 1.0]])
def test_edges_with_labels_are_test(labels):
    """As of PyG's AmazonBook, and as ``RandomLinkSplit`` leaves them: those labelled 0 are drawn negatives."""
    source = graph_of(np.array([[0, 1, 2], [0, 1, 2]]), edge_label_index=torch.tensor([[0, 5, 7], [1, 5, 7]]))
    if labels is not None:
        source[RATES].edge_label = torch.tensor(labels)
    data = module(source, split="given")
    assert pairs(data.train) == [(2, 2), (1, 1), (0, 0)]
    assert pairs(data.test) == ([(0, 1), (5, 5), (7, 7)] if labels is None else [(0, 1), (7, 7)])
    assert not len(data.val)
    assert len(module(source, val_fraction=0, test_fraction=0).train) == 3


def test_an_edge_index_of_pygs_own_class_is_read():
    source = graph_of()
    plain = source[RATES].edge_index
    source[RATES].edge_index = EdgeIndex(plain, sparse_size=(NUM_USERS, NUM_ITEMS))
    columns = edge_columns(source, {"user": "user", "item": "film"})
    assert torch.equal(torch.stack([columns["user"], columns["film"]]), plain)
    assert type(columns["user"]) is torch.Tensor


def test_asking_for_nodes_creates_none():
    source = HeteroData()
    source["user", "rates", "film"].edge_index = torch.tensor([[0], [0]])
    with pytest.raises(DataError, match=r"how many nodes of type 'user' there are; set data\['user'\]\.num_nodes"):
        node_counts(source, "user", "film")
    assert source.node_types == []


def broken(**changes):
    source = graph_of(np.array([[0, 1], [1, 0]]))
    for name, value in changes.items():
        source[RATES][name] = value
    return source


def several():
    source = graph_of()
    source["user", "likes", "film"].edge_index = torch.tensor([[0], [0]])
    return source


def turned():
    source = HeteroData()
    source["user"].num_nodes = source["film"].num_nodes = 3
    source["film", "rated_by", "user"].edge_index = torch.tensor([[0], [0]])
    return source


def unsized():
    source = graph_of()
    del source["film"].num_nodes
    return source


LABELLED = {"edge_label_index": torch.tensor([[0], [0]])}


@pytest.mark.parametrize(
    ("source", "arguments", "fragments"),
    [
        (several, {}, ["2 edge types from 'user' to 'film'", "'rates'", "'likes'", "delete all but the one"]),
        (turned, {}, ["no edge type from 'user' to 'film'", "turn the edges ('film', 'rated_by', 'user') round"]),
        (graph_of, {"item": "book"}, ["from 'user' to 'book'", "('user', 'rates', 'film')", "user= and item="]),
        (HeteroData, {}, ["its edge types: none"]),
        (graph_of, {"item": "user"}, ["two roles"]),
        (unsized, {}, ["how many nodes of type 'film'", "data['film'].num_nodes"]),
        (graph_of, {"rating": "stars"}, ["have no attribute 'stars'", "'edge_index'", "add it"]),
        (graph_of, {"split": "given"}, ["no edge_label_index nor attribute 'split'"]),
        (lambda: broken(edge_index=torch.ones(2, 3)), {}, ["[2, 3] of torch.float32", "wanted whole numbers"]),
        (lambda: broken(edge_index=torch.ones(3, 2).long()), {}, ["[3, 2] of torch.int64", "[2, E]"]),
        (lambda: broken(edge_index=None), {}, ["as edge_index NoneType"]),
        (lambda: broken(edge_index=torch.tensor([[0, 40], [0, 0]])), {}, ["node 40 of 40 of type 'user'"]),
        (lambda: broken(edge_index=torch.tensor([[0, 0], [0, -1]])), {}, ["node -1 of 30 of type 'film'"]),
        (lambda: broken(edge_index=torch.empty(2, 0).long()), {}, ["the HeteroData", "no interactions"]),
        (lambda: broken(r=torch.ones(3)), {"rating": "r"}, ["different lengths", "'r': 3"]),
        (lambda: broken(r=torch.ones(2, 1)), {"rating": "r"}, ["(2, 1)", "one dimension"]),
        (lambda: broken(r=torch.tensor([1.0, torch.nan])), {"rating": "r"}, ["1 values", "first in edge 1"]),
        (lambda: broken(split=["train", "dev"]), {"split": "given"}, ["other than train, val, test", "edge 1"]),
        (lambda: broken(split=["train", "val"], **LABELLED), {"split": "given"}, ["there is no 'split'", "edge_index"]),
        (lambda: broken(r=torch.ones(2), **LABELLED), {"rating": "r", "split": "given"}, ["there is no 'r'"]),
        (lambda: broken(edge_label=torch.ones(2), **LABELLED), {"split": "given"}, ["2 labels", "1 edges"]),
    ],
)
def test_a_bad_graph_gets_one_sentence(source, arguments, fragments):
    data = module(source(), **arguments)
    with pytest.raises(DataError) as caught:
        _ = data.num_users
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


# --- forgetting


def test_a_node_without_edges_is_nobody_to_forget():
    data = module(graph_of())
    for request in ({"users": [NUM_USERS - 1]}, {"items": [NUM_ITEMS - 1]}, {"users": [3, NUM_USERS - 2]}):
        with pytest.raises(RequestError, match="1 of the request's entries are not in the data"):
            data.forget(UnlearningRequest(**request))
    data.forget(UnlearningRequest(users=[3]))
    removal = data.removal()
    assert (removal.users.tolist(), removal.items.tolist(), removal.withdrawn.tolist()) == ([3], [], [])


def test_a_checkpoint_finds_the_nodes_again_with_and_without_the_forgotten_edges():
    source = graph_of()
    data = module(source, split="leave_one_out")
    data.forget(UnlearningRequest(users=[3], items=[5], interactions=[tuple(source[RATES].edge_index[:, 0].tolist())]))
    data.commit(data.removal())
    state = data.state_dict()
    kept = [tuple(pair) for pair in source[RATES].edge_index.T.tolist()]
    kept = [pair for pair in kept[1:] if pair[0] != 3 and pair[1] != 5]
    shortened = graph_of(np.array(kept)[::-1].T)
    for fresh in (module(graph_of(), seed=9), module(shortened, split="temporal", timestamp="t")):
        if fresh._columns["timestamp"]:
            shortened[RATES].t = torch.arange(len(kept))
        fresh.load_state_dict(state)
        for name in ("train", "val", "test"):
            assert sorted(pairs(getattr(fresh, name))) == sorted(pairs(getattr(data, name)))
            assert len(getattr(data, name))
        assert (fresh.num_users, fresh.num_items) == (NUM_USERS, NUM_ITEMS)
        assert fresh.candidates.tolist() == [k for k in range(NUM_ITEMS - 2) if k != 5]
        assert fresh.user_ids.tolist() == [None if k == 3 else k for k in range(NUM_USERS)]
        assert fresh.user_ids.tolist() == data.user_ids.tolist()
        fresh.forget(UnlearningRequest(users=[3]))
        assert (len(fresh.removal().positions), fresh.removal().absent) == (0, 1)


def test_an_item_with_its_first_edge_since_the_checkpoint_is_a_candidate():
    edges = graph_of()[RATES].edge_index
    state = module(graph_of()).state_dict()
    grown = module(graph_of(torch.cat([edges, torch.tensor([[0], [NUM_ITEMS - 1]])], 1).numpy()[:, ::-1]))
    grown.load_state_dict(state)
    assert grown.candidates.tolist() == [*range(NUM_ITEMS - 2), NUM_ITEMS - 1]


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_nodes_without_edges_stay_as_they_were_when_others_are_forgotten(loss, make_model, trained):
    source = graph_of()
    source[RATES].stars = (torch.arange(source[RATES].edge_index.shape[1]) % 3 > 0).float()
    rated = {"rating": "stars", "threshold": 1.0} if loss == "bce" else {}
    trainer, model, data = trained(loss, data=module(source, **rated), max_epochs=8)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    report = trainer.unlearn(data, request=UnlearningRequest(users=[3]))
    assert (report.num_users_erased, report.num_items_erased) == (1, 0)
    assert report.steps >= 1
    lonely = [NUM_USERS - 2, NUM_USERS - 1, NUM_USERS + NUM_ITEMS - 2, NUM_USERS + NUM_ITEMS - 1]
    for name, tensor in model.named_parameters():
        assert bool(torch.isfinite(tensor).all())
        assert torch.equal(tensor[lonely], before[name][lonely])
        assert not torch.equal(tensor[3], before[name][3])
