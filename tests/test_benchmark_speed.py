"""The speed benchmark: its generated data, its arithmetic, and a run of the whole command on tiny data."""

import doctest
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sections
import speed
import speed_data
import speed_local
import torch
from recipes import Recipe
from rows import read_rows
from speed_data import Dataset, ask, ask_typical, generate
from speed_process import apart, here
from speed_ranks import processes
from speed_tables import SECTIONS, fill
from speed_tables import main as tabulate
from speed_targets import OWN, PHASES, PYG, Summary, last, ratios, seconds, targets
from speed_training import _scaled, own_epoch, pyg_epoch, train
from speed_unlearn import Subject, timed, trainer_for

from lightning_ifru import IFRU, UnlearningRequest

TINY = (120, 90, 1500)
RECIPE = Recipe("lightgcn", loss="bpr", embedding_dim=4, lr=1e-2, epochs=2, batch_size=512)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Training and test interactions in files, with ids that are found nowhere else."""
    user, item = generate(*TINY, seed=3)
    frame = pd.DataFrame({"who": [f"someone-{u}" for u in user], "what": [f"thing-{i}" for i in item]})
    held_out = np.random.default_rng(0).random(len(frame)) < 0.2
    folder = tmp_path_factory.mktemp("files")
    frame[~held_out].to_csv(folder / "mine.train.csv.gz", index=False)
    frame[held_out].to_csv(folder / "mine.test.csv.gz", index=False)
    return folder / "mine.train.csv.gz", folder / "mine.test.csv.gz"


# --- generated data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [TINY, (1000, 50, 20_000), (3, 400, 500), (7, 7, 7)])
def test_generated_pairs_are_different_sorted_and_of_everybody(shape):
    user, item = generate(*shape, seed=5)
    pairs = list(zip(user.tolist(), item.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert len(pairs) == shape[2]
    assert set(user.tolist()) == set(range(shape[0]))
    assert set(item.tolist()) == set(range(shape[1]))


def test_generated_data_follow_from_the_seed():
    first, again, other = (np.stack(generate(*TINY, seed=seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_generated_degrees_are_those_of_the_power_law():
    """Sparse, so that hardly any pair is drawn twice: ranks then have their share of what is left beside one each."""
    users, items, interactions = 2000, 3000, 60_000
    user, item = generate(users, items, interactions, seed=0)
    for column, size, exponent in ((user, users, 0.5), (item, items, 0.75)):
        weights = np.array([(rank + 10) ** -exponent for rank in range(size)])
        degrees = np.sort(np.bincount(column))[::-1] - max(users, items) / size
        for share in (0.01, 0.1, 0.5):
            top = int(share * size)
            found = degrees[:top].sum() / degrees.sum()
            assert found == pytest.approx(weights[:top].sum() / weights.sum(), rel=0.1)
        assert np.bincount(column).max() > 5 * interactions / size


def test_scaled_data_have_the_same_mean_degree_and_larger_hubs():
    small, large = Dataset(shape=(200, 300, 3000)), Dataset(shape=(200, 300, 3000)).scaled(4)
    assert large.shape == (800, 1200, 12_000)
    hubs = [np.bincount(one.columns()["item"]).max() for one in (small, large)]
    assert hubs[1] > hubs[0]


@pytest.mark.parametrize("shape", [(10, 10, 51), (10, 20, 19), (10, 10, 0), (1, 2, 1)])
def test_sizes_that_cannot_be_are_refused(shape):
    with pytest.raises(ValueError, match="cannot be generated"):
        generate(*shape)


def test_files_are_read_with_their_test(files):
    data = Dataset(*files, "who", "what").read(64)
    train, test = (pd.read_csv(path) for path in files)
    assert [len(data.train), len(data.val), len(data.test)] == [len(train), 0, len(test)]
    kept = set(zip(data.user_ids[data.train.user], data.item_ids[data.train.item], strict=True))
    assert kept == set(zip(train["who"], train["what"], strict=True))
    assert Dataset(*files).name == "mine"


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return Dataset(shape=TINY).read(512)


@pytest.mark.parametrize(("size", "entries"), [("1 user", 1), ("10 users", 10), ("1%", 15), ("0.1%", 2), ("5%", 75)])
def test_a_request_has_the_size_that_was_asked_for(data, tmp_path, size, entries):
    path = tmp_path / "request.csv"
    named = ask(data, size, 0, path)
    request = UnlearningRequest.from_file(path)
    assert len(request.users) + len(request.interactions) == entries
    data.forget(request)
    assert int(data.removal().rows.sum()) == named >= entries
    data.discard()
    ask(data, size, 1, tmp_path / "other.csv")
    assert path.read_text() != (tmp_path / "other.csv").read_text()


def test_a_size_that_is_none_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="'1%'"):
        ask(data, "some", 0, tmp_path / "request.csv")


def test_typical_users_are_at_the_quantiles(data, tmp_path):
    degrees = sorted(np.bincount(data.train.user.numpy()).tolist())
    asked = ask_typical(data, 4, 0, tmp_path)
    assert sorted(named for _, named in asked) == [degrees[15], degrees[45], degrees[75], degrees[105]]
    for path, named in asked:
        data.forget(UnlearningRequest.from_file(path))
        assert int(data.removal().rows.sum()) == named
        data.discard()


# --- measurements -------------------------------------------------------------------------------------------------


def test_epochs_are_scaled_up_from_the_steps_that_were_timed():
    assert _scaled(4, 100, [1.0, 2.0, 3.0, 2.0]) == {"total": 200.0, "steps_timed": 4, "steps": 100}
    dataset = Dataset(shape=TINY)
    for run in (
        pyg_epoch(dataset, RECIPE, 2, 2),
        own_epoch(dataset, RECIPE, 2, 2),
        own_epoch(dataset, RECIPE, None, 2),
    ):
        assert [one["steps"] for one in run] == [3, 3]
        assert all(one["total"] > 0 for one in run)
    assert run[0]["steps_timed"] == 3


def test_phases_add_up_to_what_passed(tmp_path):
    subject = Subject(Dataset(shape=TINY), RECIPE, 300, tmp_path, IFRU(max_steps=1))
    made = train(tmp_path, subject.dataset, RECIPE, 300)
    assert train(tmp_path, subject.dataset, RECIPE, 300) == made  # kept, and not trained again
    module, data = subject.fresh()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with trainer_for(subject.method, evaluate=False) as trainer:
        named = ask(data, "10 users", 0, tmp_path / "request.csv")
        found, report = timed(trainer, module, data, tmp_path / "request.csv")
        assert Path(report.checkpoint).exists()
    phases = {name: value for name, value in found.items() if name != "total"}
    assert sum(phases.values()) == pytest.approx(found["total"])
    assert (
        {"parse", "around", "prepare", "influence", "solve", "check", "apply", "checkpoint"}
        <= set(phases)
        <= set(PHASES)
    )
    assert all(value > 0 for value in phases.values())
    assert report.num_forgotten == named
    again, _ = subject.fresh()
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def _hold(megabytes):
    held = np.ones(megabytes * 2**17)
    return [{"threads": torch.get_num_threads(), "bytes": held.nbytes}]


def _die():
    os._exit(9)


@pytest.mark.slow
def test_a_process_has_its_own_threads_and_its_own_peak_of_memory():
    found = apart(2, _hold, 300)
    assert found.runs == [{"threads": 2, "bytes": 300 * 2**20}]
    assert 295 < found.peak_memory_mb < 330  # the system counts in batches
    assert found.imported_mb > 50
    with pytest.raises(RuntimeError, match="_die was killed"):
        apart(1, _die)


@pytest.mark.slow
def test_two_processes_forget_as_one_does(tmp_path):
    subject = Subject(Dataset(shape=TINY), RECIPE, 300, tmp_path, IFRU(max_steps=1))
    train(tmp_path, subject.dataset, RECIPE, 300)
    runs = processes(subject, "10 users", 2)
    assert [run["processes"] for run in runs] == [1, 1, 2, 2]
    assert all(run["total"] > 0 and run["steps"] for run in runs)
    assert runs[0]["difference"] == 0.0
    assert max(run["difference"] for run in runs) <= 1e-6


# --- arithmetic ---------------------------------------------------------------------------------------------------


def _row(run, measure, runs, suite="speed", generated=None, factor=1.0, **about):
    data = {"name": "mine", "generated": generated, "interactions": 20_000_000}
    one = {"suite": suite, "run": run, "measure": measure, "runs": runs, "data": data, "factor": factor}
    return {**one, "peak_memory_mb": 100.0, **about}


@pytest.fixture
def made():
    """Rows of two runs, of which the earlier must not count, and of one on generated data, which counts less."""
    users = [
        {"total": 1.0, "prepare": 0.5, "before": 0},
        *({"total": t, "prepare": 0.01, "before": 1} for t in (0.3, 0.5)),
    ]
    rows = [
        _row("1", "epoch", [{"total": 1000.0}], of=OWN),
        _row("3", "epoch", [{"total": 5000.0}], of=OWN, generated=[1, 1, 1]),
        _row("2", "epoch", [{"total": t} for t in (9.0, 10.0, 14.0)], of=OWN),
        _row("2", "epoch", [{"total": 200.0}], of=PYG),
        _row("2", "operators", [{"gradient": 0.1, "build": 0.05, "product": p} for p in (0.25, 0.15, 0.2)]),
        _row("2", "unlearn", users, request="1 user", peak_memory_mb=512.0),
        _row("2", "unlearn", [{"total": t} for t in (4.0, 5.0, 9.0)], request="1%"),
        _row(
            "2", "quality", [{"recall@20.before": 0.1, "recall@20.after": 0.0985, "residual_fell": 5.5}], request="1%"
        ),
        _row("2", "unlearn", [{"total": 2.0}], request="1% in one step"),
        _row("2", "quality", [{"residual_fell": 4.5}], request="1% in one step"),
    ]
    near = {"error.test": 0.1, "error.near": 0.9, "cosine.test": None, "cosine.near": 0.8}
    errors = [{**near, "error.all": e, "cosine.all": c} for e, c in ((0.3, 0.99), (0.4, 0.95), (0.9, 0.1))]
    rows.append(_row("2", "local", errors, model="MF"))
    two = [{"total": t, "processes": 1 + (t > 7), "difference": 2e-7 * (t > 7)} for t in (5.0, 6.0, 7.0, 8.0)]
    rows.append(_row("2", "processes", two, request="1%"))
    for factor, solve in ((1.0, 0.1), (4.0, 0.13)):
        one = {"total": 1.0, "influence": 0.1, "solve": solve, "before": 1}
        rows.append(_row("1", "unlearn", [one], "scaling", [1, 1, 1], factor, request="1 user"))
    for size, total in (("1 user", 30.0), ("0.1%", 80.0)):
        rows.append(_row("1", "unlearn", [{"total": total}], "large", [1, 1, 1], request=size, peak_memory_mb=13_000.0))
    return [*rows, _row("1", "epoch", [{"total": 50.0}], "large", [1, 1, 1], of=OWN)]


def test_medians_are_of_the_latest_run_on_real_data(made):
    summary = Summary(last(made, "speed"))
    assert summary.epoch(OWN) == 10.0
    assert summary.operator("product") == 0.2
    assert summary.request("1 user", warm=False) == 1.0
    assert summary.request("1 user", warm=True) == 0.4
    assert summary.request("100 users") is None
    assert summary.peak_mb() == 512.0
    assert seconds(made, ("influence", "solve"), suite="scaling") == pytest.approx([0.2, 0.23])


def test_every_target_is_computed_from_rows(made):
    found = [(line.found, line.verdict) for line in targets(made)]
    expected = [
        ("200 times (5.00 s against 100 × 10.00 s)", "reached"),
        ("500 times (2.00 s against 100 × 10.00 s)", "reached"),
        ("4,000 times (5.00 s against 100 × 200.00 s)", "reached"),
        ("10,000 times (2.00 s against 100 × 200.00 s)", "reached"),
        ("2.00 times (0.200 s over 0.100 s; 0.050 s once for all products)", "reached"),
        ("0.20% (0.400 s, of which set-up 0.010 s; 4.0% of our own epoch)", "reached"),
        ("0.400 (test pairs 0.100; pairs near 0.900)", "**missed**"),
        ("0.950 (pairs near 0.800)", "reached"),
        (None, "not measured"),
        (None, "not measured"),
        ("0.50 GiB", "reached"),
        ("-1.50% (0.1000 before, 0.0985 after)", "**missed**"),
        ("5.5 times", "reached"),
        (None, "not measured"),
        ("4.5 times", "**missed**"),
        ("1.15 times (0.230 s over 0.200 s)", "reached"),
        ("60.0% (30.0 s)", "reached"),
        ("160.0% (80.0 s)", "**missed**"),
        ("12.70 GiB", "**missed**"),
        ("0.75 (8.00 s against 6.00 s)", "reached"),
        ("2.0e-07", "reached"),
    ]
    assert found == expected
    assert "our own training: 200 times" in ratios(made)[0]
    assert {line.verdict for line in targets([])} == {"not measured"}


@pytest.mark.parametrize("module", [sections, speed_data, speed_local])
def test_the_examples_in_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


# --- the command --------------------------------------------------------------------------------------------------


def test_the_whole_command_runs(files, tmp_path, capsys, monkeypatch):
    train_file, test_file = map(str, files)
    small = ["--dim", "4", "--repeats", "1", "--threads", str(torch.get_num_threads()), "--output", str(tmp_path)]
    columns = ["--user", "who", "--item", "what", "--epochs", "1"]
    monkeypatch.setattr(speed, "_USERS", 2)
    # Two processes have to import everything, which takes longer than all that is measured here.
    monkeypatch.setattr(
        speed, "processes", lambda *_: [{"total": 1.0, "processes": n, "difference": 0.0} for n in (1, 2)]
    )
    assert speed.main(["--data", train_file, "--test", test_file, *columns, *small], process=here) == 0
    assert "100 epochs of our own training: " in capsys.readouterr().out
    generated = ["--generate", "160,120,1600", "--steps", "1"]
    assert speed.main(["--scaling", *generated, *small], process=here) == 0
    assert speed.main(["--large", *generated, *small], process=here) == 0
    rows = read_rows(tmp_path)
    assert {row["suite"] for row in rows} == {"speed", "scaling", "large"}
    assert all(len(row["runs"]) >= 1 and row["hardware"]["cores"] for row in rows)
    # Matrix factorisation has seen one step, after which nothing moves anybody else's scores.
    assert [line.what for line in targets(rows) if not line.found and "MF" not in line.what] == []
    text = (tmp_path / "rows.jsonl").read_text()
    assert not re.search(r"someone-|thing-|/mine", text)
    assert json.loads(text.splitlines()[0])["data"]["users"] == TINY[0]

    document = tmp_path / "page.md"
    document.write_text("Prose.\n" + "".join(f"<!-- speed: {n} -->\nold\n<!-- end -->\nMore.\n" for n in SECTIONS))
    tabulate([str(tmp_path), "--output", str(document)])
    page = document.read_text()
    assert page.count("More.\n") == len(SECTIONS)
    assert "\nold\n" not in page
    assert "Not run yet." not in page
    assert fill(page, rows) == page
    assert (tmp_path / "benchmarks-speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_has_a_place_for_every_table():
    page = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert fill(page, []).count("Not run yet.") == len(SECTIONS) - 1  # what is to be reached stands there at any time


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give --data, --generate, --scaling or --large"),
        (["--data", "nowhere.csv"], "there is no file 'nowhere.csv'"),
        (["--generate", "1,2"], "write USERS,ITEMS,INTERACTIONS"),
        (["--scaling", "--repeats", "0"], "--repeats 0 is too few"),
        (["--scaling", "--test", "x.csv"], "give --data"),
        (["--large", "--data", "x.csv"], "give --generate or nothing"),
    ],
)
def test_a_command_that_cannot_be_is_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit):
        speed.main(words)
    assert sentence in capsys.readouterr().err


def test_data_that_cannot_be_generated_are_one_sentence(tmp_path, capsys):
    assert speed.main(["--generate", "10,10,99", "--output", str(tmp_path)], process=here) == 1
    assert "at most half of all pairs" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [[], [{"key": "a"}]])
def test_tables_need_rows_and_a_document(rows, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        tabulate([str(tmp_path), "--output", str(tmp_path / "page.md")])
    assert "there is no document" in capsys.readouterr().err
    if not rows:
        (tmp_path / "page.md").write_text("")
        with pytest.raises(SystemExit):
            tabulate([str(tmp_path), "--output", str(tmp_path / "page.md")])
        assert "run speed.py first" in capsys.readouterr().err
