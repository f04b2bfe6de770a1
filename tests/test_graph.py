import gc
import itertools
import math
import weakref

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import LGConv

from lightning_ifru import graph
from lightning_ifru.graph import (
    Importance,
    affected_nodes,
    bipartite_edge_index,
    layer_sum,
    normalized_adjacency,
    propagate,
)

USERS, ITEMS = 7, 6
NODES = USERS + ITEMS


def random_graph(seed=0, edges=9, users=USERS, items=ITEMS):
    """A random bipartite graph without repeated edges; few enough edges leave nodes without any."""
    code = torch.randperm(users * items, generator=torch.Generator().manual_seed(seed))[:edges]
    return bipartite_edge_index(code // items, code % items, users)


def isolated(edge_index, num_nodes):
    mask = torch.ones(num_nodes, dtype=torch.bool)
    mask[edge_index.flatten()] = False
    return mask


def random_rows(seed, shape=(NODES, 3)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- propagation


def test_edge_index_holds_both_directions_with_items_after_users():
    user, item = torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1])
    edges = bipartite_edge_index(user, item, num_users=3).T.tolist()
    wanted = [[u, 3 + i] for u, i in zip(user.tolist(), item.tolist(), strict=True)]
    assert edges == wanted + [[t, s] for s, t in wanted]


