"""The metrics against loops over python lists."""

import math

import pytest
import torch

from lightning_ifru import metrics
from lightning_ifru.interactions import Interactions


def dot(src, dst):
    return (src * dst).sum(-1)


def interactions(pairs, labels=None):
    user, item = (torch.tensor(column, dtype=torch.long) for column in zip(*pairs, strict=True))
    return Interactions(user, item, torch.ones(len(pairs)) if labels is None else torch.tensor(labels))


def empty():
    nothing = torch.empty(0, dtype=torch.long)
    return Interactions(nothing, nothing, torch.empty(0))


def naive_auroc(scores, positive):
    """The share of pairs of a positive and a negative that are in order; a tie counts half."""
    wins = [(p > n) + 0.5 * (p == n) for p, yes in zip(scores, positive, strict=True) if yes
            for n, other in zip(scores, positive, strict=True) if not other]  # fmt: skip
    return sum(wins) / len(wins)


def naive_ranking(score, held_out, seen, candidates, k):
    """Sort the unseen candidates of every user with a held-out positive; average over these users."""
    recalls, ndcgs = [], []
    for user in sorted({u for u, _ in held_out}):
        wanted = {i for u, i in held_out if u == user}
        known = {i for u, i in seen if u == user}
        ranked = sorted((i for i in candidates if i not in known), key=lambda i: -score[user][i])[:k]
        hits = [item in wanted for item in ranked]
        recalls.append(sum(hits) / len(wanted))
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
        ndcgs.append(sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits)) / ideal)
    return sum(recalls) / len(recalls), sum(ndcgs) / len(ndcgs)


USERS, ITEMS = 9, 31


