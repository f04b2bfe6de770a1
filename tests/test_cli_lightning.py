"""fit, validate, test, predict and unlearn from the command line: the same as from Python, and fit for a cron job."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import lightning
import pandas as pd
import pytest
import torch
import yaml

from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule, UnlearningReport, UnlearningRequest
from lightning_ifru.cli import main
from lightning_ifru.errors import UnlearningError
from lightning_ifru.models import LightGCN
from lightning_ifru.outputs import LEDGER, LOCK

COMMANDS = ["fit", "validate", "test", "predict", "unlearn"]
COLUMNS = {"rating": "rating", "threshold": 3.0, "seed": 3, "batch_size": 64}
MODEL = {"embedding_dim": 4, "num_layers": 1, "loss": "bce", "lr": 0.05, "weight_decay": 1e-3}
TRAINER = {"accelerator": "cpu", "max_epochs": 3, "logger": False, "enable_model_summary": False}
GONE = ["person-003", "person-004"]


def config(source, **more):
    """A config file's content, with every part as it is needed here, but for what is given."""
    return {
        "seed_everything": 1,
        "model": {"class_path": "lightning_ifru.models.LightGCN", "init_args": MODEL},
        "data": {"class_path": "lightning_ifru.InteractionDataModule", "init_args": {"source": source} | COLUMNS},
        "trainer": TRAINER,
    } | more