def test_an_edge_index_built_in_inference_mode_can_be_differentiated_through_later():
    user, item = torch.tensor([0, 1]), torch.tensor([0, 0])
    with torch.inference_mode():
        edge_index = bipartite_edge_index(user, item, 2)
        propagate(edge_index, torch.ones(3, 1))
    x = torch.ones(3, 1, requires_grad=True)
    propagate(edge_index, x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


@pytest.mark.parametrize("seed", range(3))
def test_propagation_equals_pyg_in_value_gradient_forward_and_second_derivative(seed):
    edge_index = random_graph(seed)
    assert isolated(edge_index, NODES).any(), "the case should hold isolated nodes"
    x, t, c = random_rows(seed), random_rows(seed + 10), random_rows(seed + 20)
    layer = LGConv().double()

    def twice(step):
        """A function that is not linear in x, so that its second derivatives are not zero."""
        return lambda x: (c * step(torch.tanh(step(x)))).sum()

    mine, theirs = (lambda x: propagate(edge_index, x)), (lambda x: layer(x, edge_index))
    torch.testing.assert_close(mine(x), theirs(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(mine(x), oracles.dense_adjacency(edge_index, NODES) @ x, rtol=0, atol=1e-14)
    results = []
    for step in (mine, theirs):
        f = twice(step)
        forward = torch.func.jvp(torch.func.grad(f), (x,), (t,))
        reverse = torch.autograd.functional.vhp(f, x, t)[1]
        results.append((*forward, reverse, torch.func.jvp(step, (x,), (t,))[1]))
    for a, b in zip(*results, strict=True):
        assert b.norm() > 1e-2
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_propagation_passes_gradcheck_in_both_modes():
    edge_index = random_graph(1)
    x = random_rows(0).requires_grad_()

    def f(x):
        return propagate(edge_index, x).sin()

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_propagation_keeps_the_dtype_and_its_precision(dtype):
    edge_index = random_graph(2)
    x = random_rows(0).to(dtype)
    out = propagate(edge_index, x)
    assert out.dtype == dtype
    wanted = oracles.dense_adjacency(edge_index, NODES) @ x.double()
    error = float((out.double() - wanted).abs().max())
    assert error < 8 * torch.finfo(dtype).eps
    assert propagate(edge_index, x.double()).dtype == torch.float64, "both dtypes of one graph live side by side"


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "under autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_propagation_of_half_precision_sums_in_float32(dtype, autocast):
    edge_index = random_graph(2)
    x = random_rows(0).to(dtype).requires_grad_()
    weight = random_rows(1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = propagate(edge_index, x)
        (found,) = torch.autograd.grad((out * weight).sum(), x)
    assert out.dtype == found.dtype == dtype
    adjacency = oracles.dense_adjacency(edge_index, NODES)
    for got, rows in ((out, x), (found, weight)):
        wanted = adjacency @ rows.detach().double()
        assert wanted.norm() > 1
        # One rounding of the result, and of nothing on the way to it.
        torch.testing.assert_close(got.detach().double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_isolated_nodes_receive_and_send_nothing():
    edge_index = random_graph(0)
    alone = isolated(edge_index, NODES)
    assert alone.any()
    x = random_rows(0)
    out = propagate(edge_index, x)
    assert not out[alone].any()
    assert out[~alone].any(dim=1).all()
    assert torch.equal(out, propagate(edge_index, x.masked_fill(alone[:, None], 1e6)))


@given(st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1)), max_size=20), st.randoms())
def test_of_edges_in_any_order_those_that_repeat_add_up_and_columns_ascend(pairs, random):
    pairs = [*pairs, *pairs[:4]]  # some are there more than once
    edges = [*((u, USERS + i) for u, i in pairs), *((USERS + i, u) for u, i in pairs)]
    random.shuffle(edges)
    edge_index = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
    found = normalized_adjacency(edge_index, NODES, torch.float64)
    torch.testing.assert_close(found.to_dense(), oracles.dense_adjacency(edge_index, NODES), rtol=0, atol=1e-14)
    start, column = found.crow_indices().tolist(), found.col_indices().tolist()
    rows = [column[a:b] for a, b in itertools.pairwise(start)]
    assert rows == [sorted({b for a, b in edges if a == node}) for node in range(NODES)]


def test_a_graph_without_edges_propagates_zeros():
    assert not propagate(torch.empty(2, 0, dtype=torch.long), random_rows(0)).any()


def test_the_adjacency_is_built_once_for_a_graph_and_dies_with_it():
    edge_index = random_graph(0)
    first = normalized_adjacency(edge_index, NODES)
    assert normalized_adjacency(edge_index, NODES) is first
    assert normalized_adjacency(edge_index.clone(), NODES) is not first
    assert normalized_adjacency(edge_index, NODES, torch.float64).dtype == torch.float64
    kept, before = weakref.ref(first), len(graph._adjacencies)
    # The derivatives keep the graph while they live, and no longer.
    x = torch.ones(NODES, 2, requires_grad=True)
    propagate(edge_index, x).sum().backward()
    del first, edge_index
    gc.collect()
    assert kept() is None
    assert len(graph._adjacencies) < before


# ---------------------------------------------------------------- what is affected


def naive_reach(edge_index, endpoints, num_nodes, hops):
    """Breadth-first search, node by node."""
    neighbours = {v: set() for v in range(num_nodes)}
    for s, t in edge_index.T.tolist():
        neighbours[s].add(t)
    distance = dict.fromkeys(endpoints, 0)
    queue = list(endpoints)
    for v in queue:
        for w in neighbours[v]:
            if w not in distance:
                distance[w] = distance[v] + 1
                queue.append(w)
    return [distance.get(v, math.inf) <= hops for v in range(num_nodes)]


@given(seed=st.integers(0, 999), edges=st.integers(0, 25), hops=st.integers(0, 4), count=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_affected_nodes_are_those_a_breadth_first_search_finds(seed, edges, hops, count):
    edge_index = random_graph(seed, edges)
    endpoints = torch.randperm(NODES, generator=torch.Generator().manual_seed(seed + 1))[:count]
    found = affected_nodes(edge_index, endpoints, NODES, hops)
    assert found.tolist() == naive_reach(edge_index, endpoints.tolist(), NODES, hops)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_representations_change_at_exactly_the_affected_nodes(layers, seed):
    users, items = 30, 25
    edge_index = random_graph(seed, 55, users, items)
    gone = 3
    pairs = edge_index[:, : edge_index.shape[1] // 2]
    after = bipartite_edge_index(pairs[0, gone:], pairs[1, gone:] - users, users)
    x = random_rows(seed, (users + items, 2))
    before_h, after_h = (
        oracles.represent(x, oracles.dense_adjacency(e, users + items), layers) for e in (edge_index, after)
    )
    changed = ((before_h - after_h).abs() > 1e-10).any(dim=1)
    marked = affected_nodes(edge_index, pairs[:, :gone].flatten(), users + items, layers)
    if layers == 0:
        assert not changed.any()
        assert int(marked.sum()) == len(pairs[:, :gone].unique())
        return
    assert 0 < int(changed.sum()) < users + items
    assert torch.equal(changed, marked)
    fewer = affected_nodes(edge_index, pairs[:, :gone].flatten(), users + items, layers - 1)
    assert int(fewer.sum()) < int(marked.sum()), "the case should tell L hops from L - 1"


# ---------------------------------------------------------------- importance


def naive_importance(edge_index, counts, hops):
    """The docstring's formula, by loops."""
    n = len(counts)
    neighbours = [[] for _ in range(n)]
    for s, t in edge_index.T.tolist():
        neighbours[t].append(s)
    score = [counts[v] / len(neighbours[v]) if neighbours[v] else 0.0 for v in range(n)]
    for _ in range(hops):
        score = [
            (score[v] + sum(score[u] for u in neighbours[v])) / len(neighbours[v]) if neighbours[v] else 0.0
            for v in range(n)
        ]
    return score


@pytest.mark.parametrize("hops", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_importance_equals_its_formula_evaluated_by_loops(hops, seed):
    edge_index = random_graph(seed, 18)
    counts = torch.zeros(NODES, dtype=torch.float64)
    forgotten = edge_index[:, : edge_index.shape[1] // 2][:, :2]
    counts.index_add_(0, forgotten.flatten(), torch.ones(4, dtype=torch.float64))
    score = Importance(hops)(edge_index, counts)
    wanted = torch.tensor(naive_importance(edge_index, counts.tolist(), hops), dtype=torch.float64)
    torch.testing.assert_close(score, wanted, rtol=0, atol=1e-14)
    reached = affected_nodes(edge_index, forgotten.flatten(), NODES, hops)
    assert torch.equal(score > 0, reached), "a node scores where a forgotten endpoint is within the hops"
    assert 0 < int(reached.sum()) < NODES or hops > 1


def test_importance_of_isolated_nodes_is_zero():
    edge_index = random_graph(0, 5)
    alone = isolated(edge_index, NODES)
    assert alone.any()
    assert not Importance(2)(edge_index, torch.ones(NODES))[alone].any()


@pytest.mark.parametrize("weights", [[0.5], [0.5, -1.0], [0.0, 2.0, 0.25, 1.0]])
def test_a_layer_sum_is_the_weighted_sum_of_repeated_propagations(weights):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(6, (2, 20), generator=generator)
    edges = bipartite_edge_index(pairs[0], pairs[1], 8)
    x, tangent = (torch.randn(14, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    wanted, layer = weights[0] * x, x
    for weight in weights[1:]:
        layer = propagate(edges, layer)
        wanted = wanted + weight * layer
    assert wanted.norm() > 1
    torch.testing.assert_close(layer_sum(edges, x, weights), wanted, rtol=0, atol=1e-13)
    image, derivative = torch.func.jvp(lambda x: layer_sum(edges, x, weights), (x,), (tangent,))
    torch.testing.assert_close(image, wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(derivative, layer_sum(edges, tangent, weights), rtol=0, atol=1e-13)
    (pulled,) = torch.func.vjp(lambda x: layer_sum(edges, x, weights), x)[1](tangent)
    torch.testing.assert_close((pulled * x).sum(), (tangent * wanted).sum(), rtol=1e-12, atol=0)
