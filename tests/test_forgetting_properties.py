"""Requests, ids, removal, graph and states against a world of dicts and loops, over whatever Hypothesis thinks of."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from states import assert_same, text, through_a_file

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, RequestError
from lightning_ifru.forgotten import ForgottenRecord, Part
from lightning_ifru.ids import IdIndex
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.splits import SPLITS

# Few ids, so that pairs repeat and users run out of interactions; 1, "1" and 1.0 are one and the same.
ids = st.sampled_from([1, 2, 3, "1", "4", 5.0, "a", "é"])
rows = st.lists(st.tuples(ids, ids, st.integers(1, 5), st.integers(0, 3)), min_size=10, max_size=40)
COLUMNS = ("user", "item", "rating", "time")


def module(interactions, **changes):
    """A data module on these rows; rows that leave nothing to train on are no example."""
    source = {name: list(column) for name, column in zip(COLUMNS, zip(*interactions, strict=True), strict=True)}
    settings = {"rating": "rating", "timestamp": "time", "threshold": 3.0, "val_fraction": 0.2, "test_fraction": 0.2}
    data = InteractionDataModule(source, **settings, **({"seed": 3} | changes))
    try:
        _ = data.num_users
    except DataError:
        assume(False)
    return data


class World:
    """What is there and what was, by dicts and loops."""

    def __init__(self, interactions):
        self.label, self.forgotten, self.users, self.items = {}, set(), set(), set()
        self.take(interactions)

    def take(self, interactions):
        """Read rows, the latest of a pair counting, and leave out what was forgotten."""
        latest = {}
        for user, item, rating, time in interactions:
            pair = (text(user), text(item))
            if pair not in latest or time >= latest[pair][1]:
                latest[pair] = (float(rating >= 3), time)
        self.label = {pair: label for pair, (label, _) in latest.items() if pair not in self.forgotten}

    @property
    def gone(self):
        """Users and items that were forgotten and are not back."""
        return self.users - {user for user, _ in self.label}, self.items - {item for _, item in self.label}

    def ask(self, request):
        """Forget, and return how many of the entries were forgotten before."""
        users, items = self.gone
        absent, going = 0, set()
        for kind, key in request.texts:
            if kind == "interaction":
                found = {key} & self.label.keys()
                was = key in self.forgotten or key[0] in users or key[1] in items
            else:
                side = 0 if kind == "user" else 1
                found = {pair for pair in self.label if pair[side] == key}
                was = key in (users, items)[side]
            assert found or was, "the request names a stranger"
            absent += not found
            going |= found
        before = ({user for user, _ in self.label}, {item for _, item in self.label})
        self.forgotten |= going
        self.label = {pair: label for pair, label in self.label.items() if pair not in going}
        self.users |= before[0] - {user for user, _ in self.label}
        self.items |= before[1] - {item for _, item in self.label}
        return absent


def contents(data):
    """Every interaction that is left, with its label and split."""
    found = {}
    for name in SPLITS:
        some = getattr(data, name)
        for user, item, label in zip(some.user.tolist(), some.item.tolist(), some.label.tolist(), strict=True):
            pair = (text(data.user_ids[user]), text(data.item_ids[item]))
            assert pair not in found
            found[pair] = (label, name)
    return found


def check(data, world, splits, positions):
    """The data are the world's; nobody has moved, between splits or positions; the graph is of what is left."""
    left = contents(data)
    assert {pair: label for pair, (label, _) in left.items()} == world.label
    assert {pair: split for pair, (_, split) in left.items() if pair in splits} == {
        pair: splits[pair] for pair in left if pair in splits
    }
    gone = world.gone
    for now, then, erased in zip((data.user_ids, data.item_ids), positions, gone, strict=True):
        assert [None if value is None else text(value) for value in now] == [
            None if value in erased else value for value in then
        ]
    place = [{value: k for k, value in enumerate(side)} for side in positions]
    edges = Counter()
    for (user, item), (label, split) in left.items():
        if label and split == "train":
            ends = place[0][user], len(positions[0]) + place[1][item]
            edges.update([ends, ends[::-1]])
    assert Counter(map(tuple, data.graph().T.tolist())) == edges
    assert {positions[1][k] for k in data.candidates.tolist()} >= {item for _, item in left}
    assert not {positions[1][k] for k in data.candidates.tolist()} & gone[1]


