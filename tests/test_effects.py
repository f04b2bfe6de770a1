"""Distances, recommendations changed and scores shifted against loops over python dictionaries."""

import math
from collections import Counter, deque

import pytest
import torch

from lightning_ifru import UnlearningRequest, effects
from lightning_ifru.effects import FEWEST, score_shift, top_changes
from lightning_ifru.hops import HOPS, influence_by_hop, node_hops
from lightning_ifru.interactions import Interactions
from lightning_ifru.losses import resolve_loss
from lightning_ifru.objective import Objective
from lightning_ifru.problem import Problem

NONE = torch.empty(0, dtype=torch.long)


def naive_distances(edge_index, ends, num_nodes):
    """Breadth first, one node at a time."""
    neighbours = {node: [] for node in range(num_nodes)}
    for source, destination in edge_index.T.tolist():
        neighbours[source].append(destination)
    distance = dict.fromkeys(ends, 0)
    queue = deque(ends)
    while queue:
        node = queue.popleft()
        for other in neighbours[node]:
            if other not in distance:
                distance[other] = distance[node] + 1
                queue.append(other)
    return [min(3, distance.get(node, math.inf)) for node in range(num_nodes)]


def sparse_world(seed, num_users=30, num_items=25, edges=45):
    """A sparse graph, of which an interaction with a label above 0 is an edge and a few are forgotten."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(num_users * num_items, generator=generator)[:edges]
    label = (torch.rand(edges, generator=generator) < 0.8).float()
    interactions = Interactions(pairs // num_items, pairs % num_items, label)
    forget = torch.zeros(edges, dtype=torch.bool)
    forget[:3] = True
    positive = interactions[label > 0]
    edge_index = torch.stack(
        [
            torch.cat([positive.user, positive.item + num_users]),
            torch.cat([positive.item + num_users, positive.user]),
        ]
    )
    erased = torch.zeros(num_users + num_items, dtype=torch.bool)
    problem = Problem(interactions, forget, edge_index, edge_index, erased, NONE, NONE)
    objective = Objective(
        encode=lambda p, _: p["w"],
        decode=lambda p, s, t: (s * t).sum(-1),
        loss=resolve_loss("mse"),
        regularization=lambda p: 0.0,
        num_users=num_users,
        num_items=num_items,
        node_parameters={"user": "user", "item": "item", "both": "node"},
    )
    return objective, problem


@pytest.mark.parametrize("seed", range(4))
def test_hops_are_those_of_a_search_breadth_first(seed):
    objective, problem = sparse_world(seed)
    gone = problem.forgotten
    ends = sorted({*gone.user.tolist(), *(gone.item + objective.num_users).tolist()})
    wanted = naive_distances(problem.before, ends, objective.num_nodes)
    assert len(set(wanted)) == len(HOPS), "every distance occurs"
    assert node_hops(objective, problem).tolist() == wanted


def test_the_influence_by_hop_is_the_norm_over_the_rows_and_adds_up():
    objective, problem = sparse_world(0)
    generator = torch.Generator().manual_seed(5)
    shapes = {"user": (30, 2), "bias": (3,), "item": (25,), "both": (55, 1, 2)}
    b = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    hops = node_hops(objective, problem).tolist()
    squares = Counter()
    for name, first in (("user", 0), ("item", 30), ("both", 0)):
        for row, values in enumerate(b[name]):
            squares[HOPS[hops[first + row]]] += float(values.square().sum())
    squares["dense"] = float(b["bias"].square().sum())
    found = influence_by_hop(torch.cat([part.flatten() for part in b.values()]), objective, b, problem)
    assert list(found) == ["0", "1", "2", "3+", "dense"]
    assert found == {name: pytest.approx(math.sqrt(total), rel=1e-12) for name, total in squares.items()}
    whole = sum(float(part.square().sum()) for part in b.values())
    assert sum(norm**2 for norm in found.values()) == pytest.approx(whole, rel=1e-12)


def recommending(seed, users=60, items=40):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(users + items, 3, generator=generator)
    after = before + 0.3 * torch.randn(before.shape, generator=generator)
    chosen = torch.rand(users, items, generator=generator) < 0.3
    chosen[7] = False  # nothing is left of this user
    chosen[8] = True  # and nothing is left to recommend to this one
    chosen[8, :4] = False
    user, item = chosen.nonzero().T
    hops = torch.randint(0, 3, (users,), generator=generator)
    hops[[11, 12]] = 3  # too few to be told of
    candidates = torch.tensor([i for i in range(items) if i % 7])
    return before, after, hops, Interactions(user, item, torch.ones(len(user))), candidates


def naive_changes(before, after, hops, seen, candidates, k):
    users = len(hops)
    known = {u: set() for u in range(users)}
    for u, i in zip(seen.user.tolist(), seen.item.tolist(), strict=True):
        known[u].add(i)
    counted = {}
    for u in range(users):
        left = [i for i in candidates.tolist() if i not in known[u]]
        if not known[u] or len(left) < k:
            continue
        lists = [set(sorted(left, key=lambda i: -float(h[u] @ h[users + i]))[:k]) for h in (before, after)]
        counted.setdefault(HOPS[hops[u]], [0] * (k + 1))[k - len(lists[0] & lists[1])] += 1
    return counted


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("decoder", [False, True])
def test_recommendations_that_changed_are_counted_as_by_hand(k, decoder):
    before, after, hops, seen, candidates = recommending(0)
    seen = seen[torch.arange(len(seen)).repeat(3)]  # what is chosen again leaves no less to recommend
    decode = (lambda s, t: (s * t).sum(-1)) if decoder else None
    wanted = naive_changes(before, after, hops, seen, candidates, k)
    assert sum(wanted.pop("3+")) == 2 < FEWEST
    assert all(sum(counts) > counts[0] > 0 for counts in wanted.values())
    # Without user 7, users 11 and 12, and for lists of five user 8, to whom only three candidates are left.
    assert sum(map(sum, wanted.values())) == {1: 57, 5: 56}[k]
    assert top_changes((decode, before), (decode, after), hops, seen, candidates, k=k) == wanted


def test_of_many_users_some_are_looked_at_and_always_the_same(monkeypatch):
    monkeypatch.setattr(effects, "_USERS", 25)
    before, after, hops, seen, candidates = recommending(1)
    hops[:] = 0

    def counts(seed):
        return top_changes((None, before), (None, after), hops, seen, candidates, seed, k=5)["0"]

    assert sum(counts(0)) == 25
    assert counts(0) == counts(0)
    assert len({tuple(counts(seed)) for seed in range(4)}) > 1


def test_without_users_or_with_an_unchanged_model_nothing_has_changed():
    before, _, hops, seen, candidates = recommending(0)
    nobody = seen[torch.zeros(len(seen), dtype=torch.bool)]
    assert top_changes((None, before), (None, before), hops, nobody, candidates, k=5) == {}
    same = top_changes((None, before), (None, before), hops, seen, candidates, k=5)
    assert all(counts[0] == sum(counts) >= FEWEST for counts in same.values())
    assert same


def scored(seed, pairs=40, users=9, items=6):
    generator = torch.Generator().manual_seed(seed)
    before, after = torch.randn(2, users + items, 3, generator=generator, dtype=torch.float64).unbind()
    some = Interactions(
        torch.randint(users, (pairs,), generator=generator),
        torch.randint(items, (pairs,), generator=generator),
        torch.randint(2, (pairs,), generator=generator).float(),
    )
    erased = torch.zeros(users + items, dtype=torch.bool)
    erased[[2, users + 4]] = True
    return before, after, some, erased


@pytest.mark.parametrize("belief", [True, False])
def test_the_scores_of_the_forgotten_are_counted_as_by_hand(belief):
    before, after, pairs, erased = scored(0)
    found = score_shift((None, before), (None, after), pairs, erased, 9, belief=belief)
    columns = zip(pairs.user.tolist(), pairs.item.tolist(), pairs.label.tolist(), strict=True)
    staying = [(u, i, y) for u, i, y in columns if u != 2 and i != 4]
    assert FEWEST < len(staying) < 40
    assert (found["belief"], found["reset"]) == (belief, False)
    everything = []
    for moment, h in (("before", before), ("after", after)):
        scores = [float(h[u] @ h[9 + i]) for u, i, _ in staying]
        if belief:
            chances = [1 / (1 + math.exp(-s)) for s in scores]
            scores = [p if y else 1 - p for p, (_, _, y) in zip(chances, staying, strict=True)]
        edges = found["edges"]
        places = Counter(min(len(edges) - 2, max(0, sum(s >= e for e in edges) - 1)) for s in scores)
        assert found[moment] == [places[place] for place in range(len(edges) - 1)]
        assert found[f"mean_{moment}"] == pytest.approx(sum(scores) / len(scores), rel=1e-12)
        everything += scores
    middle = sum(everything) / len(everything)
    spread = math.sqrt(sum((s - middle) ** 2 for s in everything) / (len(everything) - 1))
    wanted = (0.0, 1.0) if belief else (middle - 3 * spread, middle + 3 * spread)
    assert (found["edges"][0], found["edges"][-1]) == pytest.approx(wanted, rel=1e-9)
    assert found["before"] != found["after"]


def test_where_all_forgotten_pairs_have_a_reset_row_these_are_counted_and_said_to_be():
    before, after, pairs, erased = scored(0)
    erased[:9] = True
    found = score_shift((None, before), (None, after), pairs, erased, 9, belief=True)
    assert found["reset"]
    assert sum(found["before"]) == sum(found["after"]) == len(pairs)


@pytest.mark.parametrize("belief", [True, False])
@pytest.mark.parametrize("people", [1, FEWEST - 1, FEWEST])
@pytest.mark.parametrize("reset", [True, False])
def test_pairs_of_few_users_are_told_of_by_their_means_alone(belief, people, reset):
    before, after, _, erased = scored(0)
    erased[:] = reset
    users = list(range(people))
    if not reset:  # one more, of whom nothing is told
        erased[people] = True
        users.append(people)
    pairs = Interactions(*torch.cartesian_prod(torch.tensor(users), torch.arange(6)).T, torch.ones(6 * len(users)))
    found = score_shift((None, before), (None, after), pairs, erased, 9, belief=belief)
    assert found["reset"] == reset
    for moment, h in (("before", before), ("after", after)):
        scores = (h[:people] @ h[9:].T).flatten()
        wanted = scores.sigmoid() if belief else scores
        assert found[f"mean_{moment}"] == pytest.approx(float(wanted.mean()), rel=1e-12)
    assert ({"edges", "before", "after"} <= found.keys()) == (people == FEWEST)
    if people < FEWEST:
        assert found.keys() == {"mean_before", "mean_after", "belief", "reset"}


def test_too_few_pairs_are_not_told_of():
    before, after, pairs, erased = scored(0, pairs=FEWEST - 1)
    for some in (pairs, pairs[torch.arange(len(pairs)).repeat(3)]):
        assert score_shift((None, before), (None, after), some, erased, 9, belief=False) == {}


def test_equal_scores_have_a_bin():
    before, _, pairs, erased = scored(0)
    flat = torch.ones_like(before)
    found = score_shift((None, flat), (None, flat), pairs, erased, 9, belief=False)
    assert max(found["before"]) == sum(found["before"]) == sum(found["after"])


LOSSES = [("bce", True), ("bpr", False), ("mse", False)]


@pytest.mark.parametrize(("loss", "belief"), LOSSES)
@pytest.mark.parametrize("layers", [None, 2], ids=["mf", "lightgcn"])
def test_the_report_of_an_unlearning_has_the_effects(trained, make_data, loss, belief, layers):
    data = make_data(loss)
    of = {int(u): int(i) for u, i in zip(data.train.user, data.train.item, strict=True)}  # one pair of each user
    pairs = [(data.user_ids[u], data.item_ids[i]) for u, i in list(of.items())[:6]]
    trainer, _, data = trained(loss, layers, data=data, max_epochs=3)
    report = trainer.unlearn(data, request=UnlearningRequest(interactions=pairs))
    squares = sum(norm**2 for norm in report.influence_by_hop.values())
    assert squares == pytest.approx(report.residual_before**2, rel=1e-5)
    assert report.influence_by_hop["0"] > 0
    assert report.score_shift["belief"] == belief
    assert not report.score_shift["reset"]
    assert sum(report.score_shift["before"]) == sum(report.score_shift["after"]) == 6
    looked_at = sum(map(sum, report.top_changes.values()))
    assert 0 <= looked_at <= 40
    assert all(len(counts) == 21 and sum(counts) >= FEWEST for counts in report.top_changes.values())
    if layers is None and loss != "bpr":
        # Without message passing nothing but the ends and the mean over the others is moved.
        assert report.influence_by_hop["0"] > 0.9 * math.sqrt(squares)


def test_a_request_for_held_out_pairs_alone_has_no_influence(trained):
    trainer, _, data = trained(max_epochs=3)
    test = data.test
    pairs = [(data.user_ids[u], data.item_ids[i]) for u, i in zip(test.user[:6], test.item[:6], strict=True)]
    report = trainer.unlearn(data, request=UnlearningRequest(interactions=pairs))
    assert set(report.influence_by_hop.values()) == {0.0}
    assert report.score_shift == {}
    assert all(counts[0] == sum(counts) for counts in report.top_changes.values())
    report.figure()
