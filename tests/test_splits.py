"""The rules of dividing against naive loops, and that forgetting moves nobody under any of them."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from states import assert_same, through_a_file

from lightning_ifru.batches import TrainingBatches
from lightning_ifru.data_state import STATE_KEYS
from lightning_ifru.errors import DataError
from lightning_ifru.interactions import InteractionTable
from lightning_ifru.placement import ByHash, ByList, pair_hashes
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.splits import SPLITS, GivenSplit, LeaveOneOutSplit, RandomSplit, TemporalSplit, split_named

# Few ids and times, so that pairs repeat and times are equal.
rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 5), st.integers(0, 2)), min_size=10, max_size=50
)
RULES = [
    RandomSplit(0.25, 0.25, seed=3),
    LeaveOneOutSplit(),
    LeaveOneOutSplit(val=False),
    LeaveOneOutSplit(test=False),
    TemporalSplit(0.25, 0.25),
    GivenSplit(),
]


def frame_of(interactions, times=True):
    frame = pd.DataFrame(interactions, columns=["user", "item", "timestamp", "split"]).astype({"split": np.int8})
    return frame if times else frame.drop(columns="timestamp")


def naive_pairs(interactions, times=True):
    """The latest occurrence of every pair, in the order of the source: pair -> (time, given)."""
    latest = {}
    for place, (user, item, time, given_) in enumerate(interactions):
        key = (time if times else 0, place)
        if (user, item) not in latest or key > latest[user, item][0]:
            latest[user, item] = (key, given_)
    return {pair: (key[0], given_) for pair, (key, given_) in sorted(latest.items(), key=lambda entry: entry[1][0][1])}


def naive_leave_one_out(pairs, val, test):
    places = dict.fromkeys(pairs, "train")
    for user in {user for user, _ in pairs}:
        # Stable: of equal times the later one of the source is last.
        own = sorted((pair for pair in pairs if pair[0] == user), key=lambda pair: pairs[pair][0])
        if len(own) >= 3:
            for part in [name for name, wanted in (("test", test), ("val", val)) if wanted]:
                places[own.pop()] = part
    return places


def naive_temporal(pairs, val_fraction, test_fraction):
    times = [time for time, _ in pairs.values()]
    wanted_test, wanted_val = round(test_fraction * len(pairs)), round(val_fraction * len(pairs))

    def since(wanted):
        """The time from which on about so many pairs are; never the earliest of all."""
        choices = [*sorted(set(times))[1:], max(times) + 1]
        return min(choices, key=lambda t: (abs(sum(time >= t for time in times) - wanted), -t))

    test, val = since(wanted_test), since(wanted_test + wanted_val)
    return {pair: "test" if time >= test else "val" if time >= val else "train" for pair, (time, _) in pairs.items()}


def naive(rule, interactions, times):
    pairs = naive_pairs(interactions, times)
    if isinstance(rule, LeaveOneOutSplit):
        return naive_leave_one_out(pairs, rule.val, rule.test)
    if isinstance(rule, TemporalSplit):
        return naive_temporal(pairs, rule.val_fraction, rule.test_fraction)
    return {pair: SPLITS[given_] for pair, (_, given_) in pairs.items()}


def contents(table):
    """What is alive, by loop: pair of ids -> set of its splits, and how often it is there."""
    places, counts = {}, {}
    for name in SPLITS:
        some = table.select(name)
        for user, item in zip(some.user.tolist(), some.item.tolist(), strict=True):
            pair = (table.users.ids[user], table.items.ids[item])
            places.setdefault(pair, set()).add(name)
            counts[pair] = counts.get(pair, 0) + 1
    return places, counts


def make(frame, rule, duplicates="latest"):
    try:
        return InteractionTable(frame, split=rule, duplicates=duplicates)
    except DataError as error:
        if "is left for training" not in str(error):
            raise
        assume(False)


@pytest.mark.parametrize("duplicates", ["latest", "keep"])
@pytest.mark.parametrize(
    ("rule", "times"),
    [
        *((rule, times) for rule in [*RULES[1:4], GivenSplit()] for times in (True, False)),
        (LeaveOneOutSplit(val=False, test=False), True),
        *((TemporalSplit(*fractions), True) for fractions in ((0.25, 0.25), (0.0, 0.5), (0.4, 0.0))),
    ],
    ids=repr,
)
@settings(max_examples=10)
@given(interactions=rows)
def test_a_split_is_that_of_a_naive_loop(rule, times, duplicates, interactions):
    table = make(frame_of(interactions, times), rule, duplicates)
    places, counts = contents(table)
    assert places == {pair: {place} for pair, place in naive(rule, interactions, times).items()}
    occurrences = [row[:2] for row in interactions]
    assert counts == {pair: occurrences.count(pair) if duplicates == "keep" else 1 for pair in places}
    assert torch.equal(table.trained, table.split == 0)


def test_the_cases_of_the_loop_hold_something_out():
    interactions = [(u, i, (3 * u + 5 * i) % 11, (u + i) % 3) for u in range(4) for i in range(6)]
    for rule in RULES[1:]:
        assert len(set(naive(rule, interactions, times=True).values())) >= 2
    assert set(naive(TemporalSplit(0.25, 0.25), interactions, times=True).values()) == set(SPLITS)


def test_equal_times_stay_together_and_the_earliest_is_trained_on():
    frame = pd.DataFrame({"user": range(10), "item": 0, "timestamp": [1] + [2] * 8 + [3]})
    sizes = {}
    for test in (0.0, 0.1, 0.4, 0.6, 0.9):
        table = InteractionTable(frame, split=TemporalSplit(0.0, test))
        sizes[test] = [len(table.select(name)) for name in SPLITS]
    assert sizes == {0.0: [10, 0, 0], 0.1: [9, 0, 1], 0.4: [9, 0, 1], 0.6: [1, 0, 9], 0.9: [1, 0, 9]}
    together = frame.assign(timestamp=7)
    assert (InteractionTable(together, split=TemporalSplit(0.3, 0.3)).split == 0).all()


def test_users_with_fewer_than_three_pairs_hold_out_none():
    frame = pd.DataFrame({"user": [0, 0, 1, 1, 1, 2], "item": [0, 1, 0, 1, 2, 0]})
    for rule, wanted in (
        (LeaveOneOutSplit(), [0, 0, 0, 1, 2, 0]),
        (LeaveOneOutSplit(val=False), [0, 0, 0, 0, 2, 0]),
        (LeaveOneOutSplit(test=False), [0, 0, 0, 0, 1, 0]),
    ):
        assert InteractionTable(frame, split=rule).split.tolist() == wanted


# --- forgetting


def hashes_of(pairs):
    """The hashes of pairs of ids, from scratch."""
    user, item = (
        pd.util.hash_array(np.array([str(pair[side]) for pair in pairs], dtype=object), categorize=False)
        for side in (0, 1)
    )
    return set(pair_hashes(user, item, 0).view(np.int64).tolist())


@pytest.mark.parametrize("duplicates", ["latest", "keep"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=10)
@given(interactions=rows, data=st.data())
def test_forgetting_any_pairs_moves_no_other(rule, duplicates, interactions, data):
    table = make(frame_of(interactions), rule, duplicates)
    before, counts = contents(table)
    assert all(len(places) == 1 for places in before.values())
    gone = data.draw(st.lists(st.sampled_from(sorted(before)), min_size=1, unique=True))
    left = {pair: places for pair, places in before.items() if pair not in gone}
    assume({"train"} in left.values())
    trained = table.trained.clone()
    ids_before = table.users.ids.tolist(), table.items.ids.tolist()

    removal = table.plan(UnlearningRequest(interactions=gone))
    assert sum(removal.counts.values()) == sum(counts[pair] for pair in gone)
    table.remove(removal)
    assert contents(table) == (left, {pair: counts[pair] for pair in left})
    assert torch.equal(table.trained, trained)

    state = through_a_file(table.state())
    if not isinstance(rule, RandomSplit):
        listed = set(state["val_pairs"].tolist()) | set(state["test_pairs"].tolist())
        held_out = [pair for pair, places in left.items() if places != {"train"}]
        assert listed == (hashes_of(held_out) if held_out else set())
    survivors = [row for row in interactions if row[:2] in left]
    same_source = make(frame_of(interactions), rule, duplicates)
    # Beside a shortened source neither the rule nor the order matter; the sort leaves a pair's occurrences in order.
    frame = frame_of(sorted(survivors, key=lambda row: (row[1], row[0])))
    shortened = InteractionTable(frame, split=RandomSplit(0.0, 0.0, seed=9), duplicates=duplicates)
    for restored in (same_source, shortened):
        restored.restore(state)
        assert contents(restored) == contents(table)
        for mine, wanted in ((restored.users, ids_before[0]), (restored.items, ids_before[1])):
            assert all(value in (None, was) for value, was in zip(mine.ids.tolist(), wanted, strict=True))
        assert restored.candidates.tolist() == table.candidates.tolist()
    assert torch.equal(same_source.trained, trained)
    assert_same(same_source.state(), state)
    for epoch in range(2):
        batches = [TrainingBatches(some, 4, 1, seed=5) for some in (table, same_source)]
        for some in batches:
            some.set_epoch(epoch)
        for k in range(len(batches[0])):
            assert_same(batches[0][k], batches[1][k])

    # A second request beside the shortened source, and a third generation.
    rest = sorted(left)
    again = data.draw(st.lists(st.sampled_from(rest), min_size=1, unique=True))
    last = {pair: places for pair, places in left.items() if pair not in again}
    assume({"train"} in last.values())
    shortened.remove(shortened.plan(UnlearningRequest(interactions=again)))
    third = InteractionTable(frame, split=RandomSplit(0.0, 0.0), duplicates=duplicates)
    third.restore(through_a_file(shortened.state()))
    assert contents(third) == contents(shortened)
    assert contents(third)[0] == last


def test_a_list_in_memory_tells_nothing_of_the_forgotten():
    frame = frame_of([(u, i, i, 0) for u in range(6) for i in range(5)])
    table = InteractionTable(frame, split=LeaveOneOutSplit())
    table.remove(table.plan(UnlearningRequest(users=[2])))
    place = table._placement
    assert isinstance(place, ByList)
    assert len(place.val) == len(place.test) == 5
    assert not set(np.concatenate([place.val, place.test]).view(np.int64).tolist()) & hashes_of([(2, 3), (2, 4)])


def test_an_older_checkpoint_of_a_listed_split_brings_nothing_back():
    frame = frame_of([(u, i, i, 0) for u in range(6) for i in range(5)])
    older = InteractionTable(frame, split=LeaveOneOutSplit()).state()
    table = InteractionTable(frame, split=LeaveOneOutSplit())
    table.remove(table.plan(UnlearningRequest(users=[2])))
    before = table.state()
    table.restore(through_a_file(older))
    assert_same(table.state(), before)


def test_beside_more_data_what_a_list_does_not_name_is_trained_on():
    frame = frame_of([(u, i, i, 0) for u in range(6) for i in range(5) if u != i])
    table = InteractionTable(frame, split=TemporalSplit(0.2, 0.2))
    grown = InteractionTable(frame_of([(u, i, 9, 0) for u in range(6) for i in range(5)]), split=RandomSplit(0.4, 0.4))
    grown.restore(table.state())
    places, _ = contents(grown)
    assert contents(table)[0].items() <= places.items()
    assert {places[u, u] == {"train"} for u in range(5)} == {True}


def test_a_state_holds_what_is_said_and_one_without_its_lists_is_refused():
    frame = frame_of([(u, i, i, 0) for u in range(6) for i in range(5)])
    listed = InteractionTable(frame, split=LeaveOneOutSplit()).state()
    hashed = InteractionTable(frame).state()
    assert hashed.keys() == STATE_KEYS
    assert listed.keys() - STATE_KEYS == {"val_pairs", "test_pairs", "forgotten_trained"}
    for name in listed.keys() - STATE_KEYS:
        with pytest.raises(DataError, match=f"lacks '{name}'"):
            InteractionTable(frame).restore({key: value for key, value in listed.items() if key != name})


# --- by name


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("random", 0.2, 0.0, 4), RandomSplit(0.2, 0.0, 4)),
        (("temporal", 0.2, 0.3, 4), TemporalSplit(0.2, 0.3)),
        (("leave_one_out", 0.1, 0.1, 4), LeaveOneOutSplit()),
        (("leave_one_out", 0.1, 0, 4), LeaveOneOutSplit(test=False)),
        (("given", 0.1, 0.1, 4), GivenSplit()),
    ],
)
def test_a_rule_has_a_name(arguments, rule):
    assert split_named(*arguments, timed=True) == rule


@pytest.mark.parametrize(
    ("arguments", "timed", "fragments"),
    [
        (("by_moon", 0.1, 0.1), True, ["split='by_moon'", "'random', 'leave_one_out', 'temporal', 'given'"]),
        (("temporal", 0.1, 0.1), False, ["split='temporal' needs the time", "timestamp=..."]),
        (("temporal", 0.5, 0.5), True, ["sum below 1"]),
        (("random", -0.5, 0.5), True, ["no fractions"]),
        (("leave_one_out", 0.2, 0.1), True, ["val_fraction=0.2 does not apply", "one interaction of every user", "0"]),
        (("leave_one_out", 0.1, 0.3), True, ["test_fraction=0.3 does not apply"]),
        (("given", 0.1, 0), True, ["test_fraction=0 does not apply to split='given'", "leave it out"]),
    ],
)
def test_a_rule_that_cannot_be_had_is_refused(arguments, timed, fragments):
    with pytest.raises(DataError) as caught:
        split_named(*arguments, 0, timed=timed)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_rule_refuses_pairs_without_what_it_goes_by():
    frame = pd.DataFrame({"user": [0, 1], "item": [0, 1]})
    for rule, fragment in ((TemporalSplit(), "needs the time"), (GivenSplit(), "needs a column 'split'")):
        with pytest.raises(DataError, match=fragment):
            InteractionTable(frame, split=rule)


def test_a_cut_off_and_a_list_agree_with_a_loop():
    hashes = np.arange(20, dtype=np.uint64)
    assert ByHash(1, (3, 5)).assign(hashes).tolist() == [2] * 3 + [1] * 2 + [0] * 15
    place = ByList(val=hashes[[4, 9]], test=hashes[[0, 19]])
    assert place.assign(hashes).tolist() == [{0: 2, 19: 2, 4: 1, 9: 1}.get(k, 0) for k in range(20)]
    assert place.assign(hashes[:0]).tolist() == []
    left = place.without(hashes[[9, 0, 9, 7]])
    assert left.assign(hashes).tolist() == [{19: 2, 4: 1}.get(k, 0) for k in range(20)]
    assert (left.val.tolist(), left.test.tolist()) == ([4], [19])