def run(*args):
    """Return the exit code, and what was written to the standard output and to the standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in args])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def answer(*args):
    """Return the JSON object that a command prints, and nothing else."""
    code, out, err = run(*args, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(*args):
    """Return the exit code and the one sentence of a command that refuses."""
    code, out, err = run(*args)
    said = [line for line in err.splitlines() if line.startswith("lightning-ifru")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert not out
    return code, said[0]


def files(folder):
    found = (path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def original(planted, tmp_path_factory):
    """A folder with data, request and config, and the checkpoint of a fit from the command line."""
    folder = tmp_path_factory.mktemp("run")
    pd.DataFrame(planted).to_csv(folder / "ratings.csv", index=False)
    (folder / "forget.csv").write_text("user\n" + "\n".join(GONE) + "\n")
    (folder / "run.yaml").write_text(yaml.safe_dump(config(str(folder / "ratings.csv"))))
    fitted = answer("fit", "--config", folder / "run.yaml", "--trainer.default_root_dir", folder / "fit")
    return folder, Path(fitted["best_checkpoint"]), fitted


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """A folder of its own for each test, with the same files and a checkpoint ``best.ckpt``, as the current folder."""
    whole, best, _ = original
    for name in ("ratings.csv", "forget.csv", "run.yaml"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "best.ckpt").write_bytes(best.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


UNLEARN = ["unlearn", "--config", "run.yaml", "--ckpt_path", "best.ckpt", "--request", "forget.csv"]
WRITE = [*UNLEARN, "--output", "unlearned.ckpt"]


def rewritten(name="own.yaml", **more):
    Path(name).write_text(yaml.safe_dump(config("ratings.csv", **more)))
    return ["--config", name]


def in_python(checkpoint, **kwargs):
    data = InteractionDataModule("ratings.csv", **COLUMNS)
    lightning.seed_everything(1)
    model = LightGCN(data.num_users, data.num_items, **MODEL)
    trainer = lightning.Trainer(
        **TRAINER, enable_progress_bar=False, callbacks=[IFRUCallback(IFRU(max_steps=2))], enable_checkpointing=False
    )
    return model, data, trainer, {"ckpt_path": checkpoint} | kwargs


def test_a_fit_writes_its_checkpoint_and_its_config(original):
    folder, best, fitted = original
    assert fitted["epochs"] == 3
    assert {"train_loss", "val_loss"} <= fitted["metrics"].keys()
    assert best.exists()
    written = yaml.safe_load((folder / "fit" / "config.yaml").read_text())
    assert written["model"]["init_args"]["embedding_dim"] == 4
    assert torch.load(best, weights_only=True)["state_dict"]["net.embedding.weight"].shape == (40 + 30, 4)


def test_validate_test_and_predict_answer_as_the_trainer_does(folder):
    model, data, trainer, where = in_python("best.ckpt")
    for command in ("validate", "test"):
        (expected,) = getattr(trainer, command)(model, datamodule=data, verbose=False, **where)
        assert answer(command, "--config", "run.yaml", "--ckpt_path", "best.ckpt") == pytest.approx(expected, abs=0)
    expected = trainer.predict(model, datamodule=data, **where)
    found = answer("predict", "--config", "run.yaml", "--ckpt_path", "best.ckpt")["predictions"]
    assert found == [batch.tolist() for batch in expected]
    assert sum(map(len, found)) == len(data.test)


def test_metrics_are_shown_as_a_table_without_json(folder):
    code, out, _ = run("test", "--config", "run.yaml", "--ckpt_path", "best.ckpt")
    assert code == 0
    assert "test_loss" in out


def test_unlearning_writes_the_weights_data_and_ledger_that_python_arrives_at(folder):
    before = files(folder)
    report = answer(*WRITE, "--ifru.method.max_steps", 2, "--report", "report.json")
    written = {"unlearned.ckpt", "report.json", LEDGER}
    assert files(folder).keys() - before.keys() == {str(folder / name) for name in written}
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["checkpoint"] == "unlearned.ckpt"
    assert report.keys() == {field.name for field in fields(UnlearningReport)}
    assert report["older_checkpoints"] == ["best.ckpt"]
    assert (folder / "unlearned.ckpt").stat().st_mode == (folder / "report.json").stat().st_mode

    model, data, trainer, where = in_python("best.ckpt", request="forget.csv")
    (callback,) = (each for each in trainer.callbacks if isinstance(each, IFRUCallback))
    trainer.unlearn(data, model=model, dry_run=True, **where)
    assert callback.report is None
    expected = trainer.unlearn(data, model=model, **where)
    assert callback.report is expected
    assert callback.state_dict().keys() == {"ledger"}
    assert expected.steps > 0
    assert report["residual_after"] == expected.residual_after
    written = torch.load("unlearned.ckpt", weights_only=True)
    for name, weight in model.state_dict().items():
        assert torch.equal(written["state_dict"][name], weight), name
    assert not set(GONE) & set(written["InteractionDataModule"]["user_ids"])
    (entry,) = written["callbacks"]["IFRUCallback"]["ledger"]
    assert entry["num_forgotten"] == expected.num_forgotten > 20
    assert entry["method"]["max_steps"] == 2


def test_the_written_checkpoint_serves_the_next_test_unlearning_and_fit(folder):
    answer(*WRITE)
    whole, data = InteractionDataModule("ratings.csv", **COLUMNS), InteractionDataModule("ratings.csv", **COLUMNS)
    data.load_state_dict(torch.load("unlearned.ckpt", weights_only=True)["InteractionDataModule"])
    scores = answer("predict", "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")["predictions"]
    assert sum(map(len, scores)) == len(data.test) < len(whole.test)
    assert answer("test", "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")["test_loss"] > 0

    (folder / "next.json").write_text(json.dumps({"items": ["film-001"]}))
    then = ["--ckpt_path", "unlearned.ckpt", "--request", "next.json", "--output", "next.ckpt"]
    answer("unlearn", "--config", "run.yaml", *then)
    written = torch.load("next.ckpt", weights_only=True)
    assert len(written["callbacks"]["IFRUCallback"]["ledger"]) == 2
    gone = written["InteractionDataModule"]["num_forgotten"]
    fitted = answer("fit", "--config", "run.yaml", "--ckpt_path", "next.ckpt", "--trainer.max_epochs", 2)
    resumed = torch.load(fitted["best_checkpoint"], weights_only=True)
    assert resumed["epoch"] == 1
    assert resumed["InteractionDataModule"]["num_forgotten"] == gone
    assert len(resumed["callbacks"]["IFRUCallback"]["ledger"]) == 2
    assert resumed["optimizer_states"][0]["state"]


def test_a_source_without_the_forgotten_serves_every_command_from_there_on(folder):
    answer(*WRITE)
    scores = answer("predict", "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")["predictions"]
    table = pd.read_csv("ratings.csv")
    table[~table["user"].isin(GONE)].to_csv("ratings.csv", index=False)
    assert InteractionDataModule("ratings.csv", **COLUMNS).num_users == 38
    for command in ("validate", "test"):
        assert answer(command, "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")
    assert answer("predict", "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")["predictions"] == scores

    (folder / "next.csv").write_text("user\nperson-007\n")
    then = ["--ckpt_path", "unlearned.ckpt", "--request", "next.csv", "--output", "next.ckpt"]
    told = ["--model.num_users", "40"]  # which is what the checkpoint has
    for more in (["--dry_run"], told):
        report = answer("unlearn", "--config", "run.yaml", *then, *more)
        assert (report["num_users_erased"], report["already_absent"]) == (1, 0)
    state = torch.load("next.ckpt", weights_only=True)["InteractionDataModule"]
    assert [state["user_ids"].count(None), len(state["user_ids"])] == [3, 40]
    again = answer(*UNLEARN, "--ckpt_path", "next.ckpt", "--output", "same.ckpt")
    assert (again["num_forgotten"], again["already_absent"]) == (0, 2)
    fitted = answer("fit", "--config", "run.yaml", "--ckpt_path", "next.ckpt", "--trainer.max_epochs", "2")
    weights = torch.load(fitted["best_checkpoint"], weights_only=True)["state_dict"]
    assert weights["net.embedding.weight"].shape == (40 + 30, 4)

    code, said = refusal("unlearn", "--config", "run.yaml", *then, "--overwrite", "--model.num_users", "38")
    assert code == 1
    assert "num_users=38, and the data have 40" in said


def test_in_python_the_refusal_says_the_sizes_of_the_checkpoint(folder):
    table = pd.read_csv("ratings.csv")
    table[~table["user"].isin(GONE)].to_csv("ratings.csv", index=False)
    model, data, trainer, where = in_python("best.ckpt")
    with pytest.raises(UnlearningError, match=r"as it was trained, with num_users=40 and num_items=30\."):
        trainer.unlearn(data, model=model, request=UnlearningRequest(users=["person-007"]), **where)


def test_without_json_the_report_is_all_that_stands_on_the_standard_output(folder):
    code, out, _ = run(*WRITE)
    assert code == 0
    assert out.lstrip().startswith("What was forgotten")


@pytest.mark.parametrize("more", [[], ["--output", "unlearned.ckpt"]], ids=["no output", "an output"])
@pytest.mark.parametrize("told", [[], ["--report", "report.json"]], ids=["no report", "a report"])
def test_a_dry_run_writes_no_checkpoint_and_a_report_if_asked(folder, more, told):
    before = files(folder)
    report = answer(*UNLEARN, *more, *told, "--dry-run")
    assert report["dry_run"]
    assert report["expected"]["products"] > 0
    assert report["checkpoint"] is None
    after = files(folder)
    if told:
        assert json.loads(after.pop(str(folder / "report.json"))) == report
    assert after == before
    assert "no checkpoint is written" in " ".join(run("unlearn", "--help")[1].split())


@pytest.mark.parametrize("other", ["same", "./same", "deeper/../same", "{folder}/same", "link/same"])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--dry_run"]], ids=["", "overwrite", "dry run"])
def test_an_output_and_a_report_of_one_path_are_refused_before_anything(folder, monkeypatch, other, more):
    (folder / "deeper").mkdir()
    (folder / "link").symlink_to(folder)
    if "--overwrite" in more:
        (folder / "same").write_text("mine")
    before = files(folder)
    monkeypatch.setattr(InteractionDataModule, "__init__", None)  # not even the data are read
    code, said = refusal(*UNLEARN, "--output", "same", "--report", other.format(folder=folder), *more)
    assert code == 1
    assert "which are one file; give another path for the report" in said
    assert files(folder) == before


def test_an_existing_output_is_replaced_only_if_that_is_said(folder):
    (folder / "unlearned.ckpt").write_text("mine")
    code, said = refusal(*WRITE)
    assert (code, (folder / "unlearned.ckpt").read_text()) == (1, "mine")
    assert "unlearned.ckpt, which exists; give another path, or --overwrite true" in said
    answer(*WRITE, "--overwrite", "true")
    assert "state_dict" in torch.load("unlearned.ckpt", weights_only=True)


def test_a_checkpoint_can_be_replaced_by_its_unlearned_self(folder):
    report = answer(*UNLEARN, "--output", "best.ckpt", "--overwrite")
    assert report["older_checkpoints"] == []
    assert torch.load("best.ckpt", weights_only=True)["InteractionDataModule"]["num_forgotten"] > 0


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failure_while_writing_leaves_everything_as_it_was(folder, monkeypatch, error, existing):
    def fail(self, path, *args, **kwargs):
        Path(path).write_text("half of")
        raise error

    if existing:
        (folder / "unlearned.ckpt").write_text("mine")
    before = files(folder)
    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", fail)
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError, match="bug"):
            main([*WRITE, "--overwrite"])
    else:
        code, said = refusal(*WRITE, "--overwrite")
        assert code == (1 if isinstance(error, OSError) else 130)
        assert "No space left on device" in said or "interrupted" in said
    assert files(folder) == before
    assert {path.name for path in folder.glob(".*")} <= {LOCK}  # nor a folder


def test_the_very_same_command_again_leaves_what_it_has_written_and_says_so(folder):
    report = answer(*WRITE, "--report", "report.json")
    assert report["num_forgotten"] > 20
    before = files(folder)
    again = answer(*WRITE, "--report", "report.json")
    assert (again["num_forgotten"], again["already_absent"]) == (0, len(GONE))
    assert again["checkpoint"] == "unlearned.ckpt"
    assert files(folder) == before
    code, out, _ = run(*WRITE)
    assert (code, files(folder)) == (0, before)
    assert "nothing was changed" in out

    assert answer(*WRITE, "--ckpt_path", "unlearned.ckpt")["already_absent"] == len(GONE)  # as where a link led there
    assert files(folder) == before

    (folder / LEDGER).unlink()  # as after a process that was killed when it had written the checkpoint
    (folder / "report.json").unlink()
    answer(*WRITE, "--report", "report.json", "--figure", "figure.svg")
    assert files(folder)[str(folder / LEDGER)] == before[str(folder / LEDGER)]
    assert json.loads((folder / "report.json").read_text())["already_absent"] == len(GONE)
    assert (folder / "figure.svg").exists()


def test_the_very_same_command_again_says_the_verdict_and_refuses_what_is_to_be_retrained(folder, monkeypatch):
    """Also where a job was killed between the checkpoint and the report."""
    nothing = ["--ifru.tolerance.complete", "0", "--ifru.tolerance.doubt", "0"]
    report = answer(*WRITE, *nothing)
    assert report["verdict"] == "retrain advised"
    before = files(folder)
    again = answer(*WRITE)
    assert again["num_forgotten"] == 0
    assert all(again[name] == report[name] for name in ("verdict", "verdict_reasons", "drift"))
    told = []
    monkeypatch.setattr("lightning_ifru.notices.rank_zero_info", told.append)
    code, out, _ = run(*WRITE)
    assert code == 0
    assert told[0].startswith("Retrain this model: About"), "and no line of ours"
    assert "Verdict: retrain advised" in out
    for choice in ("raise", "retrain"):
        code, said = refusal(*WRITE, "--ifru.on_incomplete", choice, "--report", "report.json")
        assert code == 1
        assert "All of the request was forgotten before, and retraining advised: About" in said
    assert files(folder) == before

    (folder / "next.csv").write_text("user\nperson-007\n")
    then = ["--ckpt_path", "unlearned.ckpt", "--output", "next.ckpt"]
    answer("unlearn", "--config", "run.yaml", *then, "--request", "next.csv", *nothing)
    first = answer(*UNLEARN, "--ckpt_path", "next.ckpt", "--output", "same.ckpt", "--ifru.on_incomplete", "raise")
    assert (first["already_absent"], first["verdict"], first["drift"]) == (len(GONE), None, {}), "not the last request"


@pytest.mark.parametrize("other", ["request", "checkpoint", "method", "key"])
def test_an_output_of_another_command_is_in_the_way(folder, monkeypatch, other):
    answer(*WRITE)
    (folder / "other.csv").write_text("user\nperson-003\n")
    torch.save(torch.load("best.ckpt", weights_only=True) | {"epoch": 7}, "other.ckpt")
    before = files(folder)
    again = {
        "request": [*WRITE, "--request", "other.csv"],
        "checkpoint": [*WRITE, "--ckpt_path", "other.ckpt"],
        "method": [*WRITE, "--ifru.method.max_steps", "1"],
        "key": WRITE,
    }[other]
    if other == "key":
        monkeypatch.setenv("LIGHTNING_IFRU_KEY", "another key than that of the first command")
    code, said = refusal(*again)
    assert code == 1
    assert "unlearned.ckpt, which exists" in said
    assert files(folder) == before
    if other == "method":
        assert answer(*again, "--overwrite")["steps"] == 1


def test_a_report_that_cannot_be_written_is_said_when_the_request_is_applied(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    code, said = refusal(*WRITE, "--report", "report.json")
    assert code == 1
    assert "the request is applied, see unlearned.ckpt, but report.json could not be written (No space left" in said
    assert torch.load("unlearned.ckpt", weights_only=True)["InteractionDataModule"]["num_forgotten"] > 20
    assert not (folder / "report.json").exists()


def test_a_command_that_is_told_to_end_does_and_exits_with_143(folder, monkeypatch):
    before = files(folder)
    monkeypatch.setattr("lightning_ifru.progress.Phases.step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert refusal(*WRITE) == (143, "lightning-ifru: told to end.")
    assert files(folder) == before


CALLBACK = {"class_path": "lightning_ifru.IFRUCallback", "init_args": {"method": {"max_steps": 1}}}
KEEPING = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({}, ["--ifru.method.max_steps", "1"]),
        ({}, ["--ifru.method", "{max_steps: 1}"]),
        ({"ifru": {"method": {"max_steps": 1}}}, []),
        ({"trainer": TRAINER | {"callbacks": [CALLBACK]}}, []),
        ({"trainer": TRAINER | {"callbacks": CALLBACK}}, []),
        ({"trainer": TRAINER | {"callbacks": [KEEPING, CALLBACK], "enable_checkpointing": True}}, []),
    ],
    ids=["option", "options", "config", "callback", "one callback", "among callbacks"],
)
def test_the_method_is_set_in_either_place_and_only_the_output_is_written(folder, more, options):
    own = rewritten(**more)
    before = files(folder)
    report = answer(*UNLEARN, *own, "--output", "unlearned.ckpt", *options)
    assert report["steps"] == 1
    assert files(folder).keys() - before.keys() == {str(folder / name) for name in ("unlearned.ckpt", LEDGER)}
    (entry,) = torch.load("unlearned.ckpt", weights_only=True)["callbacks"]["IFRUCallback"]["ledger"]
    assert entry["method"]["max_steps"] == 1


def test_a_logger_of_the_config_gets_the_report(folder):
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    answer(*WRITE, *rewritten(trainer=TRAINER | {"logger": logger}))
    (metrics,) = (folder / "logs").rglob("metrics.csv")
    assert "unlearn/residual_after" in pd.read_csv(metrics)


def test_a_link_that_is_replaced_leaves_what_it_led_to_among_the_older(folder):
    (folder / "current.ckpt").symlink_to("best.ckpt")
    (folder / "last.ckpt").symlink_to("best.ckpt")
    report = answer(*UNLEARN, "--output", "current.ckpt", "--overwrite")
    assert report["older_checkpoints"] == ["best.ckpt", "last.ckpt"]
    assert not (folder / "current.ckpt").is_symlink()


@pytest.mark.parametrize("request_file", ["forget.csv", "forget.json"])
def test_a_fit_applies_a_request_when_it_ends(folder, request_file):
    (folder / "forget.json").write_text(json.dumps({"users": GONE}))
    (folder / "fit.json").write_text("mine")
    said = answer("fit", "--config", "run.yaml", "--ifru.request", request_file, "--report", "fit.json", "--overwrite")
    assert said["unlearn"] == json.loads((folder / "fit.json").read_text())
    assert said["unlearn"]["num_users_erased"] == 2
    assert Path(said["unlearn"]["checkpoint"]).name == "unlearned-1.ckpt"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert (written["report"], written["overwrite"]) == (None, False)
    (path,) = (folder / "checkpoints").glob("unlearned-1.ckpt")
    written = torch.load(path, weights_only=True)
    assert not set(GONE) & set(written["InteractionDataModule"]["user_ids"])
    assert written["callbacks"]["IFRUCallback"].keys() == {"ledger"}


def test_a_fit_without_a_request_says_so(original):
    assert original[2]["unlearn"] is None


@pytest.mark.parametrize("without", ["forget.csv", ["one.csv", "two.csv"]])
def test_a_fit_without_the_forgotten_is_the_paired_retraining_of_python(folder, without):
    for name, gone in zip(["one.csv", "two.csv"], GONE, strict=True):
        (folder / name).write_text(f"user\n{gone}\n")
    given = without if isinstance(without, str) else f"[{', '.join(without)}]"
    best = answer("fit", "--config", "run.yaml", "--without", given)["best_checkpoint"]
    found = torch.load(best, weights_only=True)
    lightning.seed_everything(1)
    data = InteractionDataModule("ratings.csv", **COLUMNS)
    model = LightGCN(data.num_users, data.num_items, **MODEL)
    data.forget(UnlearningRequest(users=GONE))
    data.commit(data.removal())
    quiet = {"enable_progress_bar": False, "enable_checkpointing": False}
    lightning.Trainer(**TRAINER, **quiet).fit(model, datamodule=data)
    for name, weight in model.state_dict().items():
        assert torch.equal(found["state_dict"][name], weight), name
    assert not set(GONE) & set(found["InteractionDataModule"]["user_ids"])
    assert found["callbacks"]["IFRUCallback"] == {"ledger": []}
    assert not torch.equal(torch.load("best.ckpt")["state_dict"]["net.embedding.weight"], model.net.embedding.weight)
    # The config that it has written serves the others, to which what the fit was without is nothing.
    assert yaml.safe_load((folder / "config.yaml").read_text())["without"] == without
    assert answer("test", "--config", "config.yaml", "--ckpt_path", best)["test_loss"] > 0


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
@pytest.mark.parametrize("more", [["--output", "a.ckpt"], ["--dry_run"]], ids=["done", "dry run"])
def test_the_figure_of_the_report_is_drawn_into_a_file(folder, suffix, begins, more):
    answer(*UNLEARN, *more, "--figure", f"figure.{suffix}")
    assert (folder / f"figure.{suffix}").read_bytes().startswith(begins)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_nothing_said_of_model_and_data_says_what_it_needs(command):
    code, said = refusal(command)
    assert code == 2
    assert "got no --config; give it, or --model and --data" in said
    assert ("; --ckpt_path, --request and --output are needed too" in said) == (command == "unlearn")


REFUSED = {
    "retrain without whom": (1, ["fit", "--without", "strangers.csv"], "nobody"),
    "retrain from no file": (1, ["fit", "--without", "no.csv"], "no file 'no.csv'"),
    "test without some": (
        2,
        ["test", "--without", "forget.csv"],
        "got --without, which test does not have; leave it out",
    ),
    "unlearn without some": (2, [*WRITE, "--without=forget.csv"], "got --without, which unlearn does not have"),
    "predict with a report": (2, ["predict", "--report", "a.json"], "got --report, which predict does not have"),
    "fit with no report": (1, ["fit", "--report", "a.json"], "got --report a.json and nothing to forget"),
    "fit with a report": (1, ["fit", "--ifru.request=forget.csv", "--report=run.yaml"], "run.yaml, which exists"),
    "figure of a kind": (1, [*WRITE, "--figure", "a.jpeg"], "--figure a.jpeg; wanted a name that ends with .pdf, .png"),
    "figure of none": (1, [*WRITE, "--figure", "a"], "--figure a; wanted a name that ends with .pdf, .png or .svg"),
    "figure exists": (1, [*WRITE, "--figure", "old.png"], "got --figure old.png, which exists"),
    "figure is the report": (1, [*WRITE, "--report=a.png", "--figure=a.png"], "one file; give another path for the f"),
    "no checkpoint": (2, ["unlearn", "--request", "forget.csv", "--output", "a.ckpt"], "got no --ckpt_path; give"),
    "no request": (2, ["unlearn", "--ckpt_path", "best.ckpt", "--output", "a.ckpt"], "got no --request; give"),
    "no output": (2, UNLEARN, "got no --output; give the path"),
    "output in no folder": (1, [*UNLEARN, "--output", "no/a.ckpt"], "make the folder"),
    "output is a folder": (1, [*UNLEARN, "--output", "."], "which is a folder"),
    "report exists": (1, [*WRITE, "--report", "run.yaml"], "got --report run.yaml, which exists"),
    "request missing": (1, [*WRITE, "--request", "no.csv"], "no file 'no.csv'"),
    "request of strangers": (1, [*WRITE, "--request", "strangers.csv"], "nobody"),
    "checkpoint missing": (1, [*WRITE, "--ckpt_path", "no.ckpt"], "no.ckpt could not be loaded"),
    "checkpoint is none": (1, [*WRITE, "--ckpt_path", "junk.ckpt"], "junk.ckpt could not be loaded"),
    "other model": (1, [*WRITE, "--model.init_args.embedding_dim", "5"], "does not fit LightGCN"),
    "method out of range": (1, [*WRITE, "--ifru.method.damping", "-1"], "IFRU got damping=-1.0; wanted"),
    "decoupled decay": (1, [*WRITE, "--optimizer", "AdamW"], "AdamW with weight_decay=0.01"),
    "test, checkpoint missing": (1, ["test", "--ckpt_path", "no.ckpt"], "no.ckpt could not be loaded"),
    "test, checkpoint is none": (1, ["test", "--ckpt_path", "junk.ckpt"], "junk.ckpt could not be loaded"),
    "fit, checkpoint is none": (1, ["fit", "--ckpt_path", "junk.ckpt"], "junk.ckpt could not be loaded"),
    "test, other model": (1, ["test", "--ckpt_path", "best.ckpt", "--model.embedding_dim", "5"], "does not fit"),
    "data missing": (1, ["fit", "--data.source", "no.csv"], "no file 'no.csv'"),
    "data out of range": (1, ["fit", "--data.batch_size", "0"], "batch_size=0 is not a positive whole number"),
    "users contradict": (1, ["fit", "--model.num_users", "41"], "num_users=41, and the data have 40"),
    "items contradict": (1, ["test", "--model.num_items", "3"], "num_items=3, and the data have 30"),
    "no accelerator": (1, ["fit", "--trainer.accelerator", "abacus"], "accelerator='abacus'"),
    "no such option": (2, ["test", "--nosuch", "1"], "nrecognized arguments: --nosuch 1"),
    "an abbreviation": (2, ["fit", "--trainer.max_epoch", "1"], "(did you mean 'trainer.max_epochs'?)"),
    "config missing": (2, ["test", "--config", "no.yaml"], "File does not exist"),
    "option of the method": (2, ["unlearn", "--ifru.method.dampin", "1"], "(did you mean 'damping'?)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_sentence_and_writes_nothing(folder, case):
    expected, args, sentence = REFUSED[case]
    (folder / "junk.ckpt").write_text("junk")
    (folder / "strangers.csv").write_text("user\nnobody\n")
    (folder / "old.png").write_text("mine")
    before = files(folder)
    code, said = refusal(args[0], "--config", "run.yaml", *args[1:])
    assert code == expected
    assert sentence in said
    assert files(folder) == before


UNKNOWN = {
    "top": ({"optimiser": None}, "'optimiser'", "(did you mean 'optimizer'?)"),
    "trainer": ({"trainer": {"max_epoch": 3}}, "'trainer.max_epoch'", "(did you mean 'trainer.max_epochs'?)"),
    "model": (
        {"model": {"class_path": "lightning_ifru.models.LightGCN", "init_args": {"embeding_dim": 4}}},
        "lightning_ifru.models.LightGCN",
        "(did you mean 'embedding_dim'?)",
    ),
    "data": ({"data": {"init_args": {"source": "ratings.csv", "treshold": 3}}}, "'treshold'", "'threshold'?)"),
    "ifru": ({"ifru": {"method": {"dampin": 1}}}, "'dampin'", "'damping'?)"),
    "class": ({"model": {"class_path": "lightning_ifru.models.LightGNC"}}, "no attribute 'LightGNC'", ""),
    "module": ({"model": {"class_path": "no_such_module.Model"}}, "No module named 'no_such_module'", ""),
    "kind": ({"model": {"class_path": "lightning_ifru.InteractionDataModule"}}, "subclass of LightningModule", ""),
    "value": ({"ifru": {"method": {"damping": "high"}}}, 'key "damping": Expected a float', "high"),
}


@pytest.mark.parametrize("command", ["test", "unlearn"])
@pytest.mark.parametrize("case", UNKNOWN)
def test_a_config_with_something_unknown_is_one_sentence_that_names_it(folder, command, case):
    more, *expected = UNKNOWN[case]
    code, said = refusal(command, *rewritten(**more), "--ckpt_path", "best.ckpt")
    assert code == 2
    assert said.startswith(f"lightning-ifru {command}: ")
    assert said.endswith(f"; lightning-ifru {command} --help lists what there is.")
    assert all(part in said for part in expected), said
    assert len(said) < 300


def test_two_methods_are_refused(folder):
    own = rewritten(trainer=TRAINER | {"callbacks": [CALLBACK]}, ifru={"method": {"max_steps": 2}})
    code, said = refusal(*UNLEARN, *own, "--output", "unlearned.ckpt")
    assert code == 1
    assert "got both ifru and an IFRUCallback among trainer.callbacks" in said


OWN = """
from lightning_ifru.models import LightGCN
class Own(LightGCN):
    def __init__(self, num_users: int, num_items: int, width: int = 4, fault: bool = False):
        super().__init__(num_users, num_items, width, 1, loss="bce", lr=0.05)
        self.fault = fault
        if fault: None + 1