def at_first(data):
    """The splits and the ids by position, before anything is forgotten."""
    splits = {pair: split for pair, (_, split) in contents(data).items()}
    return splits, [[text(value) for value in side] for side in (data.user_ids, data.item_ids)]


def forget(data, request):
    """Stage and commit, and return the removal; what leaves nothing is no example."""
    try:
        data.forget(request)
    except RequestError as error:
        if "leaves none" not in str(error):
            raise
        assume(False)
    removal = data.removal()
    data.commit(removal)
    return removal


@st.composite
def requests(draw, pairs):
    """A request for some of these users, items and pairs, each in its text or as a number."""
    pairs = sorted(pairs)

    def form(value):
        return int(value) if value.isdigit() and draw(st.booleans()) else value

    users = draw(st.lists(st.sampled_from(sorted({user for user, _ in pairs})), max_size=2))
    items = draw(st.lists(st.sampled_from(sorted({item for _, item in pairs})), max_size=1))
    some = draw(st.lists(st.sampled_from(pairs), max_size=5, min_size=0 if users or items else 1))
    return UnlearningRequest(
        users=[*map(form, users)], items=[*map(form, items)], interactions=[(form(u), form(i)) for u, i in some]
    )


@st.composite
def cases(draw, count):
    interactions = draw(rows)
    pairs = {(text(user), text(item)) for user, item, _, _ in interactions}
    return interactions, [draw(requests(pairs)) for _ in range(count)]


#: What a process that starts anew may find beside the checkpoint.
SOURCES = {
    "the same": lambda rows, world: rows,
    "without the forgotten": lambda rows, world: [r for r in rows if (text(r[0]), text(r[1])) in world.label],
    "in another order": lambda rows, world: random.Random(1).sample(
        [max((r for r in rows if (text(r[0]), text(r[1])) == pair), key=lambda r: r[3]) for pair in _pairs(rows)],
        len(_pairs(rows)),
    ),
}


def _pairs(interactions):
    return list(dict.fromkeys((text(user), text(item)) for user, item, _, _ in interactions))


@settings(max_examples=60)
@given(cases(3), st.lists(st.sampled_from([None, *SOURCES]), min_size=3, max_size=3))
def test_any_requests_one_after_another_leave_what_loops_leave(case, restarts):
    interactions, asked = case
    # Of equal times the order decides, and one of the sources has another.
    interactions = [(*row[:3], k) for k, row in enumerate(interactions)]
    data, world = module(interactions), World(interactions)
    splits, positions = at_first(data)
    for request, restart in zip(asked, restarts, strict=True):
        removal, known = forget(data, request), dict(world.label)
        assert removal.absent == world.ask(request)
        assert len(removal.positions) == len(known) - len(world.label)
        check(data, world, splits, positions)
        if restart is not None:
            state = through_a_file(data.state_dict())
            data = module(SOURCES[restart](interactions, world), seed=8)
            data.load_state_dict(state)
            check(data, world, splits, positions)
            assert data.table.num_forgotten == len(world.forgotten)


@settings(max_examples=40)
@given(cases(2))
def test_forgetting_twice_is_forgetting_once(case):
    interactions, (one, other) = case
    data = module(interactions)
    forget(data, one | other)
    before, graph = through_a_file(data.state_dict()), data.graph()
    for request in (one | other, one, other):
        removal = forget(data, request)
        assert (len(removal.positions), removal.absent) == (0, len(request.texts))
        assert_same(data.state_dict(), before)
        assert data.graph() is graph


@settings(max_examples=40)
@given(cases(3), st.permutations(range(3)), st.integers(0, 2))
def test_a_union_is_the_sequence_in_any_order_also_through_a_checkpoint(case, order, restart):
    interactions, asked = case
    together, data = module(interactions), module(interactions)
    forget(together, asked[0] | asked[1] | asked[2])
    for step, k in enumerate(order):
        forget(data, asked[k])
        if step == restart:
            state = through_a_file(data.state_dict())
            data = module(interactions)
            data.load_state_dict(state)
    assert_same(data.state_dict(), together.state_dict())
    assert torch.equal(data.graph(), together.graph())
    assert torch.equal(data.table.trained, together.table.trained)