@pytest.fixture
def world():
    """Representations, held-out and seen pairs and candidates of nine users and 31 items."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(USERS + ITEMS, 3, generator=generator)
    draw = torch.rand(USERS, ITEMS, generator=generator)
    # User 8 has no held-out pair; user 0 has many.
    held_out = [(u, i) for u in range(USERS - 1) for i in range(ITEMS) if draw[u, i] < (0.5 if u == 0 else 0.15)]
    seen = [(u, i) for u in range(USERS) for i in range(ITEMS) if 0.5 <= draw[u, i] < 0.8]
    candidates = [i for i in range(ITEMS) if i % 5]
    return h, held_out, seen, candidates


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [0.0, -10.0], ids=["around zero", "all negative"])
def test_auroc_is_the_share_of_ordered_pairs(ties, shift):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(60, generator=generator, dtype=torch.float64) + shift
    if ties:
        scores = scores.round()
        assert len(scores.unique()) < 10
    positive = torch.rand(60, generator=generator) < 0.4
    wanted = naive_auroc(scores.tolist(), positive.tolist())
    assert 0.2 < wanted < 0.8
    assert metrics.auroc(scores, positive) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("positive", [[True, True], [False, False], []], ids=["positives", "negatives", "nothing"])
def test_auroc_of_a_single_class_is_none(positive):
    assert metrics.auroc(torch.zeros(len(positive)), torch.tensor(positive, dtype=torch.bool)) is None


@pytest.mark.parametrize("k", [1, 5, 20, 100], ids="k={}".format)
@pytest.mark.parametrize("decode", [dot, lambda s, t: dot(s, t) - 50.0], ids=["dot", "scores below zero"])
@pytest.mark.parametrize("repeated", [False, True], ids=["each once", "repeated"])
def test_ranking_equals_sorting_by_hand(world, k, decode, repeated):
    h, held_out, seen, candidates = world
    if repeated:
        held_out, seen = held_out + held_out[::2] + held_out[::3], seen + seen[::2]
    score = [[float(decode(h[u], h[USERS + i])) for i in range(ITEMS)] for u in range(USERS)]
    recall, ndcg = naive_ranking(score, held_out, seen, candidates, k)
    got = metrics.ranking(decode, h, USERS, interactions(held_out), interactions(seen), torch.tensor(candidates), k=k)
    # Everything else is on the list of a hundred, but not the held-out items that are no candidates.
    assert 0 < recall < 1
    assert got == {f"recall@{k}": pytest.approx(recall, abs=1e-6), f"ndcg@{k}": pytest.approx(ndcg, abs=1e-6)}


def test_what_was_seen_and_what_is_no_candidate_is_not_recommended():
    # By score the user's items are 0, 1, 2, 3; 0 was seen, 1 is no candidate, 2 was held out.
    h = torch.tensor([[1.0], [4.0], [3.0], [2.0], [1.0]])
    held_out, seen, candidates = interactions([(0, 2)]), interactions([(0, 0)]), torch.tensor([3, 2, 0])
    assert metrics.ranking(dot, h, 1, held_out, seen, candidates, k=1)["recall@1"] == 1.0
    assert metrics.ranking(dot, h, 1, held_out, empty(), candidates, k=1)["recall@1"] == 0.0
    assert metrics.ranking(dot, h, 1, held_out, seen, torch.arange(4), k=1)["recall@1"] == 0.0


def test_what_others_have_seen_is_still_recommended():
    h = torch.tensor([[1.0], [1.0], [4.0], [3.0]])
    got = metrics.ranking(dot, h, 2, interactions([(0, 0)]), interactions([(1, 0)]), torch.arange(2), k=1)
    assert got["recall@1"] == 1.0


def test_ranking_without_held_out_pairs_is_none(world):
    h, _, seen, candidates = world
    got = metrics.ranking(dot, h, USERS, empty(), interactions(seen), torch.tensor(candidates))
    assert got == {"recall@20": None, "ndcg@20": None}


@pytest.mark.parametrize("k", [1, 5, 100], ids="k={}".format)
@pytest.mark.parametrize("block", [2, 256], ids="block={}".format)
def test_the_lists_are_the_unseen_candidates_in_order_and_then_what_is_left(world, monkeypatch, k, block):
    h, _, seen, candidates = world
    monkeypatch.setattr(metrics.retrieval, "_SCORES", block * len(candidates))
    users = [0, 3, 4, 8]
    score = h[:USERS] @ h[USERS:].T

    def scores(asked):
        assert len(asked) <= block
        return score[asked][:, candidates]

    got = metrics.top_items(scores, torch.tensor(users), interactions(seen), torch.tensor(candidates), k)
    assert got.shape == (len(users), min(k, len(candidates)))
    for user, row in zip(users, got.tolist(), strict=True):
        left = [i for i in candidates if (user, i) not in seen]
        assert 10 < len(left) < len(candidates)
        assert row[: len(left)] == sorted(left, key=lambda i: -score[user, i])[:k]
        assert set(row) <= set(candidates)
        assert len(set(row)) == len(row)


@pytest.mark.parametrize(("users", "candidates"), [([], [0, 1]), ([0, 1], [])], ids=["no users", "no candidates"])
def test_without_users_or_candidates_there_is_nothing_to_recommend(users, candidates):
    whom, what = (torch.tensor(some, dtype=torch.long) for some in (users, candidates))
    assert metrics.top_items(pytest.fail, whom, empty(), what).shape == (len(users), len(candidates))


@pytest.mark.parametrize("pairs", [1, 7, 40])
def test_the_size_of_the_pieces_is_irrelevant(world, monkeypatch, pairs):
    h, held_out, seen, candidates = world
    inputs = (dot, h, USERS, interactions(held_out), interactions(seen), torch.tensor(candidates))
    user, node = torch.randint(USERS, (100,)), torch.randint(USERS, USERS + ITEMS, (100,))
    whole, scores = metrics.ranking(*inputs, k=5), metrics.pair_scores(dot, h, user, node)
    monkeypatch.setattr(metrics.scores, "_PAIRS", pairs)
    assert pairs < len(candidates) * USERS
    assert metrics.ranking(*inputs, k=5) == whole
    assert torch.equal(metrics.pair_scores(dot, h, user, node), scores)


def test_no_pairs_have_no_scores():
    nothing = torch.empty(0, dtype=torch.long)
    assert metrics.pair_scores(dot, torch.ones(2, 1), nothing, nothing).shape == (0,)


def test_evaluate_with_labels_is_auroc_over_all_and_ranking_over_positives(world):
    h, held_out, seen, candidates = world
    labels = [float(k % 3 > 0) for k in range(len(held_out))]
    got = metrics.evaluate(
        dot, h, USERS, interactions(held_out, labels), interactions(seen), torch.tensor(candidates), labelled=True
    )
    score = (h[:USERS] @ h[USERS:].T).tolist()
    positives = [pair for pair, label in zip(held_out, labels, strict=True) if label]
    recall, ndcg = naive_ranking(score, positives, seen, candidates, 20)
    wanted = naive_auroc([score[u][i] for u, i in held_out], labels)
    assert got == {
        "auroc": pytest.approx(wanted, abs=1e-6),
        "recall@20": pytest.approx(recall, abs=1e-6),
        "ndcg@20": pytest.approx(ndcg, abs=1e-6),
    }


def test_evaluate_of_implicit_feedback_draws_negatives_among_the_candidates_by_seed(world):
    h, held_out, _, candidates = world
    drawn = []

    def recording(src, dst):
        drawn.append((src, dst))
        return dot(src, dst)

    def run(seed):
        drawn.clear()
        held = interactions(held_out)
        return metrics.evaluate(recording, h, USERS, held, empty(), torch.tensor(candidates), labelled=False, seed=seed)

    got = run(4)
    src, dst = drawn[0]  # the first call scores the test pairs and then their negatives
    n = len(held_out)
    rows = [int((h == row).all(1).nonzero()) for row in dst[n:]]
    assert torch.equal(src[:n], src[n:])
    assert {row - USERS for row in rows} <= set(candidates)
    assert len(set(rows)) > 10
    assert got["auroc"] == pytest.approx(naive_auroc(dot(src, dst).tolist(), [True] * n + [False] * n), abs=1e-6)
    assert run(4) == got
    assert run(5)["auroc"] != got["auroc"]


def test_drawn_negatives_are_pairs_of_the_same_users_in_the_same_order_drawn_uniformly():
    some, candidates = interactions([(u % 7, u % 3) for u in range(4000)], [2.0] * 4000), torch.tensor([9, 4, 6])
    both = metrics.with_negatives(some, candidates, seed=3)
    for part, n in ((both[:4000], 4000), (both[4000:], 4000)):
        assert len(part) == n
        assert torch.equal(part.user, some.user)
    assert torch.equal(both.item[:4000], some.item)
    assert both.label.tolist() == [2.0] * 4000 + [0.0] * 4000
    counts = torch.bincount(both.item[4000:], minlength=10)[candidates]
    assert int(counts.sum()) == 4000
    assert (counts - 4000 / 3).abs().max() < 5 * math.sqrt(4000 * 2 / 9), "five standard deviations"
    assert torch.equal(metrics.with_negatives(some, candidates, seed=3).item, both.item)
    assert not torch.equal(metrics.with_negatives(some, candidates, seed=4).item, both.item)


def test_evaluate_without_test_pairs_is_none():
    got = metrics.evaluate(dot, torch.ones(3, 1), 1, empty(), empty(), torch.arange(2), labelled=True)
    assert got == {"auroc": None, "recall@20": None, "ndcg@20": None}
