"""The demonstration does what the README says, on real and on other data."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_ifru import DataError, InteractionDataModule, UnlearningRequest
from lightning_ifru import demo as demo_module
from lightning_ifru.cli import main
from lightning_ifru.demo import EMBEDDED, demo
from lightning_ifru.keys import KEY, KEY_FILE

WRITTEN = {"report.json", "figure.png", "demo.log", "metrics.csv", "unlearned.ckpt"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--output-dir", str(directory)]) == 0
    return directory


@pytest.fixture
def ratings(tmp_path):
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((30, 25)) < 0.6)
    frame = pd.DataFrame({"who": [f"u{r}" for r in rows], "what": columns, "stars": rng.integers(1, 6, len(rows))})
    path = tmp_path / "ratings.csv"
    frame.to_csv(path, index=False)
    return path


def test_the_residual_falls_at_least_threefold_and_auroc_does_not_fall_on_real_ratings(real):
    report = json.loads((real / "report.json").read_text())
    assert report["num_users_erased"] == 1
    assert report["num_forgotten"] > 3000
    assert report["residual_after"] <= report["residual_before"] / 3
    assert report["metrics_after"]["auroc"] >= report["metrics_before"]["auroc"] > 0.7


def test_everything_promised_is_written_and_nothing_else(real):
    assert {path.name for path in real.iterdir()} == WRITTEN
    metrics = pd.read_csv(real / "metrics.csv")
    assert metrics["val_loss"].notna().sum() == 50
    assert any("unlearn" in name or "residual" in name for name in metrics)
    assert (real / "figure.png").read_bytes().startswith(b"\x89PNG")
    log = (real / "demo.log").read_text()
    assert "Forrest Gump" in log
    total = json.loads((real / "report.json").read_text())["seconds"]["total"]
    assert f"Forgetting took {total:.1f} s, including evaluation" in log


def test_the_written_checkpoint_has_forgotten_the_heavy_user(real):
    state = torch.load(real / "unlearned.ckpt", weights_only=True)["InteractionDataModule"]
    whole = InteractionDataModule(EMBEDDED, user="userId", item="movieId", rating="rating", threshold=4.0)
    whole.forget(UnlearningRequest(users=["547"]))  # known in the file
    assert "547" not in state["user_ids"]
    assert state["num_forgotten"] > 3000


@pytest.mark.parametrize("model", ["lightgcn", "mf"])
def test_other_data_and_models_can_be_chosen(model, ratings, tmp_path, capsys):
    out = tmp_path / "out"
    columns = ["--user", "who", "--item", "what", "--rating=stars", "--epochs=2", "--seed=3"]
    assert main(["demo", "--data", str(ratings), "--model", model, "--output_dir", str(out), *columns]) == 0
    assert {path.name for path in out.iterdir()} == WRITTEN
    printed = capsys.readouterr().out
    assert "Top ten for user" in printed
    assert "What was forgotten" in printed


def test_nothing_is_written_outside_of_the_output_folder(ratings, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    for name in (KEY, KEY_FILE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert main(["demo", "--data", str(ratings), "--output_dir", str(tmp_path / "out"), *COLUMNS]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == WRITTEN
    assert list(home.iterdir()) == []
    assert KEY not in os.environ


def test_the_wrong_labels_are_planted_and_asked_to_be_forgotten(ratings):
    frame = pd.read_csv(ratings).rename(columns={"who": "user", "what": "item", "stars": "rating"})
    story = demo_module._plant(frame, threshold=4.0, seed=1)
    planted = {tuple(pair) for pair in story.request.interactions}
    data = story.data
    label = {}
    for part in (data.train, data.val, data.test):
        for u, i, y in zip(part.user.tolist(), part.item.tolist(), part.label.tolist(), strict=True):
            label[data.user_ids[u], data.item_ids[i]] = bool(y)
    turned = {(r.user, r.item) for r in frame.itertuples() if label[r.user, r.item] != (r.rating >= 4)}
    assert len(planted) == max(1, len(frame) // 100)
    assert turned == planted


def test_without_the_checkout_it_asks_for_data(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo_module, "EMBEDDED", tmp_path / "nowhere.csv.gz")
    with pytest.raises(DataError, match="--data"):
        demo(output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["demo", "--output-dir", str(tmp_path / "out")]) == 1
    assert "--data" in capsys.readouterr().err


COLUMNS = ["--user=who", "--item=what", "--rating=stars", "--epochs=2"]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--seed=-1", "got --seed -1; wanted a whole number from 0"),
        ("--seed=4294967296", "got --seed 4294967296; wanted"),
        ("--epochs=0", "got --epochs 0; wanted at least 1"),
        ("--threshold=99", "none of the ratings reaches --threshold 99, they go from 1 to 5; choose"),
    ],
)
def test_an_argument_out_of_range_is_one_sentence_and_nothing_is_written(option, sentence, ratings, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["demo", "--data", str(ratings), "--output_dir", str(out), *COLUMNS, option]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("below", [False, True], ids=["a file", "below a file"])
def test_an_output_directory_that_is_a_file_is_one_sentence(below, ratings, tmp_path, capsys):
    file = tmp_path / "out"
    file.write_text("mine")
    out = file / "deeper" if below else file
    assert main(["demo", "--data", str(ratings), "--output_dir", str(out), *COLUMNS]) == 1
    error = capsys.readouterr().err
    assert f"nothing can be written to {out} (" in error
    assert "choose another directory with --output_dir" in error
    assert error.count("\n") == 1
    assert file.read_text() == "mine"


def test_an_output_directory_without_permission_is_one_sentence_before_training(ratings, tmp_path, capsys, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(demo_module.tempfile, "TemporaryFile", refuse)  # a superuser may write anywhere
    assert main(["demo", "--data", str(ratings), "--output_dir", str(tmp_path), *COLUMNS]) == 1
    captured = capsys.readouterr()
    assert f"nothing can be written to {tmp_path} (Permission denied)" in captured.err
    assert "Trained" not in captured.out


def write(path, rows):
    pd.DataFrame(rows, columns=["who", "what", "stars"]).to_csv(path, index=False)
    return path


def test_data_with_fewer_than_ten_items_show_as_many_as_there_are(tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = [(f"u{u}", f"i{i}", rng.integers(1, 6)) for u in range(40) for i in range(6) if rng.random() < 0.6]
    out = tmp_path / "out"
    path = write(tmp_path / "few.csv", rows)
    assert main(["demo", "--data", str(path), "--output_dir", str(out), *COLUMNS]) == 0
    assert "Top ten" not in (printed := capsys.readouterr().out)
    assert "for user u" in printed
    assert {path.name for path in out.iterdir()} == WRITTEN


def test_a_heavy_user_who_liked_nothing_has_a_neighbour_nonetheless(tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = [("heavy", f"i{i}", 1) for i in range(30)]
    rows += [(f"u{u}", f"i{i}", rng.integers(1, 6)) for u in range(30) for i in range(30) if rng.random() < 0.4]
    path = write(tmp_path / "sour.csv", rows)
    assert main(["demo", "--data", str(path), "--output_dir", str(tmp_path / "out"), *COLUMNS]) == 0
    assert "Top ten for user u" in capsys.readouterr().out


def test_data_of_a_single_user_are_one_sentence(tmp_path, capsys):
    path = write(tmp_path / "one.csv", [("u", f"i{i}", 5) for i in range(20)])
    assert main(["demo", "--data", str(path), "--output_dir", str(tmp_path / "out"), *COLUMNS]) == 1
    assert "got ratings of 20 items by 1 users, of which none would be left" in capsys.readouterr().err