@settings(max_examples=40)
@given(cases(1))
def test_taking_over_ones_own_state_changes_nothing(case):
    interactions, (request,) = case
    data = module(interactions)
    for change in (lambda: None, lambda: forget(data, request)):
        change()
        state = data.state_dict()
        columns = [column.clone() for column in (data.table.user, data.table.label, data.table.split, data.graph())]
        data.load_state_dict(through_a_file(state))
        assert_same(data.state_dict(), state)
        now = (data.table.user, data.table.label, data.table.split, data.graph())
        assert all(map(torch.equal, now, columns))


@settings(max_examples=60)
@given(cases(2), st.data(), st.booleans())
def test_in_a_source_that_has_grown_the_forgotten_are_left_out_and_who_came_back_is_there(case, drawn, kept):
    interactions, (one, other) = case
    data, world = module(interactions), World(interactions)
    splits, positions = at_first(data)
    forget(data, one)
    world.ask(one)
    users, items = (st.sampled_from(side) for side in positions)
    later = drawn.draw(st.lists(st.tuples(users, items, st.integers(1, 5), st.just(9)), min_size=1, max_size=8))
    state = through_a_file(data.state_dict())
    grown = [*(interactions if kept else SOURCES["without the forgotten"](interactions, world)), *later]
    data = module(grown, seed=5)
    data.load_state_dict(state)
    world.take(grown)
    check(data, world, splits, positions)
    # The state of the grown source is one like any other.
    again = module(grown)
    again.load_state_dict(through_a_file(data.state_dict()))
    assert contents(again) == contents(data)
    removal, known = forget(again, other), dict(world.label)
    assert removal.absent == world.ask(other)
    assert len(removal.positions) == len(known) - len(world.label)
    check(again, world, splits, positions)


@given(st.lists(ids, min_size=1), st.data())
def test_ids_given_back_are_where_they_were(values, drawn):
    index = IdIndex(dict.fromkeys(map(text, values)))
    before = index.ids.copy(), index.hashes().copy()
    gone = drawn.draw(st.sets(st.integers(0, len(index) - 1)))
    index.retire(torch.tensor(sorted(gone), dtype=torch.long))
    back = drawn.draw(st.sets(st.sampled_from(sorted(gone)))) if gone else set()
    index.revive({place: before[0][place] for place in back})
    for place, value in enumerate(before[0]):
        erased = place in gone - back
        assert index.ids[place] == (None if erased else value)
        assert index.lookup([value]).tolist() == [-1 if erased else place]
        assert index.hashes()[place] == (0 if erased else before[1][place])
    assert index.plain() == index.ids.tolist()


digests = st.binary(min_size=16, max_size=16)
parts = st.builds(
    Part,
    st.frozensets(digests, max_size=4),
    st.dictionaries(digests, st.integers(0, 9), max_size=3),
    st.dictionaries(digests, st.integers(0, 9), max_size=3),
)
records = st.builds(ForgottenRecord, st.dictionaries(st.sampled_from(["a", "b"]), parts.filter(bool), max_size=2))


@given(records, records)
def test_records_are_sets_that_a_file_can_hold(one, other):
    assert ForgottenRecord.of_state(through_a_file(one.state())) == one
    assert one | one == one
    assert not one.beyond(one | other)
    assert (one | other).beyond(one) == other.beyond(one)
    assert ((one | other) | one).beyond(other | one) == ForgottenRecord()
    assert len(one | other) == sum(
        len(getattr(one.parts.get(name), "pairs", frozenset()) | getattr(other.parts.get(name), "pairs", frozenset()))
        for name in {*one.parts, *other.parts}
    )


@settings(max_examples=30)
@given(cases(1), st.sampled_from(["user", "item", "interaction"]))
def test_a_stranger_stays_an_error_whatever_was_forgotten(case, kind):
    interactions, (request,) = case
    data = module(interactions)
    forget(data, request)
    before = through_a_file(data.state_dict())
    live = next(iter(contents(data)))
    stranger = {
        "user": UnlearningRequest(users=["nobody"]),
        "item": UnlearningRequest(items=["nothing"]),
        "interaction": UnlearningRequest(interactions=[(live[0], "nothing")]),
    }[kind]
    with pytest.raises(RequestError, match="1 of the request's entries are not in the data and were not forgotten"):
        data.forget(request | stranger)
    assert_same(data.state_dict(), before)
    assert data.pending is None
