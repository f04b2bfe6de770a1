"""One request after another in one process: what stays of each is its line in the ledger, and nothing else."""

from collections import Counter

import pytest
import soak


@pytest.mark.parametrize("way", ["full, with checkpoints", "local"])
def test_a_request_leaves_its_entry_in_the_ledger_and_nothing_else(way):
    with soak.soaking(way, 30, 0) as soaked:
        for _ in range(10):
            soaked.forget()
        soak.objects()  # counting fills caches of its own
        before, held = soak.objects(), soak.tensor_bytes()
        for _ in range(20):
            soaked.forget()
        after, more = soak.objects(), soak.tensor_bytes()
        grown = Counter({kind: count for kind, count in (after - before).items() if count >= 10})
        # An entry is a dict with the reasons for its verdict, a list; counted is what the garbage collector follows.
        assert set(grown) == {"dict", "list"}, grown
        assert max(grown.values()) <= 25, grown
        assert soaked.entries == 30
        assert held > 10_000
        assert more <= held


@pytest.mark.slow
@pytest.mark.parametrize("count", [500])
def test_memory_stays_within_five_percent_over_five_hundred_requests(count):
    found = soak.run(count, ways=[way for way, (_, writes) in soak.WAYS.items() if writes])
    for way in found["ways"].values():
        assert way["requests"] == way["ledger"] == count
        assert way["growth"] <= 0.05
