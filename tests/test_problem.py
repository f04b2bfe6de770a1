from dataclasses import replace

import oracles
import pytest
import torch

from lightning_ifru.problem import Sides

USERS, ITEMS = 30, 25
WORLD = oracles.planted(USERS, ITEMS, 0.3, seed=3)
IMPLICIT = WORLD.positives()


def objective(loss, **changes):
    return replace(oracles.objective(1, loss, USERS, ITEMS, 0.0), **changes)


def erasing(world, *items):
    """A mask of all interactions with some items, and one more."""
    mask = torch.isin(world.data.item, torch.tensor(items))
    mask[(~mask).nonzero()[0]] = True
    return mask


@pytest.mark.parametrize("world", [WORLD, IMPLICIT], ids=["labelled", "implicit"])
def test_the_problem_divides_the_interactions(world):
    forget = world.some(9)
    problem = world.problem(forget)
    triples = {
        name: list(zip(part.user.tolist(), part.item.tolist(), part.label.tolist(), strict=True))
        for name, part in (("D", world.data), ("R", problem.retained), ("F", problem.forgotten))
    }
    assert triples["F"] == [t for t, gone in zip(triples["D"], forget.tolist(), strict=True) if gone]
    assert triples["R"] == [t for t, gone in zip(triples["D"], forget.tolist(), strict=True) if not gone]
    assert len(triples["F"]) == 9


def test_node_counts_are_those_of_a_loop():
    problem = WORLD.problem(WORLD.some(9))
    wanted = [0] * (USERS + ITEMS)
    for user, item in zip(WORLD.data.user.tolist(), WORLD.data.item.tolist(), strict=True):
        wanted[user] += 1
        wanted[USERS + item] += 1
    assert problem.node_counts(objective("bce"), WORLD.data).tolist() == wanted
    assert problem.node_counts(objective("bce"), WORLD.data[torch.zeros(len(WORLD.data), dtype=torch.bool)]).sum() == 0


def test_only_forgotten_positives_affect_representations():
    sparse = oracles.planted(USERS, ITEMS, 0.08, seed=3)
    negative = (sparse.data.label == 0).nonzero().flatten()[:2]
    positive = (sparse.data.label > 0).nonzero().flatten()[:1]
    forget = torch.zeros(len(sparse.data), dtype=torch.bool)
    forget[negative] = True
    assert not sparse.problem(forget).affected(objective("bce"), 3).any()
    forget[positive] = True
    ends = {int(sparse.data.user[positive]), USERS + int(sparse.data.item[positive])}
    affected = [sparse.problem(forget).affected(objective("bce"), hops) for hops in range(3)]
    assert set(affected[0].nonzero().flatten().tolist()) == ends
    assert 2 < int(affected[1].sum()) < int(affected[2].sum()) < USERS + ITEMS
    # The removed edge itself still carries: its ends are each other's neighbours in the graph before.
    one_end = sparse.problem(forget).before
    neighbours = {int(t) for s, t in one_end.T.tolist() if s in ends}
    assert set(affected[1].nonzero().flatten().tolist()) == ends | neighbours


# ---------------------------------------------------------------- sides


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_a_pointwise_loss_has_its_labels_and_the_same_examples_on_both_sides(loss):
    forget = WORLD.some(9)
    problem = WORLD.problem(forget)
    sides = Sides.of(problem, objective(loss), 4, 0)
    assert sides.retained is sides.retained_after
    for part, data in ((sides.retained, problem.retained), (sides.forgotten[0], problem.forgotten)):
        assert part.negative is part.candidates is None
        assert part.weight == pytest.approx(1 / len(data))
        assert torch.equal(part.target, data.label)
        assert torch.equal(part.user, data.user)
        assert torch.equal(part.item, data.item)
    assert sides.share == pytest.approx(9 / len(WORLD.data))


