"""Negatives that are never stored: as even as can be, and the same forwards and backwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru.draws import FrozenDraws
from lightning_ifru.neighbours import every_place


def every_slot_of(draws, items):
    """The slots that each of ``items`` was drawn in, by the walk backwards."""
    which, place = every_place(draws.lengths(items))
    slots, index = draws.slots(items[which], place)
    return [sorted(slots[which[index] == k].tolist()) for k in range(len(items))]


@given(
    num_rows=st.integers(1, 60),
    per_row=st.integers(1, 4),
    never=st.lists(st.booleans(), min_size=1, max_size=40),
    leaving=st.lists(st.integers(0, 40), max_size=5),
    seed=st.integers(0, 5),
)
def test_the_walk_backwards_finds_exactly_the_slots_that_drew_an_item(num_rows, per_row, never, leaving, seed):
    items = torch.arange(len(never) + 1)
    candidates = items[~torch.tensor([*never, False])]  # one candidate at least
    draws = FrozenDraws(candidates, len(items), num_rows, per_row, seed)
    for item in leaving:  # one after the other, as requests come
        if item in draws.candidates and len(draws.candidates) > 1:
            draws = draws.without(torch.tensor([item]))
    drawn = draws.items(torch.arange(num_rows))
    assert drawn.shape == (num_rows, per_row)
    assert bool(torch.isin(drawn, draws.candidates).all())
    assert set(draws.candidates.tolist()) >= set(candidates.tolist()) - set(leaving)
    wanted = [(drawn.flatten() == item).nonzero().flatten().tolist() for item in items]
    assert every_slot_of(draws, items) == wanted


@given(rows=st.lists(st.integers(0, 49), min_size=1, max_size=8), gone=st.sets(st.integers(0, 19), max_size=15))
def test_what_a_row_draws_depends_on_nothing_else_and_changes_only_with_what_it_had_drawn(rows, gone):
    draws = FrozenDraws(torch.arange(20), 20, 50, 3, seed=1)
    before = draws.items(torch.arange(50))
    assert torch.equal(draws.items(torch.tensor(rows)), before[torch.tensor(rows)])
    left = torch.tensor(sorted(gone), dtype=torch.long)
    after = draws.without(left).items(torch.arange(50))
    hit = torch.isin(before, left)
    assert torch.equal(after[~hit], before[~hit])
    assert not torch.isin(after, left).any()
    assert torch.equal(draws.items(torch.arange(50)), before)


@pytest.mark.parametrize(("num_rows", "num_items"), [(3000, 100), (100, 3000), (1024, 1024)])
def test_items_are_drawn_evenly_and_rows_independently(num_rows, num_items):
    draws = FrozenDraws(torch.arange(num_items), num_items, num_rows, 4, seed=2)
    drawn = draws.items(torch.arange(num_rows))
    counts = drawn.flatten().bincount(minlength=num_items)
    if num_rows * 4 % num_items == 0:
        assert int(counts.min()) == int(counts.max())
    # Uniform: the mean of n numbers below M is M / 2 within a few times M / sqrt(12 n).
    centred = drawn.double() / num_items - 0.5
    assert abs(float(centred.mean())) < 4 / (12 * drawn.numel()) ** 0.5
    for lag in (centred[1:, 0] * centred[:-1, 0], centred[:, 0] * centred[:, 1]):
        assert abs(float(lag.mean())) < 4 / 12 / len(lag) ** 0.5
    assert not torch.equal(
        drawn, FrozenDraws(torch.arange(num_items), num_items, num_rows, 4, seed=3).items(torch.arange(num_rows))
    )


def test_a_sample_of_candidates_holds_each_as_often_as_any_other_and_all_where_there_is_room():
    draws = FrozenDraws(torch.arange(2, 32), 40, 10, 1, seed=0).without(torch.tensor([5, 9]))
    assert torch.equal(draws.some(100, torch.Generator()).sort().values, draws.candidates)
    counts = torch.zeros(40)
    for seed in range(600):
        some = draws.some(6, torch.Generator().manual_seed(seed))
        assert 4 <= len(some.unique()) == len(some) <= 6
        counts[some] += 1
    assert set(counts.nonzero().flatten().tolist()) == set(draws.candidates.tolist())
    # 600 windows of 6 of 30 places: 120 each, with a standard deviation below 10.
    assert bool(((counts[draws.candidates] - 120).abs() < 50).all())
