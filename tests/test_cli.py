"""The command line's manners: help, version, exit codes, both spellings of options."""

import pytest

import lightning_ifru
from lightning_ifru.cli import main


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--version"], lightning_ifru.__version__), (["--help"], "demo"), (["demo", "--help"], "output_dir")],
)
def test_questions_are_answered_with_exit_code_0(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["demo", "--no-such-option=1"], ["demo", "--model", "svd"], ["no-such-command"]])
def test_misspelt_arguments_are_refused_with_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_bad_input_is_one_sentence_on_standard_error_and_exit_code_1(tmp_path, capsys):
    missing = tmp_path / "missing.csv"
    assert main(["demo", "--data", str(missing), "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lightning-ifru: ")
    assert "missing.csv" in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
