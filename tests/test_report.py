"""The report: its numbers as JSON, scalars, table and figure, and never an id."""

import csv
import io
import json
import math
import re
from base64 import b64decode
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ifru import UnlearningReport, UnlearningRequest

CONTRACT = {
    *("digest", "num_forgotten", "num_users_erased", "direct_norm", "spillover_norm"),
    *("residual_before", "residual_after", "stationarity", "curvature", "steps", "cg_iterations", "damping"),
    *("rows_changed", "seconds", "metrics_before", "metrics_after"),
}

FULL = UnlearningReport(
    digest="ab12",
    num_forgotten=1234567,
    forgotten_by_split={"train": 1234000, "val": 560, "test": 7},
    num_users_erased=3,
    num_items_erased=5,
    direct_norm=0.0123456,
    spillover_norm=0.00456,
    residual_before=0.8,
    residual_after=0.05,
    stationarity=2.345,
    curvature="gauss-newton",
    damping=0.1,
    steps=2,
    trajectory=[
        {"curvature": "gauss-newton", "damping": 0.3, "residual": 0.2},
        {"curvature": "gauss-newton", "damping": 0.1, "residual": 0.05},
    ],
    cg_iterations=17,
    unknowns=66,
    rows_changed=4321,
    affected_nodes=987,
    influence_by_hop={"0": 0.012, "1": 0.003, "3+": 0.0004, "dense": 0.002},
    top_changes={"0": [6, 1, 3, 0], "1": [90, 10, 0, 0]},
    score_shift={
        **{"edges": [0.0, 0.5, 1.0], "before": [2, 8], "after": [7, 3], "mean_before": 0.75, "mean_after": 0.375},
        **{"belief": True, "reset": False},
    },
    seconds={"influence": 0.5, "solve": 2.0, "total": 3.25},
    metrics_before={"auroc": 0.71, "recall@20": 0.25, "ndcg@20": 0.33},
    metrics_after={"auroc": 0.75, "recall@20": 0.24, "ndcg@20": None},
    checkpoint="unlearned-1.ckpt",
)
DRY = UnlearningReport(
    "ab12", 12, {"train": 12}, 1, 0, affected_nodes=9, dry_run=True, expected={"products": 1204.0, "seconds": 4.5}
)
BARE = UnlearningReport("ab12", 3, {"train": 3}, 0, 0)
REPORTS = [pytest.param(FULL, id="full"), pytest.param(DRY, id="dry run"), pytest.param(BARE, id="bare")]


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rendered(report):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report)
    return console.export_text()


@pytest.mark.parametrize("report", REPORTS)
def test_json_has_every_attribute_and_those_of_the_contract(report):
    content = strict(report.to_json())
    assert set(content) >= CONTRACT
    assert set(content) == {field.name for field in fields(UnlearningReport)}
    for name, value in content.items():
        assert value == getattr(report, name)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_json_has_null_for_what_is_not_finite_at_any_depth(odd):
    report = replace(
        FULL,
        stationarity=odd,
        seconds={"total": odd, "solve": 1.0},
        trajectory=[{"residual": odd, "damping": 0.1}],
        metrics_after={"auroc": odd},
    )
    with pytest.raises(AssertionError, match="is not JSON"):
        strict(json.dumps(odd))
    content = strict(report.to_json())
    assert content["stationarity"] is None
    assert content["seconds"] == {"total": None, "solve": 1.0}
    assert content["trajectory"] == [{"residual": None, "damping": 0.1}]
    assert content["metrics_after"] == {"auroc": None}
    assert content["direct_norm"] == 0.0123456


def test_a_report_is_its_json_read_again():
    assert UnlearningReport(**strict(FULL.to_json())) == FULL


def test_json_in_one_line_if_asked():
    assert "\n" not in FULL.to_json(indent=None)
    assert "\n" in FULL.to_json()


