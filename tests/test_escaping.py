"""What others have chosen, ids, titles and names of files, is shown as text wherever it is shown, and runs nowhere."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nightly_requests
import pandas as pd
import pytest
import test_audit_report
import test_report
import torch
from rich.console import Console

import lightning_ifru
from lightning_ifru import UnlearningRequest
from lightning_ifru.cli import main

PLANTED = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style></title><iframe src=http://example.org>",
    "&lt;b&gt;",
    "${verdict}",
    "[red]not red[/blue]",
]


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def check(html):
    """Assert that a page runs nothing and loads nothing, and return its text."""
    page = Elements(html)
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "b", "i", "br", "div", "span"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img"),
    }
    for tag, attributes in page.elements:
        assert tag in allowed
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.keys() <= {"class", "style", "lang", "charset", "name", "content", "src", "alt", "scope"}
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert "url(" not in attributes.get("style", "")
    assert not re.search(r"@import|url\(", html)
    return " ".join(page.text)


@pytest.mark.parametrize("planted", PLANTED)
def test_an_audits_page_shows_names_as_text(planted):
    full = test_audit_report.FULL
    entry = full.requests[0] | {"digest": planted, "time": planted}
    report = replace(
        full,
        model=planted,
        date=planted,
        versions={planted: planted},
        files=[{"role": "original", "file": planted, "sha256": "ab" * 32}],
        requests=[entry],
    )
    text = check(report.to_html())
    assert text.count(planted) >= 6
    assert check(full.to_html()).count(planted) == 0


@pytest.mark.parametrize("planted", PLANTED)
def test_a_notebooks_table_shows_names_as_text(planted):
    full = test_report.FULL
    metrics = {**full.metrics_before, planted: 0.5}
    report = replace(
        full,
        metrics_before=metrics,
        metrics_after={**full.metrics_after, planted: 0.5},
        forgotten_by_split={planted: 7},
        verdict=planted,
        verdict_reasons=[planted],
        checkpoint=planted,
    )
    assert planted in check(report._repr_html_())
    assert planted not in check(full._repr_html_())


def test_a_checkpoint_with_a_hostile_name_and_ledger_makes_no_hostile_page(trained, make_data, make_trainer, tmp_path):
    """From the file to the page: nothing of a checkpoint's ledger but what an unlearning writes comes through."""
    trainer, model, data = trained()
    name = "<img src=x onerror=alert(1)>.ckpt"
    trainer.save_checkpoint(tmp_path / name)
    trainer.unlearn(data, request=UnlearningRequest(users=data.user_ids[3:9].tolist()))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    report = lightning_ifru.audit(
        make_trainer(), make_data(), model=model, original=tmp_path / name, unlearned=tmp_path / "after.ckpt"
    )
    assert name in check(report.to_html())
    content = torch.load(tmp_path / "after.ckpt", weights_only=True)
    content["callbacks"]["IFRUCallback"]["ledger"][0]["num_forgotten"] = PLANTED[0]
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(lightning_ifru.UnlearningError, match="ledger is not as an unlearning writes it"):
        lightning_ifru.audit(
            make_trainer(), make_data(), model=model, original=tmp_path / name, unlearned=tmp_path / "hostile.ckpt"
        )


FORMULAS = [
    "=1+1",
    "@SUM(A1)",
    "+1",
    "-1+2",
    "\t=1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://example.org")',
    "[/b]",
    "\x1b[31m",
]


def test_a_demo_of_hostile_ids_and_titles_writes_them_as_text_and_no_cell_that_a_spreadsheet_runs(
    tmp_path, planted, capsys
):
    """The demo's metrics.csv is the only CSV that the package writes: numbers below names of its own."""
    items = {name: f"{FORMULAS[k % len(FORMULAS)]}{name}" for k, name in enumerate(dict.fromkeys(planted["item"]))}
    users = {name: f"{FORMULAS[k % len(FORMULAS)]}{name}" for k, name in enumerate(dict.fromkeys(planted["user"]))}
    ratings = {"user": [users[u] for u in planted["user"]], "item": [items[i] for i in planted["item"]]}
    pd.DataFrame(ratings | {"rating": planted["rating"]}).to_csv(tmp_path / "ratings.csv", index=False)
    titles = [f"{FORMULAS[k % len(FORMULAS)]} [bold]{PLANTED[0]}[/nothing]" for k in range(len(items))]
    pd.DataFrame({"item": [*items.values()], "title": titles}).to_csv(tmp_path / "movies.csv", index=False)
    columns = ["--user=user", "--item=item", "--threshold=3", "--epochs=1", "--output-dir", str(tmp_path / "demo")]
    assert main(["demo", "--data", str(tmp_path / "ratings.csv"), *columns]) == 0
    written = pd.read_csv(tmp_path / "demo" / "metrics.csv", dtype=str, keep_default_na=False)
    assert all(re.fullmatch(r"[a-z][\w@./ -]*", column) for column in written.columns)
    cells = [cell for column in written.columns for cell in written[column] if cell]
    assert len(cells) > 10
    assert all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell) for cell in cells)
    assert "\x1b" not in capsys.readouterr().out + (tmp_path / "demo" / "demo.log").read_text()
    assert "[bold]<script>" in (tmp_path / "demo" / "demo.log").read_text()


