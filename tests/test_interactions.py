import copy

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from states import assert_same, text, through_a_file

from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.ids import IdIndex
from lightning_ifru.interactions import Interactions, InteractionTable
from lightning_ifru.placement import ByHash, mix
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.splits import SPLITS, RandomSplit

# Few ids, so that pairs repeat and users run out of interactions; 1, "1" and 1.0 are one and the same.
ids = st.sampled_from([1, 2, 3, "1", "4", 5.0, "a", "b", "é"])
rows = st.lists(st.tuples(ids, ids, st.integers(1, 5), st.integers(0, 3)), min_size=12, max_size=60)
split = RandomSplit(val_fraction=0.2, test_fraction=0.2, seed=3)


def frame_of(interactions):
    return pd.DataFrame(
        {
            "user": pd.Series([r[0] for r in interactions], dtype=object),
            "item": pd.Series([r[1] for r in interactions], dtype=object),
            "rating": [r[2] for r in interactions],
            "timestamp": [r[3] for r in interactions],
        }
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2**31])), max_size=12))
def test_of_pairs_that_repeat_the_first_are_the_distinct_ones(pairs):
    user, item = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    found = Interactions(user, item, torch.arange(len(pairs), dtype=torch.float32)).distinct()
    first = [k for k, pair in enumerate(pairs) if pair not in pairs[:k]]
    assert found.label.tolist() == first
    assert list(zip(found.user.tolist(), found.item.tolist(), strict=True)) == [pairs[k] for k in first]


def naive_pairs(interactions):
    """The latest rating of every pair, by dict and loop."""
    latest = {}
    for user, item, rating, time in interactions:
        pair = (text(user), text(item))
        if pair not in latest or time >= latest[pair][1]:
            latest[pair] = (rating, time)
    return {pair: rating for pair, (rating, _) in latest.items()}


def contents(table):
    """What is alive: pair of texts -> (label, split), by loop over what select gives."""
    found = {}
    for name in SPLITS:
        some = table.select(name)
        for user, item, label in zip(some.user.tolist(), some.item.tolist(), some.label.tolist(), strict=True):
            pair = (text(table.users.ids[user]), text(table.items.ids[item]))
            assert pair not in found
            found[pair] = (label, name)
    return found


def make(interactions, threshold=None):
    try:
        return InteractionTable(frame_of(interactions), threshold=threshold, split=split)
    except DataError:
        assume(False)


def naive_removal(pairs, users=(), items=(), interactions=()):
    gone = {pair for pair in pairs if pair[0] in users or pair[1] in items or pair in interactions}
    erased, absent = [], []
    for side, whole in ((0, users), (1, items)):
        before = {pair[side] for pair in pairs}
        train_before = {pair[side] for pair in pairs if pairs[pair][1] == "train"}
        train_after = {pair[side] for pair in pairs if pairs[pair][1] == "train" and pair not in gone}
        after = {pair[side] for pair in pairs if pair not in gone}
        absent.append(set(whole) | (before - after))
        erased.append(absent[-1] | (train_before - train_after))
    return gone, erased, absent[1]


def still_possible(request, left):
    """What can still be asked for when only these pairs are left; None if nothing."""
    users = [user for user in request.users if user in {u for u, _ in left}]
    items = [item for item in request.items if item in {i for _, i in left}]
    pairs = [pair for pair in request.interactions if pair in left]
    return UnlearningRequest(users=users, items=items, interactions=pairs) if users or items or pairs else None


@st.composite
def tables_and_requests(draw, count=1):
    interactions = draw(rows)
    table = make(interactions)
    pairs = sorted(contents(table))
    requests = []
    for _ in range(count):
        users = draw(st.lists(st.sampled_from(sorted({u for u, _ in pairs})), max_size=2))
        items = draw(st.lists(st.sampled_from(sorted({i for _, i in pairs})), max_size=1))
        some = draw(st.lists(st.sampled_from(pairs), max_size=6, min_size=0 if users or items else 1))
        requests.append(UnlearningRequest(users=users, items=items, interactions=some))
    return interactions, table, requests


def planned(table, request):
    try:
        return table.plan(request)
    except RequestError as error:
        if "leaves none" not in str(error):
            raise
        assume(False)


# --- ids


