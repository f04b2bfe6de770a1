"""The chance of being in a batch, against all batches there are."""

import itertools

import pytest
import torch

from lightning_ifru.presence import batch_presence

# Users 0 to 2, items 3 to 6; the last item is never in an example, and node 0 is in most.
EXAMPLES = [(0, 3), (0, 4), (0, 5), (0, 3), (1, 3), (2, 4)]
NODES = 7


def all_batches(size):
    return list(itertools.combinations(range(len(EXAMPLES)), size))


@pytest.mark.parametrize("size", range(1, len(EXAMPLES) + 1))
def test_without_negatives_it_is_the_mean_over_all_batches(size):
    wanted = torch.zeros(NODES, dtype=torch.float64)
    for batch in all_batches(size):
        for node in {node for k in batch for node in EXAMPLES[k]}:
            wanted[node] += 1 / size / len(all_batches(size))
    counts = torch.bincount(torch.tensor(EXAMPLES).flatten(), minlength=NODES)
    found = batch_presence(counts, len(EXAMPLES), size)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert 0 == found[6] < found[1] <= found[0]


@pytest.mark.parametrize(("size", "negatives"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)])
def test_with_negatives_it_is_the_mean_over_all_batches_and_draws(size, negatives):
    candidates = [3, 4, 6]
    draws = list(itertools.product(candidates, repeat=size * negatives))
    wanted = torch.zeros(NODES, dtype=torch.float64)
    for batch, drawn in itertools.product(all_batches(size), draws):
        for node in {node for k in batch for node in EXAMPLES[k]} | set(drawn):
            wanted[node] += 1 / size / len(all_batches(size)) / len(draws)
    counts = torch.bincount(torch.tensor(EXAMPLES).flatten(), minlength=NODES)
    found = batch_presence(counts, len(EXAMPLES), size, torch.tensor(candidates), negatives)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_batch_that_is_larger_than_the_data_holds_all_of_them():
    counts = torch.tensor([2, 1, 0])
    assert batch_presence(counts, 2, 100).tolist() == [0.5, 0.5, 0.0]


def test_it_is_finite_and_monotone_for_millions():
    counts = torch.tensor([0, 1, 10, 1000, 100_000, 20_000_000])
    found = batch_presence(counts, 20_000_000, 8192)
    assert torch.isfinite(found).all()
    assert (found.diff() >= 0).all()
    # One of n examples is in a batch with probability B / n.
    assert float(found[1]) == pytest.approx(1 / 20_000_000, rel=1e-6)
    assert float(found[-1]) == pytest.approx(1 / 8192)
