"""The measures of forgetting against loops over numbers, their properties, and what they refuse."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu

from lightning_ifru import metrics
from lightning_ifru.errors import UnlearningError
from lightning_ifru.metrics import MIN_MEMBERS


def draw(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits(*shape):
    return arrays(np.float64, shape, elements=st.floats(-30, 30)).map(torch.from_numpy)


# ---------------------------------------------------------------- naive references, one number at a time


def sigma(s):
    return 1 / (1 + math.exp(-s))


def naive_distance(scores, reference):
    return sum(abs(sigma(s) - sigma(r)) for s, r in zip(scores, reference, strict=True)) / len(scores)


def naive_floor(retrained):
    apart = [naive_distance(a, b) for a, b in combinations(retrained, 2)]
    return sum(apart) / len(apart)


def naive_ratio(unlearned, original, retrained):
    return naive_distance(unlearned, retrained) / naive_distance(original, retrained)


def naive_cosine(unlearned, original, retrained):
    seeds, n = len(original), len(original[0])
    moved, wanted = (
        [sum(sigma(after[s][i]) - sigma(original[s][i]) for s in range(seeds)) / seeds for i in range(n)]
        for after in (unlearned, retrained)
    )
    dot = sum(a * b for a, b in zip(moved, wanted, strict=True))
    return dot / math.hypot(*moved) / math.hypot(*wanted)


def naive_parameters(parameters, reference):
    apart = [a - b for name in reference for a, b in zip(parameters[name], reference[name], strict=True)]
    return math.hypot(*apart) / math.hypot(*(b for name in reference for b in reference[name]))


def naive_rows(h, reference):
    return sum(math.dist(a, b) for a, b in zip(h, reference, strict=True)) / len(h)


def naive_overlap(top, reference):
    return sum(len({*a} & {*b}) / len(a) for a, b in zip(top, reference, strict=True)) / len(top)


def rank_sum(positive, negative):
    """The AUROC by Mann and Whitney's U, in float64."""
    return mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))


SCORES = tuple(draw(17, seed=s) for s in range(3))
SEEDS = tuple(draw(4, 17, seed=s) for s in range(3))
WEIGHTS = tuple({"a": draw(5, seed=s), "b": draw(3, seed=s + 9)} for s in range(2))
LISTS = tuple(draw(9, 12, seed=s).argsort(1)[:, :5] for s in range(2))