@pytest.mark.parametrize("negatives", [1, 4])
def test_both_sides_use_the_same_negatives_as_long_as_no_item_leaves(negatives):
    problem = IMPLICIT.problem(IMPLICIT.some(5))
    assert torch.equal(problem.candidates, problem.candidates_after)
    sides = Sides.of(problem, objective("bpr"), negatives, 0)
    assert sides.retained is sides.retained_after
    assert sides.retained.negative.shape == (len(problem.retained), negatives)
    assert sides.retained.target is sides.retained.candidates is None
    assert sides.retained.weight == pytest.approx(1 / len(problem.retained))
    assert sides.share == pytest.approx(5 / len(IMPLICIT.data))


def test_negatives_that_are_erased_items_are_drawn_anew_after_and_only_those():
    problem = IMPLICIT.problem(erasing(IMPLICIT, 3, 8))
    gone = torch.tensor([3, 8])
    assert not torch.isin(gone, problem.candidates_after).any()
    sides = Sides.of(problem, objective("bpr"), 4, 0)
    before, after = sides.retained.negative, sides.retained_after.negative
    erased = torch.isin(before, gone)
    assert 0 < int(erased.sum()) < before.numel()
    assert torch.equal(before != after, erased)
    assert not torch.isin(after, gone).any()
    assert torch.isin(after, problem.candidates_after).all()
    assert after[erased].unique().numel() > 5, "they are drawn from all that remain"
    assert torch.equal(sides.retained.user, sides.retained_after.user)
    assert sides.retained.weight == sides.retained_after.weight


def test_negatives_are_drawn_uniformly_from_the_candidates_and_no_others():
    problem = IMPLICIT.problem(IMPLICIT.some(5))
    few = torch.tensor([2, 5, 6, 20])
    problem = type(problem)(
        *(problem.interactions, problem.forget, problem.before, problem.after, problem.erased), few, few
    )
    drawn = Sides.of(problem, objective("bpr"), 100, 0).retained.negative
    counts = torch.bincount(drawn.flatten(), minlength=ITEMS)
    assert counts.nonzero().flatten().tolist() == few.tolist()
    expected = drawn.numel() / len(few)
    assert ((counts[few] - expected).abs() < 5 * expected**0.5).all()


def test_negatives_depend_on_the_seed_alone():
    problem = IMPLICIT.problem(erasing(IMPLICIT, 3))
    draws = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        sides = Sides.of(problem, objective("bpr"), 4, seed)
        draws.append((sides.retained.negative, sides.retained_after.negative))
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))


def test_the_forgotten_have_every_candidate_exactly():
    problem = IMPLICIT.problem(erasing(IMPLICIT, 3))
    (forgotten,) = Sides.of(problem, objective("bpr"), 4, 0).forgotten
    assert forgotten.negative is forgotten.target is None
    assert torch.equal(forgotten.candidates, problem.candidates)
    assert 3 in forgotten.candidates.tolist(), "what was forgotten had been trained with the erased items as negatives"
    assert torch.equal(forgotten.user, problem.forgotten.user)
    assert forgotten.weight == pytest.approx(1 / len(problem.forgotten))


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_nothing_to_forget_has_a_share_of_zero(loss):
    world = WORLD if loss == "bce" else IMPLICIT
    sides = Sides.of(world.problem(torch.zeros(len(world.data), dtype=torch.bool)), objective(loss), 4, 0)
    assert sides.share == 0.0
    assert [len(part) for part in sides.forgotten] == [0]
    assert len(sides.retained) == len(world.data)


@pytest.mark.parametrize(("group", "negatives", "sets"), [(1, 4, 4), (4, 4, 1), (3, 4, 2), (10, 4, 1), (60, 4, 1)])
def test_a_listwise_loss_has_whole_sets_and_deals_all_candidates_for_the_forgotten(group, negatives, sets):
    problem = replace(IMPLICIT.problem(erasing(IMPLICIT, 3)), num_negatives=group)
    sides = Sides.of(problem, objective("sampled_softmax"), negatives, 0)
    r, (retained, after) = problem.retained, (sides.retained, sides.retained_after)
    assert retained.negative.shape == after.negative.shape == (sets * len(r), group)
    assert torch.equal(retained.user, r.user.repeat(sets))
    assert torch.equal(retained.item, r.item.repeat(sets))
    assert retained.weight * len(retained) == pytest.approx(1.0)
    assert torch.equal(retained.negative != after.negative, retained.negative == 3)
    dealt = sides.forgotten[0].candidates
    assert sides.forgotten[0].group == group
    assert dealt.numel() % group == 0
    counts = torch.bincount(dealt, minlength=ITEMS)
    assert (counts[problem.candidates] >= 1).all(), "every candidate once"
    assert dealt.numel() - problem.candidates.numel() < group
    assert int(counts.max() - counts.min()) <= 1


