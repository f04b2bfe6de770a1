import math

import oracles
import pytest
import torch

from lightning_ifru.losses import resolve_loss
from lightning_ifru.objective import Objective
from lightning_ifru.pruning import expand_to_parameters, important_nodes

USERS, ITEMS = 30, 25
NODES = USERS + ITEMS
WORLD = oracles.planted(USERS, ITEMS, 0.1, seed=3)
OBJECTIVE = oracles.objective(1, "bce", USERS, ITEMS, 0.0)


def naive_scores(world, forget, hops):
    """Importance over all training interactions, whatever their label, in rational steps by loops."""
    pairs = list(zip(world.data.user.tolist(), (world.data.item + USERS).tolist(), strict=True))
    neighbours = {v: [b if a == v else a for a, b in pairs if v in (a, b)] for v in range(NODES)}
    counts = [sum(v in pair for pair, gone in zip(pairs, forget.tolist(), strict=True) if gone) for v in range(NODES)]
    score = [c / len(neighbours[v]) if neighbours[v] else 0.0 for v, c in enumerate(counts)]
    for _ in range(hops):
        score = [
            (score[v] + sum(score[u] for u in neighbours[v])) / len(neighbours[v]) if neighbours[v] else 0.0
            for v in range(NODES)
        ]
    return score, {v for v, c in enumerate(counts) if c}


def mixed(count=2):
    """Forget as many positives as negatives."""
    mask = torch.zeros(len(WORLD.data), dtype=torch.bool)
    for label in (0, 1):
        mask[(WORLD.data.label == label).nonzero().flatten()[:count]] = True
    return mask


@pytest.mark.parametrize("keep_ratio", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_the_nodes_kept_are_the_best_of_a_naive_ranking_and_the_endpoints(keep_ratio, hops):
    forget = mixed()
    kept = important_nodes(OBJECTIVE, WORLD.problem(forget), keep_ratio, hops)
    kept = set(kept.nonzero().flatten().tolist())
    score, ends = naive_scores(WORLD, forget, hops)
    assert len(ends) > 4
    assert ends <= kept
    count = math.ceil(keep_ratio * NODES)
    ranking = sorted((v for v in range(NODES) if score[v] > 0), key=lambda v: -score[v])
    threshold = score[ranking[min(count, len(ranking)) - 1]]
    # Nodes of equal score may replace each other at the threshold.
    assert {v for v in range(NODES) if score[v] > threshold * (1 + 1e-5)} <= kept
    assert {v for v in kept - ends if score[v] < threshold * (1 - 1e-5)} == set()
    assert kept - ends <= {v for v in range(NODES) if score[v] > 0}, "nodes beyond the hops never come in"
    best = set(ranking[:count])
    assert len(kept) == len(best | ends) or any(
        math.isclose(score[v], threshold, rel_tol=1e-5) for v in set(ranking[count:])
    )


def test_fewer_are_kept_with_a_smaller_ratio_and_with_fewer_hops():
    problem = WORLD.problem(mixed())
    counts = {
        (ratio, hops): int(important_nodes(OBJECTIVE, problem, ratio, hops).sum())
        for ratio, hops in ((0.2, 2), (0.6, 2), (0.99, 0), (0.99, 1), (0.99, 4))
    }
    assert counts[0.2, 2] < counts[0.6, 2] < NODES
    assert counts[0.99, 0] < counts[0.99, 1] < counts[0.99, 4]


@pytest.mark.parametrize("hops", [0, 3])
def test_endpoints_are_kept_even_where_they_exceed_the_ratio(hops):
    forget = WORLD.some(20)
    kept = important_nodes(OBJECTIVE, WORLD.problem(forget), 0.01, hops)
    ends = torch.cat([WORLD.data.user[forget], USERS + WORLD.data.item[forget]])
    assert kept[ends].all()
    assert int(kept.sum()) > math.ceil(0.01 * NODES)


def test_a_ratio_of_one_keeps_everything_even_what_is_out_of_reach():
    problem = WORLD.problem(mixed())
    assert important_nodes(OBJECTIVE, problem, 1.0, 0).all()
    assert not important_nodes(OBJECTIVE, problem, 0.999, 0).all()


def test_values_per_node_are_spread_over_every_kind_of_parameter():
    users, items = 2, 3
    kinds = {"table": "node", "people": "user", "films": "item", "bias": "node"}
    parameters = {
        "table": torch.zeros(5, 2),
        "weight": torch.zeros(2, 2),
        "people": torch.zeros(2, 1, 2),
        "films": torch.zeros(3, 1),
        "bias": torch.zeros(5),
    }
    objective = Objective(
        *(lambda p, e: p["table"], lambda p, s, t: s, resolve_loss("mse"), lambda p: 0.0, users, items),
        node_parameters=kinds,
    )
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    spread = expand_to_parameters(value, objective, parameters, dense=-1.0)
    wanted = [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, *[-1] * 4, 1, 1, 2, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    assert spread.tolist() == wanted
    assert expand_to_parameters(value, objective, parameters).tolist()[10:14] == [1.0] * 4
    mask = expand_to_parameters(value > 2, objective, {n: p.double() for n, p in parameters.items()})
    assert mask.dtype == torch.float64
    assert mask.tolist()[:10] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