class Sized(LightGCN):
    def __init__(self, width: int = 4):
        super().__init__(40, 30, width, 1, loss="bce")
class Faulty(Own):
    def training_step(self, batch, batch_idx):
        return None + 1
class Slow(Own):
    def training_step(self, batch, batch_idx):
        raise KeyboardInterrupt
"""


@pytest.fixture
def own(folder, monkeypatch):
    (folder / "module_beside.py").write_text(OWN)
    yield lambda name, **init_args: rewritten(model={"class_path": f"module_beside.{name}", "init_args": init_args})
    sys.modules.pop("module_beside", None)


@pytest.mark.parametrize("name", ["Own", "Sized"], ids=["sizes from the data", "sizes of its own"])
def test_a_module_beside_the_config_is_found(own, name):
    best = answer("fit", *own(name, width=3))["best_checkpoint"]
    assert answer("test", *own(name, width=3), "--ckpt_path", best)["test_loss"] > 0
    report = answer("unlearn", *own(name, width=3), *UNLEARN[5:], "--ckpt_path", best, "--output", "own.ckpt")
    assert report["num_users_erased"] == 2


@pytest.mark.parametrize(("name", "init_args"), [("Own", {"fault": True}), ("Faulty", {})])
def test_a_fault_of_ones_own_module_keeps_its_traceback(own, name, init_args):
    with pytest.raises((TypeError, ValueError), match="unsupported operand"):
        main(["fit", *own(name, **init_args)])


def test_an_interrupted_fit_exits_with_130(own):
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert refusal("fit", *own("Slow")) == (130, "lightning-ifru: interrupted.")
    finally:
        signal.signal(signal.SIGINT, handler)


def test_fits_in_the_same_folder_follow_one_another_and_leave_ones_own_config_alone(folder):
    (folder / "run.yaml").rename("config.yaml")  # the name that the fit would write to
    mine = (folder / "config.yaml").read_bytes()
    answer("fit", "--config", "config.yaml")
    assert (folder / "config.yaml").read_bytes() == mine
    (folder / "config.yaml").rename("run.yaml")
    for dim in (2, 3):
        answer("fit", "--config", "run.yaml", "--model.embedding_dim", dim)
        assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["embedding_dim"] == dim
    for command in ("validate", "test", "unlearn"):  # what a fit has written serves the others
        more = ["--request", "forget.csv", "--output", "a.ckpt"] if command == "unlearn" else []
        answer(command, "--config", "config.yaml", *more, "--model.embedding_dim", 4, "--ckpt_path", "best.ckpt")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_config_can_be_given_back(folder, command):
    code, printed, _ = run(command, "--config", "run.yaml", "--print_config")
    assert code == 0
    (folder / "printed.yaml").write_text(printed)
    assert run(command, "--config", "printed.yaml", "--print-config")[1] == printed
    nothing = {"method": None, "request": None, "tolerance": None}
    assert yaml.safe_load(printed)["ifru"] == nothing | {"evaluate": True, "on_incomplete": "warn"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_begins_with_an_example_and_says_what_the_own_options_do(folder, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: lightning-ifru {command} --config run.yaml")
    assert "print one JSON object" in out or "as one JSON object" in out
    assert "--ifru.method" in out
    if command == "unlearn":
        assert all(f"--{name}" in out for name in ("ckpt_path", "request", "output", "report", "figure", "dry_run"))


def test_everything_on_the_command_line_needs_no_config(folder):
    fitted = answer(
        *["fit", "--seed_everything=7", "--model", "LightGCN", "--model.embedding_dim=3", "--data.source=ratings.csv"],
        *["--trainer.max-epochs=1", "--trainer.logger=false", "--trainer.accelerator=cpu", "--data.val-fraction=0.2"],
    )
    assert fitted["epochs"] == 1
    assert torch.load(fitted["best_checkpoint"], weights_only=True)["hyper_parameters"]["loss"] == "bpr"


def test_dashes_in_values_stay(folder):
    (folder / "my-best--one.ckpt").write_bytes((folder / "best.ckpt").read_bytes())
    report = answer(*UNLEARN[:3], "--ckpt-path=my-best--one.ckpt", *UNLEARN[5:], "--output", "un-learned.ckpt")
    assert report["checkpoint"] == "un-learned.ckpt"
    assert sorted(report["older_checkpoints"]) == ["best.ckpt", "my-best--one.ckpt"]


def test_a_test_without_a_checkpoint_says_of_which_weights(folder, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_ifru.training_command.rank_zero_info", said.append)
    answer("test", "--config", "run.yaml")
    assert said == ["test got no --ckpt_path, so that the model has the weights it is built with."]


def test_as_a_program_it_prints_one_json_object_and_returns_its_exit_code(folder):
    program = [sys.executable, "-c", "import sys; from lightning_ifru.cli import main; sys.exit(main())"]
    done = subprocess.run([*program, *WRITE, "--json"], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_users_erased"] == 2
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
def test_the_documented_nightly_job_takes_each_request_once_and_keeps_the_model_in_use(folder, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    once = re.search(r"^mkdir inbox.*?(?=^```)", page, re.MULTILINE | re.DOTALL)[0]
    job = re.search(r"^#!/bin/sh.*?(?=^```)", page, re.MULTILINE | re.DOTALL)[0]
    place = folder / "recommender"
    (place / "models").mkdir(parents=True)
    (folder / "best.ckpt").rename(place / "models" / "original.ckpt")
    for name in ("ratings.csv", "run.yaml"):
        (folder / name).rename(place / name)
    program = folder / "lightning-ifru"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom lightning_ifru.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["sh", "-c", once], cwd=place, check=True)

    def night():
        return subprocess.run(["sh", "-c", job], capture_output=True, text=True, check=False).returncode

    def used():
        return torch.load(place / "current", weights_only=True)["InteractionDataModule"]["user_ids"]

    for gone in GONE:  # by the third of the nights there is nothing to do
        (place / "inbox" / f"{gone}.csv").write_text(f"user\n{gone}\n")
        assert night() == 0, (place / "unlearn.log").read_text()
        assert gone not in used()
        assert not list((place / "inbox").iterdir())
    assert not set(GONE) & set(used())
    assert len(list((place / "done").iterdir())) == len(list((place / "reports").iterdir())) == len(GONE)
    before = files(place)
    assert night() == 0
    assert files(place) == before

    # Killed before the request was put away, and before the link was moved: the same night once more.
    last = f"{GONE[-1]}.csv"
    for leads in (f"{GONE[-1]}.ckpt", f"{GONE[-2]}.ckpt"):
        (place / "done" / last).rename(place / "inbox" / last)
        (place / "current").unlink()
        (place / "current").symlink_to(Path("models", leads))
        assert night() == 0, (place / "unlearn.log").read_text()
        assert {name: content for name, content in files(place).items() if not name.endswith("unlearn.log")} == {
            name: content for name, content in before.items() if not name.endswith("unlearn.log")
        }

    # All of it was forgotten before: no checkpoint is written, and the model in use stays.
    (place / "inbox" / "again.csv").write_text(f"user\n{GONE[0]}\n")
    model = (place / "current").resolve()
    assert night() == 0, (place / "unlearn.log").read_text()
    assert (place / "current").resolve() == model
    assert (place / "done" / "again.csv").exists()
    assert not (place / "models" / "again.ckpt").exists()

    named = re.findall(r"delete them: (.*)", (place / "unlearn.log").read_text())[-1].split(", ")
    assert len(named) == len(GONE)
    for path in named:  # as it says
        (place / path).unlink()
    assert not set(GONE) & set(used())

    (place / "inbox" / "a-stranger.csv").write_text("user\nnobody\n")
    before = {name: content for name, content in files(place).items() if not name.endswith("unlearn.log")}
    assert night() == 1
    assert {name: content for name, content in files(place).items() if not name.endswith("unlearn.log")} == before


def test_what_is_not_to_be_trusted_is_refused_or_trained_anew_as_the_command_says(folder):
    nothing = "--ifru.tolerance={complete: 0.0, doubt: 0.0}"
    code, said = refusal(*WRITE, nothing, "--ifru.on_incomplete=raise")
    assert code == 1
    assert "might have left" in said
    assert "--ifru.on_incomplete warn" in said
    assert run(*WRITE, nothing, "--ifru.tolerance.doubt", "1.0", "--dry_run", "--ifru.on_incomplete", "warn")[0] == 0
    assert not Path("unlearned.ckpt").exists()
    found = answer(*WRITE, nothing, "--ifru.on_incomplete=retrain")
    assert (found["verdict"], found["num_users_erased"]) == ("retrained", 2)
    content = torch.load("unlearned.ckpt", weights_only=True)
    assert content["epoch"] == TRAINER["max_epochs"]
    rows = [
        torch.load(path, weights_only=True)["state_dict"]["net.embedding.weight"]
        for path in ("best.ckpt", "unlearned.ckpt")
    ]
    assert not (rows[0] == rows[1]).any()
    assert run("test", "--config", "run.yaml", "--ckpt_path", "unlearned.ckpt")[0] == 0