@given(st.lists(ids, min_size=1))
def test_positions_are_in_order_of_first_appearance(values):
    index, codes = IdIndex.factorize(pd.Series(values, dtype=object))
    order = list(dict.fromkeys(text(value) for value in values))
    assert [text(value) for value in index.ids] == order
    assert codes.tolist() == [order.index(text(value)) for value in values]
    assert index.lookup(values).tolist() == codes.tolist()
    assert index.lookup(["nobody", *values, -1])[[0, -1]].tolist() == [-1, -1]


def test_ids_keep_the_form_of_their_first_appearance():
    index, _ = IdIndex.factorize(pd.Series(np.array([7, 8, 7])))
    assert [type(value) for value in index.ids] == [int, int]
    index, codes = IdIndex.factorize(pd.Series(["1", 1, 1.0, np.int64(2)], dtype=object))
    assert (index.ids.tolist(), codes.tolist()) == (["1", 2], [0, 0, 0, 1])
    assert type(index.ids[1]) is int


@given(st.data(), st.lists(ids, min_size=1))
def test_retiring_moves_nobody(data, values):
    index, _ = IdIndex.factorize(pd.Series(values, dtype=object))
    before = index.ids
    gone = data.draw(st.sets(st.integers(0, len(index) - 1)))
    index.retire(torch.tensor(sorted(gone), dtype=torch.long))
    for position, value in enumerate(before):
        assert index.ids[position] == (None if position in gone else value)
        assert index.lookup([value]).tolist() == [-1 if position in gone else position]
        assert (index.hashes()[position] == 0) == (position in gone)


def test_what_is_no_id_is_refused():
    with pytest.raises(DataError, match="users' column holds no ids"):
        InteractionTable(pd.DataFrame({"user": [[1], [2]], "item": [1, 2]}))


# --- reading into the table


@given(rows)
def test_a_pair_counts_once_with_its_latest_rating(interactions):
    table = make(interactions)
    found = {pair: label for pair, (label, _) in contents(table).items()}
    assert found == naive_pairs(interactions)
    assert len(table) == len(found)


def test_without_timestamps_the_last_of_the_source_counts():
    frame = pd.DataFrame({"user": [1, 1, 1, 2], "item": [1, 2, 1, 1], "rating": [5.0, 3, 1, 2]})
    table = InteractionTable(frame, split=RandomSplit(0, 0))
    assert contents(table) == {("1", "2"): (3.0, "train"), ("1", "1"): (1.0, "train"), ("2", "1"): (2.0, "train")}


@pytest.mark.parametrize(
    ("rating", "threshold", "labels", "positive"),
    [
        ([1.0, 4, 3.5], 3.5, [0, 1, 1], [False, True, True]),
        ([1.0, 0, -2], None, [1, 0, -2], [True, True, True]),
        (None, None, [1, 1, 1], [True, True, True]),
    ],
)
def test_labels_and_edges(rating, threshold, labels, positive):
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 1, 1]} | ({} if rating is None else {"rating": rating}))
    table = InteractionTable(frame, threshold=threshold, split=RandomSplit(0, 0))
    assert table.label.tolist() == labels
    assert table.positive.tolist() == positive
    assert len(table.select("train", positive=True)) == sum(positive)
    assert table.labelled == (rating is not None)
    assert (table.user.dtype, table.item.dtype, table.label.dtype) == (torch.int64, torch.int64, torch.float32)


def test_interactions_are_taken_by_mask_and_by_index():
    some = Interactions(torch.arange(3), torch.arange(3, 6), torch.ones(3))
    assert some[torch.tensor([True, False, True])].item.tolist() == [3, 5]
    assert some[torch.tensor([2, 0])].user.tolist() == [2, 0]
    assert len(some.to("cpu")) == 3


# --- splits


def grid(users=60, items=50):
    return pd.DataFrame({"user": np.repeat(np.arange(users), items), "item": np.tile(np.arange(items), users)})


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.0, 0.25), (0.3, 0.0), (0.0, 0.0), (0.333, 0.5)])
def test_a_split_has_the_fractions_asked_for(val, test):
    table = InteractionTable(grid(), split=RandomSplit(val, test))
    sizes = [len(table.select(name)) for name in SPLITS]
    assert sizes == [3000 - round(3000 * val) - round(3000 * test), round(3000 * val), round(3000 * test)]


