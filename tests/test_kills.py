"""Killed at any moment, an unlearning has happened or it has not; a few moments every day, 200 with ``-m slow``."""

import sys

import kills
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="forks, which torch does not allow once it knows of a GPU"),
]


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_the_old_state_or_the_new_and_the_request_can_be_made_again(count):
    found = kills.run(count, seed=count)
    assert found["kills"] == found["completed when asked for again"] == count
    assert sum(found["killed at any time, found"].values()) == count // 2
    assert min(found["killed while writing, found"].values()) > 0  # the old state and the new one
    assert found["moments of writing"] > 20


def test_a_fit_that_is_killed_while_it_forgets_leaves_its_checkpoint_and_another_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = kills.at_fit_end(tmp_path / "fit", 8, seed=0)
    assert sum(found.values()) == 8
    assert min(found.values()) > 0