def test_titles_of_a_broken_file_are_one_sentence(tmp_path, planted, capsys):
    pd.DataFrame(planted).to_csv(tmp_path / "ratings.csv", index=False)
    (tmp_path / "movies.csv").write_bytes(b"item,title\na\0b,c\n")
    columns = ["--user=user", "--item=item", "--threshold=3", "--epochs=1", "--output-dir", str(tmp_path / "demo")]
    assert main(["demo", "--data", str(tmp_path / "ratings.csv"), *columns]) == 1
    assert "'movies.csv' holds a NUL byte" in capsys.readouterr().err


def test_nothing_else_writes_csv():
    """Where ids could stand in a CSV, it is a request, which is read back as it stands and opened by no spreadsheet."""
    root = Path(lightning_ifru.__file__).parents[1]
    found = {
        path.relative_to(root).as_posix()
        for folder in ("lightning_ifru", "examples")
        for path in (root / folder).rglob("*.py")
        if re.search(r"to_csv|csv\.writer|DictWriter|CSVLogger\(|savetxt", path.read_text(encoding="utf-8"))
    }
    assert found <= {"lightning_ifru/demo.py", "examples/benchmarks/speed_data.py"}


def test_a_table_for_the_terminal_shows_brackets_as_they_are():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(replace(test_report.FULL, forgotten_by_split={"[/nothing]": 7}, verdict_reasons=["[red]x[/blue]"]))
    shown = console.export_text()
    assert "7 [/nothing]" in shown
    assert "[red]x[/blue]" in shown


NAMES = [
    "a b.json",
    "-x.json",
    "..json",
    "....json",
    "$(touch never).json",
    "a;b|c.json",
    "a\nb.json",
    "<b>.json",
    "%2e%2e%2f.json",
    "é\u202e.json",
]


def test_a_nightly_job_writes_into_its_folders_alone_whatever_requests_are_called(tmp_path, planted, capsys):
    pd.DataFrame(planted)[["user", "item"]].to_csv(tmp_path / "log.csv", index=False)
    requests, checkpoints = tmp_path / "requests", tmp_path / "checkpoints"
    requests.mkdir()
    checkpoints.mkdir()
    columns = {"data": tmp_path / "log.csv", "user": "user", "item": "item"}
    nightly_requests.main(requests, checkpoints, train=True, epochs=1, **columns)
    for k, name in enumerate(NAMES):
        (requests / name).write_text(json.dumps({"users": [f"person-{k:03d}"]}), encoding="utf-8")
    before = {path for path in tmp_path.rglob("*") if path.parent not in (requests, checkpoints, requests / "done")}
    nightly_requests.main(requests, checkpoints, **columns)
    after = {path for path in tmp_path.rglob("*") if path.parent not in (requests, checkpoints, requests / "done")}
    assert after == before
    assert len(list(checkpoints.glob("*.ckpt"))) > 5


def test_a_nightly_job_runs_nothing_that_a_checkpoint_holds(tmp_path, planted, capsys):
    pd.DataFrame(planted)[["user", "item"]].to_csv(tmp_path / "log.csv", index=False)
    requests, checkpoints = tmp_path / "requests", tmp_path / "checkpoints"
    requests.mkdir()
    checkpoints.mkdir()
    (requests / "a.csv").write_text("user\nperson-003\n")

    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'it has run')!r}, 'w').close()",))

    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, checkpoints / "0000-trained.ckpt")
    code = nightly_requests.main(requests, checkpoints, data=tmp_path / "log.csv", user="user", item="item")
    assert code == 1
    assert "0000-trained.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "it has run").exists()
    assert (requests / "a.csv").exists()