def test_a_split_is_random_over_users_and_items_and_follows_the_seed():
    splits = [InteractionTable(grid(), split=RandomSplit(0.2, 0.2, seed)).split for seed in (0, 0, 1)]
    assert torch.equal(splits[0], splits[1])
    agreement = (splits[0] == splits[2]).float().mean()
    assert agreement == pytest.approx(0.6**2 + 2 * 0.2**2, abs=0.04)
    held_out = (splits[0] == 2).float().view(60, 50)
    for axis, size in ((0, 60), (1, 50)):
        # Binomial around .2: no user and no item is far off, and they are not all alike.
        assert (held_out.mean(axis) - 0.2).abs().max() < 5 * (0.16 / size) ** 0.5
        assert held_out.mean(axis).std() > 0.02


def test_a_split_depends_on_the_texts_alone():
    shuffled = grid().sample(frac=1, random_state=0)
    as_text = shuffled.astype(str)
    tables = [InteractionTable(frame, split=split) for frame in (grid(), shuffled, as_text)]
    assert contents(tables[0]) == contents(tables[1]) == contents(tables[2])


def test_the_cut_offs_are_the_hash_of_no_row():
    hashes = mix(np.arange(100, dtype=np.uint64))
    cuts = RandomSplit(0.2, 0.3).cuts(hashes)
    assert not set(cuts) & set(hashes.tolist())
    assert torch.bincount(ByHash(0, cuts).assign(hashes)).tolist() == [50, 20, 30]


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0.1)])
def test_bad_fractions_are_refused(val, test):
    with pytest.raises(DataError, match="nothing to train on or are no fractions"):
        RandomSplit(val, test)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match="none of 3 rows is left for training"):
        InteractionTable(grid(3, 1), split=RandomSplit(0.4, 0.5))
    with pytest.raises(DataError, match="needs ratings"):
        InteractionTable(grid(3, 1), threshold=1.0)


# --- forgetting


@given(tables_and_requests())
def test_a_removal_takes_what_a_loop_would(case):
    _, table, (request,) = case
    pairs, positions = contents(table), (table.users.ids, table.items.ids)
    columns = [column.clone() for column in (table.user, table.item, table.label, table.split)]
    removal = planned(table, request)
    gone, erased, withdrawn = naive_removal(pairs, request.users, request.items, request.interactions)
    assert contents(table) == pairs
    assert removal.counts == {name: sum(pairs[pair][1] == name for pair in gone) for name in SPLITS}
    assert {text(positions[0][p]) for p in removal.users.tolist()} == erased[0]
    assert {text(positions[1][p]) for p in removal.items.tolist()} == erased[1]
    assert {text(positions[1][p]) for p in removal.withdrawn.tolist()} == withdrawn

    table.remove(removal)
    left = {pair: value for pair, value in pairs.items() if pair not in gone}
    assert contents(table) == left
    assert len(removal.rows) == len(pairs)
    for column, before, blank in zip(
        (table.user, table.item, table.label, table.split), columns, (-1, -1, 0, -1), strict=True
    ):
        assert torch.equal(column, torch.where(removal.rows, torch.full_like(before, blank), before))
    for index, ids_before, side in ((table.users, positions[0], 0), (table.items, positions[1], 1)):
        remain = {pair[side] for pair in left}
        assert index.ids.tolist() == [value if text(value) in remain else None for value in ids_before]
    assert {text(positions[1][p]) for p in range(len(table.items))} - {
        text(positions[1][p]) for p in table.candidates.tolist()
    } == withdrawn
    assert {text(value) for value in table.items.ids[table.candidates.numpy()]} == {item for _, item in left}


def test_the_order_of_a_request_does_not_matter():
    tables = [InteractionTable(grid(9, 9), split=split) for _ in range(2)]
    for table, users in zip(tables, ([1, "4", 7], [7, 1, 4, "1"]), strict=True):
        table.remove(table.plan(UnlearningRequest(users=users, interactions=[(2, 3), ("2", 3)])))
    assert_same(tables[0].state(), tables[1].state())
    assert int((~tables[0].alive).sum()) == 28


def test_a_user_without_training_interactions_is_erased_but_keeps_the_id_that_is_still_held_out():
    table = InteractionTable(grid(20, 5), split=RandomSplit(0.3, 0.3))
    held_out = {user for user, _ in (pair for pair, (_, name) in contents(table).items() if name != "train")}
    train = [pair for pair, (_, name) in contents(table).items() if name == "train"]
    user = sorted(held_out & {user for user, _ in train})[0]
    removal = table.plan(UnlearningRequest(interactions=[pair for pair in train if pair[0] == user]))
    table.remove(removal)
    assert removal.users.tolist() == [int(user)]
    assert table.users.ids[int(user)] == int(user)
    table.remove(table.plan(UnlearningRequest(users=[user])))
    assert table.users.ids[int(user)] is None


