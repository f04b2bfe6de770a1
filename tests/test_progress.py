"""Bars for every phase: on a terminal whatever bar the trainer has, nowhere else, and no trace of them afterwards."""

import io
import re
import sys

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console

from lightning_ifru import IFRU, IFRUCallback, ObjectiveError, UnlearningRequest, progress
from lightning_ifru import callback as callback_module
from lightning_ifru.progress import Phases

PHASES = ["preparing", "solving", "evaluating", "writing"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    """Put a file or a terminal in the place of the standard error."""

    def put(kind):
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        file = kind()
        monkeypatch.setattr(sys, "stderr", file)
        return file

    return put


def request_for(data):
    return UnlearningRequest(users=data.user_ids[[4]].tolist())


BARS = [
    pytest.param(lambda: [], {"enable_progress_bar": True}, True, id="default"),
    pytest.param(lambda: [TQDMProgressBar()], {"enable_progress_bar": True}, True, id="tqdm"),
    pytest.param(lambda: [RichProgressBar()], {"enable_progress_bar": True}, True, id="rich"),
    pytest.param(lambda: [RichProgressBar(refresh_rate=0)], {"enable_progress_bar": True}, False, id="rich, off"),
    pytest.param(lambda: [TQDMProgressBar(refresh_rate=0)], {"enable_progress_bar": True}, False, id="tqdm, off"),
    pytest.param(lambda: [], {"enable_progress_bar": False}, False, id="none"),
]


@pytest.mark.parametrize(("bar", "changes", "on"), BARS)
def test_every_phase_has_a_bar_on_a_terminal_with_whatever_bar_the_trainer_has(trained, screen, bar, changes, on):
    terminal = screen(Terminal)
    trainer, _, data = trained(max_epochs=1, callbacks=[IFRUCallback(IFRU(max_steps=2)), *bar()], **changes)
    terminal.seek(0)
    terminal.truncate()
    trainer.unlearn(data, request=request_for(data), dry_run=True)
    drawn = terminal.getvalue()
    assert ("Unlearning" in drawn and "estimating" in drawn) == on
    assert "solving" not in drawn
    trainer.unlearn(data, request=request_for(data))
    drawn = terminal.getvalue()
    assert [phase in drawn for phase in PHASES] == [on] * 4
    assert bool(drawn) == on
    if on:
        places = [drawn.index(phase) for phase in PHASES]
        assert places == sorted(places)
        assert drawn.endswith("\x1b[2K"), "the last line is wiped"


@pytest.mark.parametrize("changes", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}], ids=str)
def test_a_file_gets_no_bar_even_if_colours_are_forced(trained, screen, monkeypatch, changes):
    file = screen(io.StringIO)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    trainer, _, data = trained(max_epochs=1, enable_progress_bar=True)
    file.seek(0)
    file.truncate()
    trainer.unlearn(data, request=request_for(data))
    assert file.getvalue() == ""


def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar(trained, screen, monkeypatch):
    terminal = screen(Terminal)
    monkeypatch.setenv("TERM", "dumb")
    trainer, _, data = trained(max_epochs=1, callbacks=[IFRUCallback(), TQDMProgressBar()], enable_progress_bar=True)
    trainer.unlearn(data, request=request_for(data))
    assert "Unlearning" not in terminal.getvalue()


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_when_fitting_ends_the_bar_of_the_training_does_not_move_any_more(
    make_data, trained, screen, monkeypatch, kind
):
    terminal = screen(Terminal)
    monkeypatch.setattr(sys, "stdout", Terminal())
    data, bar, alive = make_data(), kind(), []
    begin = Phases.begin

    def watched(self, name, steps=None):
        if kind is RichProgressBar:
            alive.append(bar.progress.live.is_started)
        else:
            alive.append(not bar.train_progress_bar.disable)
        begin(self, name, steps)

    monkeypatch.setattr(Phases, "begin", watched)
    callback = IFRUCallback(IFRU(max_steps=1), request=request_for(data))
    trained(data=data, callbacks=[callback, bar], max_epochs=1, enable_progress_bar=True)
    assert len(callback.ledger) == 1
    assert alive == [False] * 4
    assert "solving" in terminal.getvalue()
    assert "Epoch 0" in sys.stdout.getvalue()


def test_what_is_printed_meanwhile_goes_where_it_would_have_gone(trained, screen, monkeypatch):
    terminal, output = screen(Terminal), io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    solve = callback_module.Unlearning.solve
    monkeypatch.setattr(
        callback_module.Unlearning,
        "solve",
        lambda self, *rest: (print("from a module"), solve(self, *rest))[1],  # noqa: T201
    )
    trainer, _, data = trained(max_epochs=1, callbacks=[IFRUCallback(), TQDMProgressBar()], enable_progress_bar=True)
    trainer.unlearn(data, request=request_for(data))
    assert "solving" in terminal.getvalue()
    assert "from a module\n" in output.getvalue()
    assert "from a module" not in terminal.getvalue()


def test_a_failure_ends_the_bar(trained, screen, monkeypatch):
    terminal = screen(Terminal)
    trainer, _, data = trained(max_epochs=1, callbacks=[IFRUCallback(), TQDMProgressBar()], enable_progress_bar=True)
    monkeypatch.setattr(IFRU, "update", lambda *_, **__: (_ for _ in ()).throw(ObjectiveError("on purpose")))
    with pytest.raises(ObjectiveError, match="on purpose"):
        trainer.unlearn(data, request=request_for(data))
    assert sys.stderr is terminal
    assert terminal.getvalue().endswith("\x1b[2K")
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown again"


def test_the_steps_of_the_solve_and_the_users_ranked_are_counted(trained, screen, monkeypatch):
    seen = []
    begin, step = Phases.begin, Phases.step
    monkeypatch.setattr(Phases, "begin", lambda self, name, steps=None: (seen.append((name, steps)), begin(self, name)))
    monkeypatch.setattr(Phases, "step", lambda self, text: (seen.append(text), step(self, text)))
    screen(io.StringIO)
    trainer, _, data = trained("bpr", max_epochs=1, method=IFRU(max_steps=1, probes=3))
    report = trainer.unlearn(data, request=request_for(data))
    names = [entry[0] for entry in seen if isinstance(entry, tuple)]
    assert names == PHASES
    solving = [text for text in seen[seen.index(next(e for e in seen if e[0] == "solving")) :] if isinstance(text, str)]
    products = [text for text in solving if re.search(r"product \d+$", text)]
    assert len(products) == report.cg_iterations > 3
    assert any(re.search(r"damping [\d.]+$", text) for text in solving)
    most = dict(entry for entry in seen if isinstance(entry, tuple))["solving"]
    users = [text for text in solving if text.endswith("users")]
    assert len(solving) - len(users) <= most
    tested = len(data.test.user.unique())
    assert users == [f"{tested} of {tested} users"] * 2


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_a_bar_if_it_can_draw_one(monkeypatch, widgets):
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets and name == "ipywidgets" else None)
    assert progress._is_watched(Console(force_jupyter=True, file=io.StringIO())) == widgets