def test_scalars_are_the_numbers_and_only_they():
    scalars = FULL.scalars()
    wanted = {
        **{"num_forgotten": 1234567, "num_users_erased": 3, "num_items_erased": 5},
        **{"direct_norm": 0.0123456, "spillover_norm": 0.00456, "residual_before": 0.8, "residual_after": 0.05},
        **{"stationarity": 2.345, "damping": 0.1, "steps": 2, "cg_iterations": 17, "unknowns": 66},
        **{"already_absent": 0, "negative_curvature": 0},
        **{"rows_changed": 4321, "affected_nodes": 987, "items_changed": 17 / 110},
        **{"examples": 0, "sampled_rows": 0, "importance_left_out": 0},
        **{"influence_by_hop/0": 0.012, "influence_by_hop/1": 0.003, "influence_by_hop/3+": 0.0004},
        **{"influence_by_hop/dense": 0.002, "score_shift/mean_before": 0.75, "score_shift/mean_after": 0.375},
        **{"seconds/influence": 0.5, "seconds/solve": 2.0, "seconds/total": 3.25},
        **{"metrics_before/auroc": 0.71, "metrics_before/recall@20": 0.25, "metrics_before/ndcg@20": 0.33},
        **{"metrics_after/auroc": 0.75, "metrics_after/recall@20": 0.24},
    }
    assert scalars == {f"unlearn/{name}": float(value) for name, value in wanted.items()}
    assert all(type(value) is float for value in scalars.values())


def test_scalars_leave_out_what_is_not_finite():
    assert "unlearn/stationarity" not in replace(FULL, stationarity=math.inf).scalars()
    assert "unlearn/seconds/total" not in replace(FULL, seconds={"total": math.nan}).scalars()