def test_an_item_is_a_candidate_as_long_as_any_split_holds_it():
    # As the shortened source has it: what was never trained on is a candidate, too.
    table = InteractionTable(grid(5, 20), split=RandomSplit(0.3, 0.3))
    pairs = contents(table)
    never = set(range(20)) - {int(item) for (_, item), (_, name) in pairs.items() if name == "train"}
    item = next(i for (_, i), (_, name) in pairs.items() if name == "test" and int(i) not in never)
    train, rest = (
        [pair for pair, (_, name) in pairs.items() if pair[1] == item and (name == "train") is trained]
        for trained in (True, False)
    )
    removal = table.plan(UnlearningRequest(interactions=train))
    assert (removal.items.tolist(), removal.withdrawn.tolist()) == ([int(item)], [])
    table.remove(removal)
    assert table.candidates.tolist() == list(range(20))
    assert table.items.ids[int(item)] == int(item)
    removal = table.plan(UnlearningRequest(interactions=rest))
    assert (removal.items.tolist(), removal.withdrawn.tolist()) == ([int(item)], [int(item)])
    table.remove(removal)
    assert table.candidates.tolist() == [i for i in range(20) if i != int(item)]
    assert table.items.ids[int(item)] is None


@pytest.mark.parametrize(
    ("request_", "fragments"),
    [
        ({"users": ["x", 1]}, ["1 of the request's entries", "user 'x';"]),
        ({"items": [-1]}, ["item -1"]),
        ({"interactions": [(1, 99), (99, 1)]}, ["2 of", "interaction (1, 99), interaction (99, 1)"]),
        ({"users": list("abcdefgh")}, ["8 of", "user 'e' and 3 more"]),
        ({"users": range(9)}, ["leaves none of the 81 training interactions"]),
    ],
)
def test_what_cannot_be_forgotten_is_said(request_, fragments):
    table = InteractionTable(grid(9, 9), split=RandomSplit(0, 0))
    before = table.state()
    with pytest.raises(RequestError) as caught:
        table.plan(UnlearningRequest(**request_))
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert_same(table.state(), before)


def test_unknown_ids_are_named_with_their_line(tmp_path):
    path = tmp_path / "forget.csv"
    path.write_text("user,item\n1,\nghost,\n2,99\n")
    with pytest.raises(RequestError, match=r"user 'ghost' \(line 3\), interaction \('2', '99'\) \(line 4\)"):
        InteractionTable(grid(9, 9)).plan(UnlearningRequest.from_file(path))


# --- checkpoints


def ids_by_position(table):
    return table.users.ids.tolist(), table.items.ids.tolist()


@settings(max_examples=60)
@given(tables_and_requests(count=2))
def test_a_new_process_finds_what_was_left(case):
    interactions, table, (one, other) = case
    table.remove(planned(table, one))
    state = through_a_file(table.state())
    left = contents(table)

    same_source = make(interactions)
    same_source.restore(state)
    # In another order; the sort is stable, so that of a pair's ratings the same is the latest.
    survivors = sorted(
        (row for row in interactions if (text(row[0]), text(row[1])) in left),
        key=lambda row: (text(row[1]), text(row[0])),
    )
    without = InteractionTable(frame_of(survivors), split=RandomSplit(0.0, 0.1, seed=99))
    without.restore(state)
    for restored in (same_source, without):
        assert contents(restored) == left
        assert ids_by_position(restored) == ids_by_position(table)
        assert restored.candidates.tolist() == table.candidates.tolist()
        again = restored.plan(one)
        assert (len(again.positions), again.absent) == (0, len(one.texts))
    assert_same(same_source.state(), state)
    assert without.state()["num_forgotten"] == state["num_forgotten"]

    # A second request in the process that reads the shortened file, and back again from both files.
    without.remove(planned(without, other))
    again = InteractionTable(frame_of(survivors), split=split)
    again.restore(through_a_file(without.state()))
    last = [row for row in survivors if (text(row[0]), text(row[1])) in contents(without)]
    shortest = InteractionTable(frame_of(last), split=RandomSplit(0, 0))
    shortest.restore(through_a_file(without.state()))
    for restored in (again, shortest):
        assert contents(restored) == contents(without)
        assert ids_by_position(restored) == ids_by_position(without)


