"""Two processes against one: the same weights, one ledger and checkpoint, and one end where either fails."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lost_rank import MOMENTS
from two_ranks import DIFFERENT, SOLVED, built, data_for, trainer_in, unlearned

from lightning_ifru.ledger_check import check_ledger
from lightning_ifru.ranks import Ranks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a checkpoint of every model."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, (_, loss, _, _) in SOLVED.items():
        trainer, model = trainer_in(folder / "one", 1, max_epochs=12), built(name)
        trainer.fit(model, datamodule=data_for(loss))
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return folder


def launched(folder, accelerator):
    """Return what each of two processes has found."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run([*launch, script, folder, accelerator], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / accelerator / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="session")
def ranks(folder):
    """What two processes have found, started once for all tests: most of it is the time of their imports."""
    return launched(folder, "cpu")


@given(st.integers(0, 50), st.integers(1, 7))
def test_shares_are_contiguous_and_balanced(length, size):
    shares = [range(length)[Ranks(rank, size).share(length)] for rank in range(size)]
    assert [one for share in shares for one in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_exchanged(ranks):
    for found in (each["exchanges"] for each in ranks):
        floats, whole, doubles = found["sum"]
        assert floats.tolist() == [[1, 3], [5, 7]]
        assert (whole, doubles.tolist(), doubles.dtype) == (3, [1.0], torch.float64)
        number, tensor, thing = found["first"]
        assert (number, tensor.tolist(), thing) == (0.1, [0, 1, 2, 3], {"rank": 0})
        assert found["mask"].tolist() == [False, False, False, True]
        assert found["spread"] == [(0, 0), (1, 1), (2, 0)]
        assert all("different things (rank 1 than rank 0)" in error for error in found["errors"][:2])
    assert ranks[0]["exchanges"]["errors"][2] == "rank 1 of 2 has failed, and so all end (KeyError: 'mine')."
    assert ranks[1]["exchanges"]["errors"][2] == "'mine'"


def written_in(folder):
    """Return the files below a folder, but for the locks, which stay."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def assert_equal_to_rounding(found, alone):
    for parameter, wanted in alone["weights"].items():
        assert wanted.dtype == torch.float64
        torch.testing.assert_close(found["weights"][parameter].cpu(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOLVED)
def test_two_processes_arrive_where_one_does(folder, ranks, tmp_path, name):
    trained = torch.load(folder / f"{name}.ckpt", weights_only=False)["state_dict"]
    alone = unlearned(name, tmp_path, folder / f"{name}.ckpt")
    first, second = (found[name] for found in ranks)
    assert json.loads(alone["report"])["steps"] > 0
    assert all(torch.equal(tensor, second["weights"][parameter]) for parameter, tensor in first["weights"].items())
    assert_equal_to_rounding(first, alone)
    assert max(float((w - trained[n]).abs().max()) for n, w in alone["weights"].items()) > 1e-3
    assert first["left"] == second["left"] == alone["left"]


@pytest.mark.parametrize("name", SOLVED)
def test_report_ledger_and_checkpoint_are_one(folder, ranks, name):
    first, second = (found[name] for found in ranks)
    assert first["report"] == second["report"]
    assert first["ledger"] == second["ledger"]
    assert len(first["ledger"]) == 1
    place = Path(first["checkpoint"])
    assert written_in(folder / "cpu" / name) == [place.with_name("ledger.jsonl"), place]
    written = torch.load(first["checkpoint"], weights_only=False)
    assert written["callbacks"]["IFRUCallback"]["ledger"] == first["ledger"]
    for parameter, tensor in written["state_dict"].items():
        assert torch.equal(tensor, first["weights"][parameter])


def test_a_fit_in_two_processes_ends_with_one_unlearning(ranks):
    first, second = (found["fit"] for found in ranks)
    assert first["ledger"] == second["ledger"]
    assert len(first["ledger"]) == 1
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert first["left"] == second["left"] < len(data_for("bce").train)


def test_two_processes_write_one_output_once_and_where_nobody_else_does(folder, ranks):
    first, second = (found["output"] for found in ranks)
    place = str(folder / "output" / "a.ckpt")
    forgotten = first["said"][0][0]
    assert forgotten > 0
    assert first["said"][:2] == second["said"][:2] == [[forgotten, 0, place], [0, 1, place]]
    assert first["said"][2].startswith("DataError: another unlearning writes into")
    assert second["said"][2].startswith("RankError: rank 0 of 2 has failed, and so all end (DataError: another")
    assert first["ledger"] == second["ledger"]
    assert written_in(folder / "output") == [Path(place), folder / "output" / "ledger.jsonl"]
    assert check_ledger(folder / "output").holds


KEYS = (
    "RankError: the ranks have different keys of digests (rank 1 than rank 0), with which they would not do the same; "
    "wanted the same on every rank: set LIGHTNING_IFRU_KEY, or LIGHTNING_IFRU_KEY_FILE, to the same key on every rank."
)
ERRORS = {
    "requests": ["RankError: the ranks have different requests (rank 1 than rank 0)"] * 2,
    "data": ["RankError: the ranks have different data (rank 1 than rank 0)"] * 2,
    "sizes": ["RankError: the ranks have different numbers of users or items (rank 1 than rank 0)"] * 2,
    "methods": ["RankError: the ranks have different methods (rank 1 than rank 0)"] * 2,
    "keys": [KEYS] * 2,
    "keys-data": [KEYS] * 2,
    "rehearsed-one": [KEYS] * 2,
    "stranger": ["RankError: rank 1 of 2 has failed, and so all end (RequestError: ", "RequestError: "],
    "solve-0": ["RankError: rank 1 of 2 has failed, and so all end (ValueError: on purpose)", "ValueError: on purpose"],
    "solve-4": ["RankError: rank 1 of 2 has failed, and so all end (ValueError: on purpose)", "ValueError: on purpose"],
    "disk": ["DataError: ", "RankError: rank 0 of 2 has failed, and so all end (DataError: "],
    "leftover": [
        "ObjectiveError: an id that is to be forgotten would be written into the checkpoint, at 'seen'",
        "RankError: rank 0 of 2 has failed, and so all end (ObjectiveError: an id",
    ],
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_goes_wrong_on_one_rank_ends_all_and_moves_nothing(folder, ranks, name):
    assert ERRORS.keys() >= DIFFERENT.keys()
    for found, error in zip(ranks, ERRORS[name], strict=True):
        assert found[name]["error"].startswith(error)
        assert found[name]["error"].count("\n") == 0
        assert not found[name]["moved"]
        assert found[name]["rows"] == 0
        assert not found[name]["pending"]
    assert written_in(folder / name) == []


def test_a_rehearsal_in_two_processes_makes_no_key(folder, ranks):
    for rank, found in enumerate(ranks):
        assert found["rehearsed"] == {"error": None, "moved": False, "rows": 0, "pending": False, "digest": ""}
        assert list((folder / f"home-{rank}").iterdir()) == []


def test_ranks_with_different_keys_do_not_load_different_files(ranks):
    """One of them has the request in its ledger under its key, and would go on from its result."""
    for found in ranks:
        assert found["output"]["other key"] == KEYS


@pytest.fixture(scope="session")
def lost(tmp_path_factory):
    """A folder with what each of two processes found when the other was killed."""
    folder = tmp_path_factory.mktemp("lost")
    script = Path(__file__).with_name("lost_rank.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_where_one_process_is_killed_the_other_ends_with_a_sentence_and_nothing_half_done(lost, moment):
    victim, folder = MOMENTS[moment][0], lost / moment
    ends = json.loads((folder / "ends.json").read_text())
    assert ends == ([-signal.SIGKILL, 0] if victim == 0 else [0, -signal.SIGKILL])
    found = json.loads((folder / f"{1 - victim}.json").read_text())
    assert not (folder / f"{victim}.json").exists()
    written = [path.name for path in written_in(folder / "run")]
    end = "; look at the first error of any rank, which may have been ended or have run out of memory."
    assert found["error"].endswith(end)
    assert found["error"].isprintable()
    assert "GLHF" not in found["error"]
    assert found["seconds"] < 30
    assert not found["pending"]
    if "has published" in moment:  # the other one has lived to see the end
        assert written == ["ledger.jsonl", "unlearned-1.ckpt"]
        assert "unlearned-1.ckpt is written, whole and final, but then the connection" in found["error"]
        assert found["moved"]
        assert found["rows"] > 0
    else:
        assert written == []
        assert found["error"].startswith("RankError: the connection to the other ranks broke (")
        assert not found["moved"]
        assert found["rows"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SOLVED)
def test_a_gpu_arrives_where_the_processor_does(folder, tmp_path, name):
    found = unlearned(name, tmp_path / "gpu", folder / f"{name}.ckpt", accelerator="gpu")
    assert_equal_to_rounding(found, unlearned(name, tmp_path / "cpu", folder / f"{name}.ckpt"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_arrive_where_one_processor_does(folder, tmp_path):
    ranks = launched(folder, "gpu")
    for name in SOLVED:
        alone = unlearned(name, tmp_path / name, folder / f"{name}.ckpt")
        for found in ranks:
            assert_equal_to_rounding(found[name], alone)
