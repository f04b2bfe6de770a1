"""The command line's manners: help, version, exit codes, both spellings of options; the audit and the demo."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

import lightning_ifru
from lightning_ifru import UnlearningRequest
from lightning_ifru.cli import main


def test_no_module_imports_the_package_that_imports_it():
    folder = Path(lightning_ifru.__file__).parent
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert "lightning_ifru" not in names, path.name
    assert f'version = "{lightning_ifru.__version__}"' in (folder.parent / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--version"], lightning_ifru.__version__),
        (["--help"], "unlearn             Forget users, items or interactions"),
        (["--help"], "1    refused, with one sentence on the standard error"),
        (["demo", "--help"], "output_dir"),
        (["audit", "--help"], "--retrained"),
    ],
)
def test_questions_are_answered_with_exit_code_0(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["demo", "--no-such-option=1"], ["demo", "--model", "svd"], ["no-such-command"], ["audit"]]
)
def test_misspelt_arguments_are_refused_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "got no command, of fit, validate, "), (["unlern"], "'unlern'"), (["demo", "--epoch=1"], "'epochs'?)")],
)
def test_a_misspelt_command_is_one_sentence(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("lightning-ifru")
    assert error.count("\n") == 1


def test_bad_input_is_one_sentence_on_standard_error_and_exit_code_1(tmp_path, capsys):
    missing = tmp_path / "missing.csv"
    assert main(["demo", "--data", str(missing), "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lightning-ifru: ")
    assert "missing.csv" in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


@pytest.fixture
def run_folder(planted, make_data, make_model, make_trainer, tmp_path):
    """A folder as a run leaves it: data, config file, and checkpoints from before and after forgetting."""
    pd.DataFrame(planted).to_csv(tmp_path / "ratings.csv", index=False)
    data, trainer = make_data(source=tmp_path / "ratings.csv"), make_trainer(max_epochs=3)
    trainer.fit(make_model(), datamodule=data)
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    trainer.unlearn(data, request=UnlearningRequest(users=data.user_ids[[3, 4, 5, 6]].tolist()))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    write_config(tmp_path)
    return tmp_path


def write_config(folder, model=None, data=None, **more):
    columns = {"rating": "rating", "threshold": 3.0, "seed": 3}
    config = {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": 3},
        "model": {"class_path": "lightning_ifru.models.LightGCN", "init_args": {"embedding_dim": 4, "num_layers": 1}},
        "data": {"init_args": {"source": str(folder / "ratings.csv")} | columns | (data or {})},
    }
    config["model"]["init_args"] |= {"loss": "bce"} | (model or {})
    (folder / "run.yaml").write_text(yaml.safe_dump(config | more))


def audit_in(folder, *more):
    files = ["--original", str(folder / "before.ckpt"), "--unlearned", str(folder / "after.ckpt")]
    return main(["audit", "--config", str(folder / "run.yaml"), *files, "--output", str(folder / "report"), *more])


@pytest.mark.parametrize("model", [{}, {"num_users": 40, "num_items": 30}], ids=["sizes from the data", "sizes given"])
def test_an_audit_from_a_config_file_writes_its_report(run_folder, capsys, model):
    write_config(run_folder, model)
    assert audit_in(run_folder) == 0
    assert "What this does not prove" in capsys.readouterr().out
    content = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in content["files"]] == ["before.ckpt", "after.ckpt"]
    assert (run_folder / "report.html").exists()


def test_an_audit_answers_with_one_json_object(run_folder, capsys):
    assert audit_in(run_folder, "--json") == 0
    written = (run_folder / "report.json").read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out) == json.loads(written)


def test_a_demo_answers_with_one_json_object(run_folder, capsys):
    columns = ["--user=user", "--item=item", "--threshold=3", "--epochs=2", "--output-dir", str(run_folder / "demo")]
    assert main(["demo", "--data", str(run_folder / "ratings.csv"), *columns, "--json"]) == 0
    written = (run_folder / "demo" / "report.json").read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out) == json.loads(written)


def test_an_audit_refuses_arguments_out_of_range_in_one_sentence(run_folder, capsys):
    assert audit_in(run_folder, "--data.init_args.batch_size", "0") == 1
    assert "batch_size=0 is not a positive whole number" in capsys.readouterr().err


def test_an_audit_takes_retrained_checkpoints_as_a_list(run_folder, capsys, make_data, make_model, make_trainer):
    for epochs, name in enumerate(("c", "d"), start=1):
        data, trainer = make_data(source=run_folder / "ratings.csv"), make_trainer(max_epochs=epochs)
        data.forget(UnlearningRequest(users=data.user_ids[[3, 4, 5, 6]].tolist()))
        data.commit(data.removal())
        trainer.fit(make_model(), datamodule=data)
        trainer.save_checkpoint(run_folder / f"{name}.ckpt")
    retrained = f"[{run_folder / 'c.ckpt'}, {run_folder / 'd.ckpt'}]"
    assert audit_in(run_folder, "--retrained", retrained, "--paired=true") == 0
    content = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    assert [entry["role"] for entry in content["files"]][2:] == ["retrained 1", "retrained 2"]
    assert content["paired"]
    assert "Distance to paired retrained models" in capsys.readouterr().out


def test_an_audit_takes_one_retrained_checkpoint_without_brackets(run_folder, make_data, make_model, make_trainer):
    data, trainer = make_data(source=run_folder / "ratings.csv"), make_trainer(max_epochs=1)
    data.forget(UnlearningRequest(users=data.user_ids[[3, 4, 5, 6]].tolist()))
    data.commit(data.removal())
    trainer.fit(make_model(), datamodule=data)
    trainer.save_checkpoint(run_folder / "c.ckpt")
    assert audit_in(run_folder, "--retrained", str(run_folder / "c.ckpt")) == 0
    content = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in content["files"]][2:] == ["c.ckpt"]


def test_an_audit_reads_what_lightning_wrote_for_the_fit(run_folder):
    """The keys that LightningCLI adds to those that were asked for, as they stand in its config.yaml."""
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    write_config(
        run_folder, optimizer=adam, lr_scheduler=None, ckpt_path="a.ckpt", ifru={"request": "a.csv"}, weights_only=None
    )
    assert audit_in(run_folder) == 0


@pytest.mark.parametrize(
    "option",
    [
        ["--ckpt_path", "a.ckpt"],
        ["--ckpt-path=a.ckpt"],
        ["--optimizer.lr=1"],
        ["--ifru", "null"],
        ["--seed_everything=1"],
    ],
)
def test_an_audit_refuses_options_of_the_fit_on_the_command_line(capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--original", "a.ckpt", "--unlearned", "b.ckpt", *option])
    name = option[0].partition("=")[0].replace("-", "_").replace("__", "--")
    assert stop.value.code == 2
    assert f"got {name}, which is for the fit and has no part in an audit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    assert name.partition(".")[0] not in capsys.readouterr().out


def test_an_audit_refuses_a_key_that_nobody_knows(run_folder, capsys):
    write_config(run_folder, optimiser=None)
    with pytest.raises(SystemExit) as stop:
        audit_in(run_folder)
    assert stop.value.code == 2
    assert "optimiser" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ({"model": {"num_users": 41}}, [], "the config gives the model num_users=41, and the data have 40"),
        ({"model": {"num_items": 3}}, [], "the config gives the model num_items=3, and the data have 30"),
        ({"model": {"embedding_dim": 8}}, [], "does not fit LightGCN"),
        ({"data": {"source": "missing.csv"}}, [], "missing.csv"),
        ({}, ["--retrained", "[{folder}/before.ckpt]"], "still contains"),
        ({}, ["--trainer.devices", "2"], "2 processes"),
        ({}, ["--output", "{folder}/no/where"], "no report can be written"),
        ({"model": {"loss": "bce"}}, ["--unlearned", "{folder}/before.ckpt"], "has forgotten 0 interactions"),
    ],
)
def test_a_refused_audit_writes_nothing_and_exits_with_1(run_folder, capsys, config, more, expected):
    write_config(run_folder, **config)
    before = sorted(run_folder.iterdir())
    assert audit_in(run_folder, *(argument.format(folder=run_folder) for argument in more)) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.rpartition("lightning-ifru: ")[2].count("\n") == 1
    assert "Traceback" not in error
    assert sorted(run_folder.iterdir()) == before


def test_an_audit_of_a_module_without_sizes_needs_none(run_folder, monkeypatch):
    (run_folder / "module_of_ones_own.py").write_text(
        "from lightning_ifru.models import LightGCN\n"
        "class Own(LightGCN):\n"
        "    def __init__(self, width: int = 4):\n"
        "        super().__init__(40, 30, width, 1, loss='bce')\n"
    )
    monkeypatch.syspath_prepend(run_folder)
    write_config(run_folder)
    config = yaml.safe_load((run_folder / "run.yaml").read_text())
    config["model"] = {"class_path": "module_of_ones_own.Own"}
    (run_folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert audit_in(run_folder) == 0