def test_the_state_holds_nothing_of_the_forgotten():
    frame = pd.DataFrame({"user": ["alice", "bob", "bob"], "item": ["x", "x", "y"], "rating": [1.5, 2.0, 3.0]})
    table = InteractionTable(frame, split=RandomSplit(0, 0))
    full = table.state()
    table.remove(table.plan(UnlearningRequest(users=["alice"])))
    state = table.state()
    assert state["user_ids"] == [None, "bob"]
    assert state["forgotten"].tolist() == [0]
    survivors = InteractionTable(frame[1:], split=RandomSplit(0, 0)).state()
    assert state["fingerprint"] == survivors["fingerprint"] != full["fingerprint"]
    assert table.users.hashes()[0] == 0


def forgetting(frame, *requests, split=split):
    table = InteractionTable(frame, split=split)
    for request in requests:
        table.remove(table.plan(request))
    return table


def test_restoring_in_the_same_process_changes_nothing():
    table = forgetting(grid(9, 9), UnlearningRequest(users=[3], interactions=[(1, 1)]))
    before = table.state()
    table.restore(through_a_file(before))
    assert_same(table.state(), before)


def test_an_older_checkpoint_brings_nothing_back():
    older = InteractionTable(grid(9, 9), split=split).state()
    table = forgetting(grid(9, 9), UnlearningRequest(users=[3], items=[2]))
    before = table.state()
    table.restore(through_a_file(older))
    assert_same(table.state(), before)

    shortened = InteractionTable(grid(9, 9).query("user != 3 and item != 2"), split=split)
    shortened.restore(before)
    shortened.restore(older)
    assert contents(shortened) == contents(table)
    assert ids_by_position(shortened) == ids_by_position(table)


def test_an_older_checkpoint_of_another_order_cannot_be_told_from_other_data():
    older = InteractionTable(grid(9, 9), split=split).state()
    table = forgetting(grid(9, 9)[::-1], UnlearningRequest(users=[3]))
    before = table.state()
    with pytest.raises(DataError, match="72 interactions, the checkpoint 81 with 0 forgotten"):
        table.restore(older)
    assert_same(table.state(), before)


def test_a_checkpoint_that_has_forgotten_something_else_adds_to_it():
    other = forgetting(grid(9, 9), UnlearningRequest(users=[4], interactions=[(3, 1)])).state()
    table = forgetting(grid(9, 9), UnlearningRequest(users=[3]))
    table.restore(through_a_file(other))
    assert contents(table) == contents(forgetting(grid(9, 9), UnlearningRequest(users=[3, 4])))
    assert [p for p, value in enumerate(table.users.ids) if value is None] == [3, 4]


def test_data_can_grow_within_known_ids_while_nothing_is_forgotten():
    frame = grid(9, 9)
    table = InteractionTable(frame[frame["user"] != frame["item"]], split=split)
    grown = InteractionTable(frame[::-1], split=RandomSplit(0.5, 0.0))
    grown.restore(table.state())
    assert ids_by_position(grown) == ids_by_position(table)
    assert contents(table).items() < contents(grown).items()
    with pytest.raises(DataError, match="not those the checkpoint was trained on"):
        InteractionTable(grid(10, 9)).restore(table.state())


@pytest.mark.parametrize("frame", [grid(9, 9).replace({"item": {0: 77}}), grid(10, 9), grid(9, 10)[::-1]])
def test_other_data_are_refused_with_both_counts(frame):
    state = forgetting(grid(9, 9), UnlearningRequest(users=[3])).state()
    table = InteractionTable(frame, split=RandomSplit(0.1, 0.1, seed=5))
    before = table.state()
    with pytest.raises(DataError, match=rf"they have {len(frame)} interactions, the checkpoint 81 with 9 forgotten"):
        table.restore(state)
    assert_same(table.state(), before)


