import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru.incidence import Incidence

SIZE = 6
positions = st.lists(st.integers(-1, SIZE - 1), max_size=40)


def naive(position, asked):
    """Rows and whose they are, by two loops."""
    found = [(row, k) for k, p in enumerate(asked) for row, q in enumerate(position) if p == q]
    return [row for row, _ in found], [k for _, k in found]


def same(incidence, position, asked):
    rows, which = incidence.rows(torch.tensor(asked, dtype=torch.long))
    return (rows.tolist(), which.tolist()) == naive(position, asked)


@given(positions, st.lists(st.integers(0, SIZE - 1), max_size=8))
def test_rows_are_those_that_two_loops_find(position, asked):
    incidence = Incidence(torch.tensor(position, dtype=torch.long), SIZE)
    assert len(incidence) == SIZE
    assert incidence.counts.tolist() == [position.count(p) for p in range(SIZE)]
    assert same(incidence, position, asked)


@given(st.data(), positions)
def test_what_is_dropped_in_parts_is_as_if_it_had_never_been_there(data, position):
    incidence = Incidence(torch.tensor(position, dtype=torch.long), SIZE)
    for _ in range(2):
        alive = [row for row, p in enumerate(position) if p >= 0]
        gone = data.draw(st.lists(st.sampled_from(alive), unique=True) if alive else st.just([]))
        index = torch.tensor(gone, dtype=torch.long)
        incidence.drop(index, torch.tensor(position, dtype=torch.long)[index])
        position = [-1 if row in gone else p for row, p in enumerate(position)]
        fresh = Incidence(torch.tensor(position, dtype=torch.long), SIZE)
        assert torch.equal(incidence.counts, fresh.counts)
        assert same(incidence, position, list(range(SIZE)))
        # No number of a dropped row is left anywhere in it.
        assert not set(gone) & set(incidence._rows.tolist())


def test_dropping_nothing_and_dropping_twice_change_nothing():
    position = torch.tensor([0, 1, 1])
    incidence = Incidence(position, 2)
    nothing = torch.tensor([], dtype=torch.long)
    incidence.drop(nothing, nothing)
    for _ in range(2):
        incidence.drop(torch.tensor([1]), torch.tensor([1]))
    assert [part.tolist() for part in incidence.rows(torch.arange(2))] == [[0, 2], [0, 1]]


def test_it_can_be_built_in_inference_mode_and_dropped_from_outside_of_it():
    with torch.inference_mode():
        incidence = Incidence(torch.tensor([0, 0]), 1)
    incidence.drop(torch.tensor([0]), torch.tensor([0]))
    assert incidence.rows(torch.tensor([0]))[0].tolist() == [1]