@pytest.mark.parametrize(
    ("report", "figures"),
    [
        (
            FULL,
            [
                *("What was forgotten", "1,234,567", "1,234,000 train", "560 val", "7 test", "3 / 5", "987"),
                *("0.0123 / 0.00456", "0.8 → 0.05", "16.0-fold down", "2.35", "2 × gauss-newton", "damping 0.1"),
                *("17", "4,321", "3.2 / 2.0", "AUROC", "Recall@20", "NDCG@20"),
                *("items changed in a user's top 3", "0.2 on average"),
                *("belief in labels of forgotten pairs", "0.75 → 0.375"),
                *("0.7100", "0.7500", "+0.0400", "0.2500", "0.2400", "-0.0100"),
            ],
        ),
        (DRY, ["What would be forgotten", "12 train", "1 / 0", "at most", "1,204", "4.5", "9"]),
        (BARE, ["3 train", "no step"]),
    ],
    ids=["full", "dry run", "bare"],
)
def test_the_table_shows_the_figures_in_eighty_columns(report, figures):
    text = rendered(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for shown in figures:
        assert shown in text, text
    assert "ab12" not in text


@pytest.mark.parametrize("report", REPORTS)
def test_print_alone_shows_the_tables_without_colour(report, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print(report)  # noqa: T201
    printed = capsys.readouterr().out
    assert [line.rstrip() for line in rendered(report).splitlines()] == printed.splitlines()
    assert "\x1b" not in printed


def test_the_repr_is_short_and_has_no_lists():
    assert len(repr(FULL)) < 1000
    assert "trajectory" not in repr(FULL)


class Page(HTMLParser):
    """The cells and the images of a page, and a complaint about tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.images, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
            return
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells[-1] += data


@pytest.mark.parametrize(("report", "images"), [(FULL, 1), (DRY, 0), (BARE, 1)], ids=["full", "dry run", "bare"])
def test_a_notebook_shows_the_same_tables_and_the_figure(report, images):
    page = Page(report._repr_html_())
    shown = {" ".join(part.split()) for line in rendered(report).splitlines() for part in re.split("[│┃]", line)}
    shown = {part for part in shown if part and not set(part) & set("┌├┏┡┗└")}
    assert {" ".join(cell.split()) for cell in page.cells} - {""} == shown
    assert len(page.images) == images
    assert page.tags <= {"div", "table", "caption", "tr", "th", "td", "img"}, "nothing that runs or loads"
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert image["alt"]
        drawn = b64decode(image["src"].partition(",")[2]).decode()
        assert drawn.count("<svg") == 1
    assert len(report._repr_html_()) < 150_000


def test_what_is_not_a_number_is_escaped_in_a_notebook():
    odd = replace(FULL, curvature="<script>", forgotten_by_split={"a&b": 3})
    text = odd._repr_html_()
    assert "<script>" not in text
    assert {"2 × <script>, damping 0.1", "3 a&b"} <= set(Page(text).cells)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_tensorboard_and_csv_get_the_same_scalars(trained, tmp_path, loss):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tb")]
    trainer, _, data = trained(loss, logger=loggers, max_epochs=1)
    report = trainer.unlearn(data, request=UnlearningRequest(users=data.user_ids[[4]].tolist()))
    with open(f"{loggers[0].log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["unlearn/num_forgotten"]]
    (row,) = ({name: float(value) for name, value in row.items() if value} for row in rows)
    events = EventAccumulator(loggers[1].log_dir).Reload()
    board = {name: events.Scalars(name) for name in events.Tags()["scalars"] if name.startswith("unlearn/")}
    assert row.pop("step") == trainer.global_step > 0
    wanted = report.scalars()
    for name in ("unlearn/seconds/checkpoint", "unlearn/seconds/total"):  # the last of the writing comes after
        assert 0 < row[name] <= wanted[name]
        wanted[name] = row[name]
    assert row == pytest.approx(wanted, rel=1e-12)
    assert board.keys() == row.keys()
    for name, logged in board.items():
        assert [(event.step, event.value) for event in logged] == [
            (trainer.global_step, pytest.approx(row[name], rel=1e-6))
        ]
    assert {"unlearn/influence_by_hop/0", "unlearn/metrics_after/recall@20", "unlearn/score_shift/mean_after"} <= set(
        row
    )


def test_a_metric_that_is_not_defined_is_shown_as_a_dash():
    (line,) = [line for line in rendered(FULL).splitlines() if "NDCG@20" in line]
    assert line.count("–") == 3


@pytest.mark.parametrize(
    ("before", "after", "fell"), [(0.8, 0.05, 16.0), (0.8, 0.0, math.inf), (0.0, 0.0, None), (None, None, None)]
)
def test_how_far_the_residual_fell(before, after, fell):
    report = replace(FULL, residual_before=before, residual_after=after)
    assert report.residual_fell == (None if fell is None else pytest.approx(fell))


def test_the_figure_has_influence_residuals_recommendations_and_scores():
    figure = FULL.figure()
    assert isinstance(figure, Figure)
    influence, residual, recommended, scores = figure.axes
    assert [bar.get_height() for bar in influence.patches] == [0.012, 0.003, 0.0004, 0.002]
    assert ticks(influence) == ["0", "1", "further", "dense weights"]
    (line,) = residual.lines
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == [0.8, 0.2, 0.05]
    assert residual.get_ylim()[0] == 0
    # Of ten users seven items of thirty have changed, of a hundred ten of three hundred.
    assert [bar.get_height() for bar in recommended.patches] == pytest.approx([100 * 7 / 30, 100 * 10 / 300])
    assert ticks(recommended) == ["0\n(10 users)", "1\n(100 users)"]
    assert [patch.get_data().values.tolist() for patch in scores.patches] == [[2, 8], [7, 3]]
    assert [line.get_xdata()[0] for line in scores.lines] == [0.75, 0.375]
    assert scores.get_xlabel() == "belief in labels"
    for axes in figure.axes:
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def ticks(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_scores_that_are_no_probabilities_and_rows_drawn_anew_are_called_so():
    axes = replace(FULL, score_shift=FULL.score_shift | {"belief": False, "reset": True}).figure().axes[3]
    assert axes.get_xlabel() == "score"
    assert axes.get_title() == "forgotten pairs (rows drawn anew)"


@pytest.mark.parametrize(("belief", "what"), [(True, "belief in labels"), (False, "score")])
def test_pairs_of_few_users_are_shown_by_their_means(belief, what):
    means = {"mean_before": 0.75, "mean_after": -0.375, "belief": belief, "reset": False}
    report = replace(FULL, score_shift=means)
    axes = report.figure().axes[3]
    assert [bar.get_height() for bar in axes.patches] == [0.75, -0.375]
    assert ticks(axes) == ["before", "after"]
    assert axes.get_ylabel() == f"mean {what}"
    assert "fewer than five users" in axes.get_xlabel()
    assert "0.75 → -0.375" in next(
        line for line in rendered(report).splitlines() if f"{what} of forgotten pairs" in line
    )
    assert report.scalars()["unlearn/score_shift/mean_after"] == -0.375


def test_the_distribution_of_one_persons_pairs_is_nowhere(trained):
    trainer, _, data = trained(max_epochs=1)
    report = trainer.unlearn(data, request=UnlearningRequest(users=data.user_ids[[4]].tolist()))
    assert report.forgotten_by_split["train"] >= 5
    assert report.score_shift.keys() == {"mean_before", "mean_after", "belief", "reset"}
    assert strict(report.to_json())["score_shift"] == report.score_shift
    assert not [patch for patch in report.figure().axes[3].patches if isinstance(patch, StepPatch)]


def test_the_metrics_can_be_drawn_before_and_after():
    axes = Figure().subplots()
    both = replace(FULL, metrics_after={"auroc": 0.75, "recall@20": 0.24, "ndcg@20": 0.35})
    both.draw_metrics(axes)
    assert [bar.get_height() for bar in axes.patches] == [0.71, 0.25, 0.33, 0.75, 0.24, 0.35]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["AUROC", "Recall@20", "NDCG@20"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]


def test_what_was_not_evaluated_is_said_wherever_it_would_be_shown():
    bare = replace(FULL, metrics_before={}, metrics_after={}, top_changes={}, score_shift={})
    assert FULL.evaluated
    assert not bare.evaluated
    for report, said in ((bare, True), (FULL, False), (DRY, False)):
        assert ("not evaluated" in rendered(report)) == ("not evaluated" in report._repr_html_()) == said
    texts = [[text.get_text() for text in axes.texts] for axes in bare.figure().axes]
    assert texts[2:] == [["not evaluated"]] * 2
    assert all("not evaluated" not in some for some in texts[:2])
    axes = Figure().subplots()
    bare.draw_metrics(axes)
    assert [text.get_text() for text in axes.texts] == ["not evaluated"]


@pytest.mark.parametrize("report", REPORTS)
def test_a_figure_can_be_saved_whatever_is_missing(report, tmp_path):
    report.figure().savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


@pytest.mark.parametrize("dry_run", [False, True])
def test_no_id_of_the_request_is_in_any_of_it(trained, tmp_path, dry_run):
    trainer, _, data = trained()
    request = UnlearningRequest(
        users=data.user_ids[[3, 9]].tolist(),
        items=data.item_ids[[8]].tolist(),
        interactions=[
            (data.user_ids[u], data.item_ids[i]) for u, i in zip(data.test.user, data.test.item, strict=True)
        ],
    )
    ids = [*request.users, *request.items, *(part for pair in request.interactions for part in pair)]
    assert len(ids) > 50
    report = trainer.unlearn(data, request=request, dry_run=dry_run)
    report.figure().savefig(tmp_path / "report.svg")
    shown = "".join(
        [
            report.to_json(),
            repr(report),
            report._repr_html_(),
            rendered(report),
            repr(report.scalars()),
            (tmp_path / "report.svg").read_text(),
        ]
    )
    assert report.digest in shown
    assert not [name for name in ids if name in shown]
    assert set(strict(report.to_json())) >= CONTRACT


def test_the_digest_depends_on_a_key_that_is_not_in_the_report(trained, monkeypatch):
    trainer, _, data = trained()
    request = UnlearningRequest(users=["person-003"])
    digests = []
    for key in ("the key of the one", "the key of the other", "the key of the one"):
        monkeypatch.setenv("LIGHTNING_IFRU_KEY", key)
        digests.append(trainer.unlearn(data, request=request, dry_run=True).digest)
    assert digests[0] == digests[2] != digests[1]
    assert digests[0] == request.digest(b"the key of the one")


def test_a_verdict_stands_with_its_reasons_in_table_page_and_json():
    reasons = ["About 40% may be left: <loose>.", "No step was found."]
    report = replace(FULL, verdict="retrain advised", verdict_reasons=reasons)
    text, page = " ".join(str(report).split()), report._repr_html_()
    assert "Verdict: retrain advised" in text
    assert all(" ".join(reason.split()) in text for reason in reasons[1:])
    assert "Verdict: retrain advised" in page
    assert "&lt;loose&gt;" in page
    assert "Verdict" not in str(BARE)
    assert strict(report.to_json())["verdict_reasons"] == reasons
    trained = UnlearningReport(
        "ab12", 3, {"train": 3}, 0, 0, verdict="retrained", seconds={"retrain": 5.0, "total": 7.0}
    )
    assert "trained anew" in str(trained)
    assert "7.0 / 5.0" in str(trained)
    assert "retrained" in trained._repr_html_()


def test_what_was_forgotten_before_is_said_and_nothing_else():
    report = UnlearningReport("ab12", 0, {"train": 0}, 0, 0, already_absent=3)
    assert "nothing was changed" in str(report)
    assert "residual" not in str(report)
    assert "3" in report._repr_html_()