@pytest.mark.parametrize(
    "frame",
    [
        grid(9, 8),
        grid(9, 9).query("user != 3 and item != 5"),
        grid(9, 9)[::-1],
        grid(9, 9).assign(rating=3.0),
        grid(9, 9).query("user != 4"),
        grid(9, 9).sample(frac=1, random_state=1),
    ],
)
def test_beside_another_source_the_forgotten_rows_are_recognised(frame):
    state = forgetting(grid(9, 9), UnlearningRequest(users=[3], interactions=[(1, 1)])).state()
    table = InteractionTable(frame, split=RandomSplit(0.1, 0.1, seed=5))
    table.restore(through_a_file(state))
    wanted = {(text(u), text(i)) for u, i in zip(frame["user"], frame["item"], strict=True) if u != 3}
    assert contents(table).keys() == wanted - {("1", "1")}
    assert table.users.ids.tolist() == [0, 1, 2, None, 4, 5, 6, 7, 8]
    again = table.plan(UnlearningRequest(users=[3], interactions=[(1, 1), (3, 8)]))
    assert (len(again.positions), again.absent) == (0, 3)


def test_beside_the_full_source_a_checkpoint_of_the_shortened_one_drops_the_same():
    whole = forgetting(grid(9, 9), UnlearningRequest(interactions=[(1, 1)]))
    shortened = InteractionTable(grid(9, 9).query("user != 1 or item != 1"), split=split)
    shortened.restore(whole.state())
    table = InteractionTable(grid(9, 9), split=split)
    table.restore(shortened.state())
    assert contents(table) == contents(whole)
    assert_same(table.state(), whole.state())


def test_a_state_of_something_else_is_refused():
    with pytest.raises(DataError, match="lacks 'cuts'"):
        InteractionTable(grid(9, 9)).restore({})


def test_a_table_read_in_inference_mode_serves_training():
    with torch.inference_mode():
        table = InteractionTable(grid(9, 9), split=split)
        table.remove(table.plan(UnlearningRequest(users=[3])))
        table.restore(table.state())
        train = table.select("train")
    weight = torch.ones(9, 1, requires_grad=True)
    weight[train.user].sum().backward()
    table.remove(table.plan(UnlearningRequest(users=[4])))
    assert weight.grad is not None


# --- the index of rows, and undoing


def assert_indexed_as_if_built_anew(table):
    fresh = copy.deepcopy(table)
    fresh._index = None
    for mine, theirs in ((table.by_user, fresh.by_user), (table.by_item, fresh.by_item)):
        every = torch.arange(len(mine))
        assert [part.tolist() for part in mine.rows(every)] == [part.tolist() for part in theirs.rows(every)]
        assert torch.equal(mine.counts, theirs.counts)
    assert all(map(torch.equal, table.train_counts, fresh.train_counts))
    assert table.state()["fingerprint"] == fresh.state()["fingerprint"]


@settings(max_examples=30)
@given(tables_and_requests(count=2))
def test_what_is_kept_of_the_rows_is_what_would_be_built_anew(case):
    _, table, (one, other) = case
    table.remove(planned(table, one))
    assert_indexed_as_if_built_anew(table)
    if (rest := still_possible(other, contents(table))) is not None:
        table.remove(planned(table, rest))
        assert_indexed_as_if_built_anew(table)
    state = table.state()
    table.restore(through_a_file(state))
    assert_indexed_as_if_built_anew(table)


def everything(table):
    """All that a table is, down to what a checkpoint would hold."""
    columns = (table.user, table.item, table.label, table.split, table.alive, table.trained, table.candidates)
    sides = [(side.ids, side.hashes(), side.lookup(side.ids[~side.erased])) for side in (table.users, table.items)]
    return [column.tolist() for column in (*columns, *sides[0], *sides[1])], str(table.state())


@settings(max_examples=30)
@given(tables_and_requests(count=2), st.booleans())
def test_undoing_leaves_a_table_as_it_was(case, restored):
    interactions, table, (one, other) = case
    if restored:  # holes of its own, that undoing must not fill
        table.remove(planned(table, one))
        other = still_possible(other, contents(table))
        assume(other is not None)
    older = make(interactions).state()
    before = everything(table)
    removal = planned(table, other)
    with table.revocable() as undo:
        with table.revocable() as inner:
            table.remove(removal)
            assert everything(table) != before
            inner()
            assert everything(table) == before
            table.restore(older)
            table.remove(removal)
        assert everything(table) != before
        undo()
        assert everything(table) == before
        assert_indexed_as_if_built_anew(table)
        table.remove(removal)
    assert everything(table) != before
    assert table._written is None  # nothing of the forgotten is kept any longer
