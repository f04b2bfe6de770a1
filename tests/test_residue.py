"""Nothing of the forgotten is in what is written afterwards."""

import pytest
from residue import Planted, Search, run


@pytest.mark.parametrize(("count", "seed"), [(4, 0), pytest.param(50, 1, marks=pytest.mark.slow)])
def test_nothing_of_planted_people_is_in_anything_written_after_they_were_forgotten(count, seed):
    answer = run(count, seed)
    assert answer["residue"] == {}
    assert answer["residue_bytes"] == 0
    assert answer["files"] >= 40
    # The same search finds them in what was written before.
    kinds = {f"{kind}: {what}" for kind in ("texts", "numbers") for what in ("id", "rating", "time", "feature")}
    assert kinds | {"command: id", "command: rating", "command: time"} <= answer["before"].keys()
    assert min(answer["before"].values()) > 100


def test_the_search_finds_what_a_look_at_every_place_finds():
    import gzip
    import random

    needles = Planted(2, 0, "numbers").needles()
    some = random.Random(3).sample(sorted(needles), 40)
    data = b"".join(random.Random(k).randbytes(k % 7) + needle for k, needle in enumerate(some))
    expected = {}
    for place in range(len(data)):
        for needle, what in needles.items():
            if data.startswith(needle, place):
                expected[what] = expected.get(what, 0) + len(needle)
    for packed in (data, gzip.compress(data)):
        found = {}
        Search(needles).look(packed, found)
        assert found == expected
    assert sum(expected.values()) > 200