def test_sides_know_how_often_batches_hold_a_node_only_where_that_is_penalised():
    world = IMPLICIT
    problem = replace(world.problem(erasing(world, 3)), num_negatives=2, batch_size=7)
    plain = Sides.of(problem, objective("bpr"), 4, 0)
    assert plain.retained.presence is plain.retained_after.presence is None
    sides = Sides.of(problem, objective("bpr", node_regularization=lambda p: p["w"].square().sum(1)), 4, 0)
    for part, data, candidates in (
        (sides.retained, problem.interactions, problem.candidates),
        (sides.retained_after, problem.retained, problem.candidates_after),
    ):
        wanted = torch.zeros(USERS + ITEMS, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4000):
            rows = torch.randperm(len(data), generator=generator)[:7]
            drawn = candidates[torch.randint(len(candidates), (14,), generator=generator)]
            wanted[torch.cat([data.user[rows], USERS + data.item[rows], USERS + drawn]).unique()] += 1 / 7 / 4000
        # Each is the mean of 4,000 draws of 0 or 1/7: five standard errors are .0056.
        torch.testing.assert_close(part.presence, wanted, rtol=0, atol=0.0057)
        assert float(wanted.std()) > 0.01
    assert sides.retained.presence[USERS + 3] > 0 == sides.retained_after.presence[USERS + 3]
    assert plain.retained.negative.equal(sides.retained.negative)


def test_what_the_graph_loses_affects_whatever_its_label():
    """Of ratings without a threshold every one is an edge, those below zero too."""
    world = oracles.planted(USERS, ITEMS, 0.08, seed=3)
    rated = replace(world, data=replace(world.data, label=world.data.label - 3))
    problem = world.problem(world.some(0))
    gone = torch.zeros(len(world.data), dtype=torch.bool)
    gone[0] = True
    every = [oracles.bipartite_edge_index(d.user, d.item, USERS) for d in (rated.data, rated.data[~gone])]
    problem = replace(problem, interactions=rated.data, forget=gone, before=every[0], after=every[1])
    ends = {int(rated.data.user[0]), USERS + int(rated.data.item[0])}
    assert set(problem.affected(objective("mse"), 0).nonzero().flatten().tolist()) == ends


@pytest.mark.parametrize(("loss", "group"), [("bpr", 1), ("sampled_softmax", 4)])
def test_candidates_are_dealt_evenly_to_parts_of_the_forgotten_where_all_pairs_are_too_many(loss, group, monkeypatch):
    monkeypatch.setattr("lightning_ifru.problem._EXPECTED", 70)
    problem = replace(IMPLICIT.problem(IMPLICIT.some(9)), num_negatives=group)
    parts = Sides.of(problem, objective(loss), group, 0).forgotten
    assert len(parts) == -(-9 * -(-ITEMS // group) * group // 70) > 3
    pairs = sorted(pair for part in parts for pair in zip(part.user.tolist(), part.item.tolist(), strict=True))
    assert pairs == sorted(zip(problem.forgotten.user.tolist(), problem.forgotten.item.tolist(), strict=True))
    assert {part.weight for part in parts} == {1 / 9}
    dealt = torch.cat([part.candidates for part in parts])
    assert set(dealt.tolist()) == set(range(ITEMS))
    assert len(dealt) == -(-ITEMS // group) * group
    assert all(part.candidates.numel() % group == 0 for part in parts)
    again = Sides.of(problem, objective(loss), group, 0).forgotten
    assert all(torch.equal(one.candidates, two.candidates) for one, two in zip(parts, again, strict=True))
