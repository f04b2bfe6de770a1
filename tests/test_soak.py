"""One request after another in one process: what stays of each is its line in the ledger, and nothing else."""

import gc
import tracemalloc
from collections import Counter

import pytest
import soak


@pytest.mark.parametrize("way", ["full, with checkpoints", "local"])
def test_a_request_leaves_its_entry_in_the_ledger_and_nothing_else(way):
    with soak.soaking(way, 30, 0) as soaked:
        for _ in range(9):
            soaked.forget()
        tracemalloc.start()
        try:
            soaked.forget()
            before, (held, _) = soak.objects(), tracemalloc.get_traced_memory()
            for _ in range(20):
                soaked.forget()
            after, (more, _) = soak.objects(), tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        grown = Counter({kind: count for kind, count in (after - before).items() if count >= 20})
        # An entry is a dict with the reasons for its verdict, a list; counted are what the garbage collector follows.
        assert set(grown) <= {"dict", "list"}, grown
        assert max(grown.values()) <= 25, grown
        assert soaked.entries == 30
        assert (more - held) / 20 < 25_000  # bytes of an entry, and of the digests of what it has forgotten
        assert not [one for one in gc.get_objects() if type(one).__name__ in ("Unlearning", "Transaction", "Problem")]


@pytest.mark.slow
@pytest.mark.parametrize("count", [500])
def test_memory_stays_within_five_percent_over_five_hundred_requests(count):
    found = soak.run(count)
    for way in found["ways"].values():
        assert way["requests"] == way["ledger"] == count
        assert way["growth"] <= 0.05