@pytest.mark.parametrize(
    ("function", "naive", "inputs"),
    [
        (metrics.score_distance, naive_distance, SCORES[:2]),
        (metrics.noise_floor, naive_floor, SEEDS[:1]),
        (metrics.completeness_ratio, naive_ratio, SCORES),
        (metrics.change_cosine, naive_cosine, SEEDS),
        (metrics.parameter_distance, naive_parameters, WEIGHTS),
        (metrics.embedding_distance, naive_rows, SEEDS[:2]),
        (metrics.topk_overlap, naive_overlap, LISTS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_measure_is_what_a_loop_over_numbers_finds(function, naive, inputs):
    def numbers(some):
        return {name: numbers(t) for name, t in some.items()} if isinstance(some, dict) else some.tolist()

    wanted = naive(*map(numbers, inputs))
    assert 0.05 < abs(wanted) < 20
    assert abs(wanted - 1) > 1e-3
    got = function(*inputs)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(wanted, rel=1e-12)


def test_a_single_seed_needs_no_dimension_of_its_own():
    assert metrics.change_cosine(*SCORES) == metrics.change_cosine(*(s[None] for s in SCORES))


def test_changes_are_averaged_over_seeds_before_they_are_compared():
    # Retraining moves both pairs of one seed apart from what the other seed's does; the mean is what is told.
    original = torch.zeros(2, 2)
    retrained = torch.tensor([[2.0, 1.0], [2.0, -1.0]])
    unlearned = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    each = [float(metrics.change_cosine(unlearned[s], original[s], retrained[s])) for s in range(2)]
    assert max(each) < 0.9
    assert float(metrics.change_cosine(unlearned, original, retrained)) == pytest.approx(1.0, abs=1e-12)


# ---------------------------------------------------------------- AUROCs


@pytest.mark.parametrize("members", [20, 33, 400])
@pytest.mark.parametrize("ties", [False, True])
def test_membership_auroc_is_the_rank_sum_statistic(members, ties):
    known, unknown = draw(members, seed=1) + 1, draw(27, seed=2)
    if ties:
        known, unknown = known.round(), unknown.round()
        assert len(torch.cat([known, unknown]).unique()) < 15
    wanted = rank_sum(known, unknown)
    assert 0.55 < wanted < 0.9
    assert float(metrics.membership_auroc(known, unknown)) == pytest.approx(wanted, abs=1e-6)


def test_affected_auroc_is_taken_on_the_pairs_touched():
    n = 200
    scores, noise = draw(n, seed=3), draw(3, n, seed=4)
    positive, user, item = scores + noise[0] > 0, noise[1] > 1, noise[2] > 1
    wanted = {}
    for name, some in {"all": user | True, "or": user | item, "and": user & item}.items():
        wanted[name] = pytest.approx(rank_sum(scores[some & positive], scores[some & ~positive]), abs=1e-6)
    assert len({some.expected for some in wanted.values()}) == 3
    assert metrics.affected_auroc(scores, positive, user, item) == wanted


def test_affected_auroc_of_a_single_class_is_none():
    positive, user, item = torch.tensor([[True, False, True], [False, True, False], [True, False, False]])
    got = metrics.affected_auroc(torch.tensor([1.0, 0.0, 2.0]), positive, user, item)
    assert got == {"all": 1.0, "or": 1.0, "and": None}


def test_scores_at_which_a_sigmoid_is_one_still_have_an_order():
    scores = torch.arange(40.0, 80.0)
    assert len(scores.sigmoid().unique()) == 1
    assert metrics.auroc(scores, scores >= 60) == 1.0
    assert float(metrics.membership_auroc(scores[20:], scores[:20])) == 1.0


@given(arrays(np.float64, 50, elements=st.integers(-9, 9)).map(torch.from_numpy))
def test_an_auroc_knows_only_the_order(scores):
    a, b = scores[:25], scores[25:]
    area = float(metrics.membership_auroc(a, b))
    assert float(metrics.membership_auroc(a.exp(), b.exp())) == area
    assert float(metrics.membership_auroc(5 * a - 70, 5 * b - 70)) == area
    assert float(metrics.membership_auroc(b, a)) == pytest.approx(1 - area, abs=1e-6)
    assert float(metrics.membership_auroc(a, a)) == pytest.approx(0.5, abs=1e-6)


def test_the_least_number_of_pairs_is_chosen_by_the_standard_error_of_an_auroc():
    """What the documentation of MIN_MEMBERS says of Hanley and McNeil's formula, against the scatter of draws."""
    generator = np.random.default_rng(0)
    for count, shift, wanted in ((MIN_MEMBERS, 0.0, 0.09), (MIN_MEMBERS, 1.8, 0.05), (1000, 0.0, 0.013)):
        draws = generator.standard_normal((400, 2, count))
        areas = [rank_sum(members + shift, others) for members, others in draws]
        assert np.std(areas) == pytest.approx(wanted, rel=0.2)


# ---------------------------------------------------------------- properties


@given(logits(3, 7))
def test_having_retrained_is_zero_and_having_done_nothing_is_one(scores):
    original, retrained, other = scores
    assume(not torch.equal(original.sigmoid(), retrained.sigmoid()))
    assert metrics.completeness_ratio(retrained, original, retrained) == 0
    assert metrics.completeness_ratio(original, original, retrained) == 1
    # However far away unlearning has led, to be retrained is one distance further at most.
    ratio = metrics.completeness_ratio(other, original, retrained)
    further = metrics.score_distance(other, original) / metrics.score_distance(original, retrained)
    assert ratio <= (1 + further) * (1 + 1e-9)


@given(logits(3, 7), st.permutations(range(7)))
def test_the_score_distance_is_a_metric_that_does_not_know_the_order_of_pairs(scores, order):
    a, b, c = scores
    distance = float(metrics.score_distance(a, b))
    assert 0 <= distance <= 1
    assert (distance == 0) == torch.equal(a.sigmoid(), b.sigmoid())
    assert metrics.score_distance(b, a) == distance
    assert distance <= metrics.score_distance(a, c) + metrics.score_distance(c, b) + 1e-12
    assert float(metrics.score_distance(a[order], b[order])) == pytest.approx(distance, abs=1e-12)


@given(logits(4, 5), st.permutations(range(4)))
def test_the_noise_floor_does_not_know_the_order_of_seeds(scores, order):
    assert float(metrics.noise_floor(scores[order])) == pytest.approx(float(metrics.noise_floor(scores)), abs=1e-12)
    assert float(metrics.noise_floor(scores[:2])) == pytest.approx(
        float(metrics.score_distance(scores[0], scores[1])), abs=1e-12
    )


@given(logits(3, 2, 7), st.permutations(range(7)))
def test_the_cosine_knows_directions_only(scores, order):
    original, retrained, unlearned = scores
    p, q, r = (some.sigmoid() for some in scores)
    assume((q - p).mean(0).norm() > 1e-3)
    assume((r - p).mean(0).norm() > 1e-3)
    cosine = float(metrics.change_cosine(unlearned, original, retrained))
    assert -1 <= cosine <= 1
    assert 1 - 1e-12 < float(metrics.change_cosine(retrained, original, retrained)) <= 1
    assert float(metrics.change_cosine(retrained, original, unlearned)) == pytest.approx(cosine, abs=1e-12)
    assert float(metrics.change_cosine(*(s.flip(0)[:, order] for s in (unlearned, original, retrained)))) == (
        pytest.approx(cosine, abs=1e-9)
    )
    # A hundredth of the way is the same direction.
    short = torch.logit(p + 0.01 * (q - p))
    assert float(metrics.change_cosine(short, original, retrained)) == pytest.approx(1.0, abs=1e-6)


@given(arrays(np.int64, (2, 6, 4), elements=st.integers(0, 9)).map(torch.from_numpy))
def test_the_overlap_does_not_know_the_order_of_a_list(lists):
    lists = lists + 10 * torch.arange(4)  # four different ones each
    top, reference = lists
    shared = metrics.topk_overlap(top, reference)
    assert metrics.topk_overlap(reference, top) == shared
    assert metrics.topk_overlap(top.flip(1), reference) == shared
    assert metrics.topk_overlap(top, top.flip(1)) == 1
    assert metrics.topk_overlap(top, reference + 100) == 0


def test_the_embedding_distance_is_one_of_paired_models():
    h, other = draw(6, 3, seed=1), draw(6, 3, seed=2)
    rotation = torch.linalg.qr(draw(3, 3, seed=3)).Q
    distance = float(metrics.embedding_distance(h, other))
    assert float(metrics.embedding_distance(h @ rotation, other @ rotation)) == pytest.approx(distance, rel=1e-12)
    assert float(metrics.embedding_distance(h @ rotation, h)) > 0.5  # though it scores alike
    torch.testing.assert_close((h @ rotation) @ (h @ rotation).T, h @ h.T)


# ---------------------------------------------------------------- pairs never seen


USERS, ITEMS = 60, 120


@pytest.fixture(scope="module")
def popular():
    """Interactions, more of them with popular items, of which some are to be forgotten: a tenth, and all of user 0."""
    generator = np.random.default_rng(0)
    chance = np.arange(1, ITEMS + 1) ** -0.5
    some = generator.random((USERS, ITEMS)) < 0.9 * chance[generator.permutation(ITEMS)]
    user, item = (torch.from_numpy(column) for column in some.nonzero())
    forgotten = torch.from_numpy(generator.random(len(user)) < 0.1) | (user == 0)
    return user, item, forgotten, torch.bincount(item, minlength=ITEMS)


def match(popular, seed=0, **changed):
    user, item, forgotten, popularity = popular
    given = {
        **{"user": user[forgotten], "item": item[forgotten], "seen_user": user[~forgotten]},
        **{"seen_item": item[~forgotten], "num_users": USERS, "num_items": ITEMS, "popularity": popularity},
    }
    return metrics.matched_nonmembers(**{**given, **changed}, seed=seed)


def test_matched_pairs_were_never_seen_and_are_different_pairs_of_the_same_users(popular):
    user, item, forgotten, _ = popular
    got = match(popular)
    pairs = [*zip(*(column.tolist() for column in got), strict=True)]
    assert len(pairs) == int(forgotten.sum()) > 60
    assert torch.equal(got[0], user[forgotten])
    assert not {*pairs} & {*zip(user.tolist(), item.tolist(), strict=True)}
    assert len({*pairs}) == len(pairs)


def test_matched_pairs_are_the_same_by_seed_and_others_by_another(popular):
    first, again, other = (match(popular, seed=seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_by_popularity_matched_pairs_cannot_be_told_from_forgotten_ones(popular):
    user, item, forgotten, popularity = popular
    generator = np.random.default_rng(1)
    seen = {*zip(user.tolist(), item.tolist(), strict=True)}
    random = [generator.choice([i for i in range(ITEMS) if (u, i) not in seen]) for u in user[forgotten].tolist()]
    known = popularity[item[forgotten]].double()
    assert float(metrics.membership_auroc(known, popularity[random].double())) > 0.65
    areas = [float(metrics.membership_auroc(known, popularity[match(popular, seed)[1]].double())) for seed in range(5)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.05)


@given(st.data())
def test_a_single_forgotten_item_is_matched_with_the_nearest_by_popularity(data):
    popularity = data.draw(st.permutations(range(12)), label="popularity")
    seen = data.draw(st.sets(st.integers(0, 11), min_size=1, max_size=11), label="seen")
    item = data.draw(st.sampled_from(sorted(seen)), label="item")
    others = torch.tensor(sorted(seen - {item}), dtype=torch.long)
    user, got = metrics.matched_nonmembers(
        *torch.tensor([[0], [item]]), torch.zeros_like(others), others, 1, 12, torch.tensor(popularity), seed=0
    )
    distance = {i: abs(popularity[i] - popularity[item]) for i in range(12) if i not in seen}
    assert user.tolist() == [0]
    assert distance[int(got)] == min(distance.values())


@pytest.mark.parametrize(
    ("popularity", "forgotten", "wanted"),
    [
        ([1, 2, 3], [1], {(0,), (2,)}),  # one more popular, one less
        ([5, 5, 5, 5], [0], {(1,), (2,), (3,)}),  # all alike
        ([9, 8, 7, 1], [0, 1], {(2, 3), (3, 2)}),  # of two forgotten items the first to choose takes the nearest
    ],
)
def test_where_there_is_a_choice_chance_decides(popularity, forgotten, wanted):
    item, nothing = torch.tensor(forgotten), torch.empty(0, dtype=torch.long)
    sizes = 1, len(popularity), torch.tensor(popularity)
    pairs = torch.zeros_like(item), item, nothing, nothing
    assert {(*metrics.matched_nonmembers(*pairs, *sizes, seed)[1].tolist(),) for seed in range(30)} == wanted


def test_items_are_taken_again_only_when_all_have_been():
    user, item = torch.zeros(5, dtype=torch.long), torch.arange(5)
    _, got = metrics.matched_nonmembers(user, item, user[:0], item[:0], 1, 7, torch.arange(7), seed=0)
    assert sorted(got.bincount(minlength=7).tolist()) == [0, 0, 0, 0, 0, 2, 3]


def test_only_candidates_are_matched(popular):
    candidates = torch.arange(0, ITEMS, 2)
    assert (match(popular)[1] % 2).any()
    got = match(popular, candidates=candidates)[1]
    assert torch.isin(got, candidates).all()
    assert torch.equal(match(popular, candidates=torch.arange(ITEMS))[1], match(popular)[1])


def test_of_nothing_forgotten_nothing_is_matched(popular):
    nothing = torch.empty(0, dtype=torch.long)
    assert [len(column) for column in match(popular, user=nothing, item=nothing)] == [0, 0]


# ---------------------------------------------------------------- refusals


ODD = torch.tensor([0.0, torch.nan, -torch.inf, 1.0])
ZERO, ONE = torch.zeros(4), torch.ones(4)
MASK = torch.tensor([True, False, True, False])
MANY = torch.arange(float(MIN_MEMBERS))
PAIR = torch.tensor([0]), torch.tensor([0])
H = torch.ones(4, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.score_distance(ODD, ZERO),
        lambda: metrics.score_distance(ZERO, ODD),
        lambda: metrics.noise_floor(torch.stack([ZERO, ODD])),
        *(
            lambda f=f, at=at: f(*(ODD if at == i else (ZERO, ONE)[i % 2] for i in range(3)))
            for f in (metrics.completeness_ratio, metrics.change_cosine)
            for at in range(3)
        ),
        lambda: metrics.parameter_distance({"w": ODD}, {"w": ONE}),
        lambda: metrics.parameter_distance({"w": ONE}, {"w": ODD}),
        lambda: metrics.embedding_distance(ODD[:, None], H),
        lambda: metrics.affected_auroc(ODD, MASK, MASK, MASK),
        lambda: metrics.auroc(ODD, MASK),
        lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 4, ODD, seed=0),
    ],
)
def test_values_that_are_not_finite_are_refused_and_counted(call):
    with pytest.raises(UnlearningError, match=r"2 of [48] values of .* are not finite"):
        call()


@pytest.mark.parametrize("members", [True, False])
def test_an_attack_on_scores_that_are_not_finite_is_refused(members):
    odd = torch.cat([MANY, torch.tensor([torch.inf])])
    with pytest.raises(UnlearningError, match="1 of 41 values of scores is not finite"):
        metrics.membership_auroc(*((odd, MANY) if members else (MANY, odd)))


@pytest.mark.parametrize("decode", [None, metrics.dot_product])
def test_a_ranking_by_scores_that_are_not_finite_is_refused(decode):
    h = torch.tensor([[1.0], [1.0], [torch.nan], [2.0]])
    held_out = metrics.retrieval.Interactions(*PAIR, torch.ones(1))
    with pytest.raises(UnlearningError, match="1 of 3 values of scores is not finite"):
        metrics.ranking(decode, h, 1, held_out, held_out, torch.arange(3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.score_distance(ZERO, ONE[:3]), r"\[4\] and reference \[3\] differ"),
        (lambda: metrics.score_distance(ZERO[:0], ZERO[:0]), "at least one pair"),
        (lambda: metrics.noise_floor(ZERO), r"two retrained models .* not \[4\]; retrain with another seed"),
        (lambda: metrics.noise_floor(ZERO[None]), r"two retrained models .* not \[1, 4\]"),
        (lambda: metrics.noise_floor(torch.ones(2, 0)), "at least one pair"),
        (lambda: metrics.completeness_ratio(ZERO, ONE, ONE), "original and the retrained model score alike"),
        (lambda: metrics.completeness_ratio(ZERO, ONE, H), "differ in shape"),
        (lambda: metrics.change_cosine(ONE, ONE, ZERO), "unlearning has changed no score"),
        (lambda: metrics.change_cosine(ZERO, ONE, ONE), "retraining has changed no score"),
        (lambda: metrics.change_cosine(*torch.ones(3, 1, 1, 1)), r"\[1, 1, 1\]; give \[n\]"),
        (lambda: metrics.change_cosine(*ZERO[None, :0].expand(3, 0)), r"shape \[0\] have no direction"),
        (lambda: metrics.change_cosine(*torch.ones(3, 0, 4)), r"shape \[0, 4\] have no direction"),
        (lambda: metrics.auroc(ONE, MASK[:3]), r"scores \[4\] and positive \[3\] differ in shape"),
        (lambda: metrics.membership_auroc(MANY[:, None], MANY), r"members \[20, 1\] and nonmembers \[20\]"),
        (lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 4, ONE, seed=2**70), "is not of 64 bits"),
        (lambda: metrics.parameter_distance({"w": ONE}, {"v": ONE}), r"\['v', 'w'\]"),
        (lambda: metrics.parameter_distance({"w": ONE}, {"w": H}), "parameters 'w' .* differ in shape"),
        (lambda: metrics.parameter_distance({"w": ONE}, {"w": ZERO}), "all zero"),
        (lambda: metrics.parameter_distance({}, {}), "there are none"),
        (lambda: metrics.embedding_distance(ONE, ZERO), r"shape \[4\]; give \[num_nodes, d\]"),
        (lambda: metrics.embedding_distance(H[:0], H[:0]), "at least one pair or row"),
        (lambda: metrics.affected_auroc(ONE, MASK.long(), MASK, MASK), "positive is of type torch.int64"),
        (lambda: metrics.affected_auroc(ONE, MASK, MASK, MASK[:3]), r"item_touched .* \[3\]; .* scores \[4\]"),
        (lambda: metrics.membership_auroc(MANY[:7], MANY), "7 forgotten pairs and 20 .* 20 of each .* 13 more"),
        (lambda: metrics.membership_auroc(MANY, MANY[:19]), "20 forgotten pairs and 19 .* 1 more"),
        (lambda: metrics.topk_overlap(LISTS[0], LISTS[1][:, :4]), r"\[9, 5\] and \[9, 4\] cannot be compared"),
        (lambda: metrics.topk_overlap(LISTS[0].double(), LISTS[1]), "top is torch.float64"),
        (lambda: metrics.topk_overlap(LISTS[0], LISTS[1][0]), r"reference is torch.int64 \[5\]"),
        (
            lambda: metrics.topk_overlap(torch.tensor([[1, 2], [3, 3]]), LISTS[1]),
            "1 of 2 lists of top name an item twice",
        ),
        (lambda: metrics.topk_overlap(LISTS[0][:0], LISTS[1][:0]), "at least one"),
        (lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 1, ONE[:1], 0), "user 0 has seen every one of 1 items"),
        (lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 4, ONE, 0, PAIR[1]), "user 0 has seen every one of 1 it"),
        (lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 4, ONE, 0, PAIR[1] + 4), "is none of 4 candidates"),
        (lambda: metrics.matched_nonmembers(*PAIR, *PAIR, 1, 4, ONE[:3], 0), "each of 4 items"),
        (lambda: metrics.matched_nonmembers(PAIR[0] + 1, PAIR[1], *PAIR, 1, 4, ONE, 0), "user 1 is none of 1 users"),
        (lambda: metrics.matched_nonmembers(*PAIR, PAIR[0], PAIR[1] - 1, 1, 4, ONE, 0), "item -1 is none of 4 items"),
        (lambda: metrics.matched_nonmembers(PAIR[0], LISTS[0][0], *PAIR, 1, 4, ONE, 0), "make no pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_one_sentence(call, words):
    with pytest.raises(UnlearningError, match=words) as refused:
        call()
    assert str(refused.value).endswith(".")
    assert ". " not in str(refused.value)
