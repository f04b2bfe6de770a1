"""The audit's verdict by its written rules, and its table, JSON and page, which name no person."""

import base64
import io
import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console

from lightning_ifru import AuditReport, UnlearningRequest, audit
from lightning_ifru.audit_chance import attack_resamples
from lightning_ifru.audit_figures import attack_figure
from lightning_ifru.audit_report import Attack, Closeness

FIGURES = {
    **{"auroc": 0.75, "auroc_or": 0.74, "auroc_and": None, "recall@20": 0.2, "ndcg@20": 0.15},
    **{"membership_auroc": 0.6, "forgotten_probability": 0.5},
}


def figures(**changes):
    return FIGURES | changes


def close(unlearned, original=0.1, floor=None, cosine=None, among=None):
    among = among or ([] if floor is None else [floor])
    distance = {"original": original, "graph_swapped": original * 0.9, "unlearned": unlearned}
    ratio = unlearned / original
    return Closeness(123, distance, [ratio, ratio], ratio, ratio / 0.9, floor, among, cosine)


MODELS = ("original", "new graph only", "unlearned", "retrained 1", "retrained 2", "retrained 3")


def chance(error=0.005, error_then=0.005, users=45):
    errors = {"unlearned": error, "original": error_then}
    return Attack(567, users, {name: [0.5625, 0.6125] for name in MODELS}, errors)


FULL = AuditReport(
    date="2026-01-02T03:04:05+00:00",
    model="LightGCN",
    versions={"lightning-ifru": "0.1.0", "torch": "2.0"},
    files=[{"role": role, "file": f"{role}&.ckpt", "sha256": "ab" * 32} for role in ("original", "unlearned")],
    requests=[
        {
            **{"digest": "cd" * 32, "time": "2026-01-01T00:00:00+00:00", "num_forgotten": 1234},
            **{"num_users_erased": 3, "num_items_erased": 1, "seconds": 4.25},
        }
    ],
    counts={"forgotten": 1234, "train": 1200, "val": 34, "test": 0},
    erased={"users": 0, "items": 0},
    attack=chance(),
    implicit=False,
    original=figures(membership_auroc=0.9, forgotten_probability=0.8),
    graph_swapped=figures(membership_auroc=0.8),
    unlearned=figures(membership_auroc=0.605),
    retrained=[figures(), figures(membership_auroc=0.58)],
    paired=False,
    closeness={"test": close(0.02, floor=0.02), "forgotten": close(0.021, floor=0.02)},
    overlap={"original": 0.5, "unlearned": 0.7, "retrained": 0.75},
    parameter_distance={},
    embedding_distance={},
)
PAIRED = replace(
    FULL,
    paired=True,
    retrained=[figures()],
    closeness={"test": close(0.05, cosine=0.85), "forgotten": close(0.01, cosine=0.95)},
    overlap={"original": 0.5, "unlearned": 0.7, "retrained": None},
    parameter_distance={"original": 0.3, "unlearned": 0.1},
    embedding_distance={"original": 0.4, "unlearned": 0.2},
    implicit=True,
)
ALONE = replace(FULL, retrained=[], closeness={}, overlap={}, requests=[])
REPORTS = [pytest.param(FULL, id="two seeds"), pytest.param(PAIRED, id="paired"), pytest.param(ALONE, id="alone")]


def rendered(report):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report)
    return console.export_text()


# --- the rules


def answers(report):
    return [finding.answer for finding in report.findings]


def attack(now, then, *retrained, paired=False, **chances):
    models = {"unlearned": figures(membership_auroc=now), "original": figures(membership_auroc=then)}
    reference = [figures(membership_auroc=r) for r in retrained]
    return replace(FULL, retrained=reference, attack=chance(**chances), paired=paired, **models)


@pytest.mark.parametrize(
    ("report", "answer", "words"),
    [
        (attack(0.6, 0.9, 0.6), "yes", "in 60.0."),
        (attack(0.609, 0.9, 0.6), "yes", ""),
        (attack(0.591, 0.9, 0.6), "yes", ""),
        (attack(0.57, 0.9, 0.6, 0.56), "yes", "in 56.0 to 60.0."),
        (attack(0.62, 0.9, 0.6), "partly", ""),
        (attack(0.55, 0.9, 0.6), "partly", ""),
        (attack(0.62, 0.9, 0.6, error=0.03), "cannot be said", "within chance, which is 3.0 of 100"),
        (attack(0.62, 0.9, 0.6, error=0.019), "partly", ""),
        (attack(0.65, 0.9, 0.54, 0.6), "cannot be said", "within chance, which is 6.0 of 100"),
        (attack(0.67, 0.9, 0.54, 0.6), "partly", ""),
        (attack(0.62, 0.9, 0.6, users=4), "cannot be said", "of 4 people only: how far chance goes"),
        (attack(0.6, 0.9, 0.6, users=5), "yes", ""),
        (attack(0.6, 0.9, 0.6, users=1), "cannot be said", "of 1 person only"),
        (attack(0.9, 0.9, 0.6), "cannot be said", "not known well enough"),  # one seed says nothing of chance
        (attack(0.9, 0.9, 0.6, paired=True), "no", ""),
        (attack(0.9, 0.9, 0.6, 0.61), "no", ""),
        (attack(0.9, 0.9, 0.6, 0.61, error=0.3), "cannot be said", "within chance"),
        (attack(0.2, 0.9, 0.6, 0.61), "no", ""),
        (attack(0.8, 0.79, 0.6, 0.7), "cannot be said", "nothing that is beyond chance"),
        (attack(0.82, 0.81, 0.6, 0.7), "cannot be said", "not known well enough"),
        (attack(0.92, 0.91, 0.6, 0.7), "no", ""),
        (attack(0.605, 0.605, 0.6), "cannot be said", "nothing that is beyond chance"),
        (attack(0.6, 0.7, 0.6, error_then=0.2), "cannot be said", "nothing that is beyond chance"),
        (attack(0.65, 0.605, 0.6, 0.6), "cannot be said", "nothing that is beyond chance"),
        (attack(0.5, 0.9), "cannot be said", "the trace is weaker"),
    ],
)
def test_the_attack_is_judged_by_the_range_of_the_retrained_and_by_chance(report, answer, words):
    finding = report.findings[0]
    assert finding.answer == answer
    assert words in finding.because


@pytest.mark.parametrize(
    ("closeness", "paired", "answer"),
    [
        (close(0.021, floor=0.02), False, "yes"),
        (close(0.01, floor=0.02), False, "yes"),
        (close(0.022, floor=0.02), False, "partly"),
        (close(0.029, floor=0.02, among=[0.01, 0.02, 0.03]), False, "yes"),
        (close(0.031, floor=0.02, among=[0.01, 0.02, 0.03]), False, "partly"),
        (close(0.035, original=0.031, floor=0.02, among=[0.01, 0.02, 0.03]), False, "cannot be said"),
        (close(0.06, original=0.031, floor=0.02, among=[0.01, 0.02, 0.03]), False, "cannot be said"),
        (close(0.061, original=0.031, floor=0.02, among=[0.01, 0.02, 0.03]), False, "no"),
        (close(0.5, original=0.03, floor=0.02, among=[0.01, 0.02, 0.03]), False, "cannot be said"),
        (close(0.091, floor=0.02), False, "partly"),
        (close(0.093, floor=0.02), False, "no"),
        (close(0.11, floor=0.02), False, "no"),
        (close(0.02, original=0.021, floor=0.02), False, "cannot be said"),
        (close(0.001, original=0.021, floor=0.02), False, "cannot be said"),
        (close(0.003, original=0.34, floor=5e-8), False, "yes"),  # rows of the erased decay to nothing
        (close(0.01), False, "yes"),
        (close(0.011), False, "partly"),
        (close(0.089), False, "partly"),
        (close(0.091), False, "cannot be said"),  # without a floor there is no saying how near is near
        (close(0.2), False, "cannot be said"),
        (close(0.45, original=0.5), False, "cannot be said"),
        (close(0.01), True, "yes"),
        (close(0.011), True, "partly"),
        (close(0.449, original=0.5), True, "partly"),
        (close(0.45, original=0.5), True, "no"),
        (close(0.091), True, "no"),
        (close(0.0099, original=0.0099), True, "cannot be said"),
        (close(0.02, original=0.0099), True, "cannot be said"),
        (close(0.0005, original=0.0099), True, "yes"),
        (close(0.011, original=0.011), True, "no"),
        (close(0.091, floor=0.2), True, "cannot be said"),  # declared to be paired, and far from each other
    ],
)
@pytest.mark.parametrize("pairs", ["test", "forgotten"])
def test_the_distance_is_judged_by_the_noise_floor_or_against_the_paired(closeness, paired, answer, pairs):
    report = replace(FULL, closeness={**FULL.closeness, pairs: closeness}, paired=paired)
    assert answers(report)[{"forgotten": 1, "test": 2}[pairs]] == answer
    assert answers(replace(report, closeness={}))[1:3] == ["cannot be said"] * 2


def test_what_is_left_is_told_from_chance_where_chance_is_known():
    told = replace(FULL, closeness={"forgotten": close(0.04, floor=0.02)}).findings[1].because
    assert "0.0400 away" in told
    assert "the original's 0.1000, and those of retrained models from each other 0.0200: 25% of what is beyond" in told
    told = replace(FULL, closeness={"forgotten": close(0.04)}).findings[1].because
    assert "the original's 0.1000: 40% of the distance is left. How much of it is chance cannot be told" in told
    told = replace(FULL, closeness={"forgotten": close(0.039, original=0.03, floor=0.02)}).findings[1].because
    assert told.endswith("is left. Yet it may be chance, being at most 2 times what retrained models differ by.")
    told = replace(FULL, closeness={"forgotten": close(0.04)}, paired=True).findings[1].because
    assert told.endswith("40% of the distance is left.")


@pytest.mark.parametrize(
    ("now", "retrained", "original", "answer"),
    [
        (0.748, [0.75], 0.9, "yes"),
        (0.9, [0.75], 0.75, "yes"),
        (0.747, [0.75], 0.7, "no"),
        (0.747, [0.74, 0.75], 0.9, "yes"),
        (0.747, [], 0.7475, "yes"),
        (0.747, [], 0.75, "no"),
        (None, [None], None, "cannot be said"),
    ],
)
def test_the_usefulness_is_judged_against_the_retrained_or_else_the_original(now, retrained, original, answer):
    models = {"unlearned": figures(auroc=now), "original": figures(auroc=original)}
    report = replace(FULL, retrained=[figures(auroc=value) for value in retrained], **models)
    assert answers(report)[3] == answer


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        (FULL, "behaves like one that was trained without"),
        (replace(FULL, unlearned=figures(membership_auroc=0.605, auroc=0.5)), "behaves like one that was trained"),
        (replace(FULL, unlearned=figures(membership_auroc=0.7)), "agree with forgetting in part"),
        (replace(FULL, closeness={**FULL.closeness, "test": close(0.2, floor=0.02)}), "speaks against"),
        (ALONE, "cannot be said"),
    ],
)
def test_the_verdict_follows_from_the_answers_and_never_says_proved(report, wanted):
    assert wanted in report.verdict
    for text in (report.verdict, rendered(report), report.to_html()):
        assert not re.search(r"prove[nd]\b", text)


@pytest.mark.parametrize(
    ("report", "present", "absent"),
    [
        (FULL, ["their files say"], ["There was no retrained", "one retrained", "declared"]),
        (PAIRED, ["is what was declared", "no chances of anything"], ["There was no retrained", "have no scale"]),
        (ALONE, ["not measured at all"], ["their files say", "declared"]),
        (replace(FULL, retrained=[figures()]), ["the distances have no scale"], ["not measured at all"]),
    ],
    ids=["two seeds", "paired", "alone", "one"],
)
def test_what_it_does_not_prove_depends_on_what_there_was(report, present, absent):
    text = " ".join(report.limits)
    for words in [*present, "backups", "Stronger attacks", "averages", "logs", "older checkpoints", "567"]:
        assert words in text
    for words in absent:
        assert words not in text


def test_chance_is_that_of_drawing_people_with_all_their_pairs():
    rng = np.random.default_rng(0)
    user = rng.integers(0, 9, 40) * 3
    member, other = rng.integers(0, 6, 40) * 1.0, rng.integers(0, 5, 40) * 1.0
    found = attack_resamples(*map(torch.from_numpy, (member, other, user)), seed=4, resamples=30)
    people = sorted(set(user.tolist()))
    drawn = torch.randint(len(people), (30, len(people)), generator=torch.Generator().manual_seed(4)).tolist()
    for area, once in zip(found.tolist(), drawn, strict=True):
        mine = [k for place in once for k in np.flatnonzero(user == people[place])]
        wins = [(member[p] > other[q]) + (member[p] == other[q]) / 2 for p in mine for q in mine]
        assert area == pytest.approx(np.mean(wins), abs=1e-12)
    one = attack_resamples(torch.ones(30), torch.zeros(30), torch.zeros(30, dtype=torch.long), seed=0)
    assert one.tolist() == [1.0] * 1000


def test_chance_is_as_wide_as_figures_of_other_people_are():
    rng = np.random.default_rng(0)

    def draw():
        """60 people with 5 pairs each, who have a level of their own: their pairs stand or fall together."""
        level = np.repeat(rng.normal(0, 1, 60), 5)
        return level + rng.normal(0.7, 0.5, 300), np.repeat(rng.normal(0, 1, 60), 5) + rng.normal(0, 0.5, 300)

    areas = [(m[:, None] > o).mean() for m, o in (draw() for _ in range(300))]
    user = torch.arange(60).repeat_interleave(5)
    spreads = [float(attack_resamples(*map(torch.from_numpy, draw()), user, seed=0).std()) for _ in range(8)]
    assert np.mean(spreads) == pytest.approx(np.std(areas), rel=0.15)
    alone = torch.arange(300)
    independent = float(attack_resamples(*map(torch.from_numpy, draw()), alone, seed=0).std())
    assert independent < 0.7 * np.std(areas)


def test_the_attacks_figure_shows_the_band_that_counts_as_retrained_and_chance():
    axes = attack_figure(FULL).axes[0]
    (band,) = axes.patches
    left, right = band.get_x(), band.get_x() + band.get_width()
    assert (left, right) == pytest.approx((57, 61))  # .58 and .60, a hundredth further
    bars = [line.get_segments()[0][:, 0] for line in axes.collections]
    assert len(bars) == len(FULL.models)
    assert bars[0] == pytest.approx([56.25, 61.25])
    assert not attack_figure(ALONE).axes[0].patches


def test_chance_in_training_is_shown_only_where_it_is_known():
    assert "by the dashed line" in FULL.to_html()
    assert "that takes two retrained models" not in FULL.to_html()
    assert "that takes two retrained models" in PAIRED.to_html()
    assert "by the dashed line" not in PAIRED.to_html()


def test_of_the_erased_it_is_said_that_their_own_pairs_say_little():
    assert "drawn anew" not in " ".join(FULL.limits)
    for users, items, words in ((2, 0, "2 people and 0 items"), (0, 1, "0 people and 1 item")):
        said = " ".join(replace(FULL, erased={"users": users, "items": items}).limits)
        assert f"Of {words} nothing is left" in said


def test_of_too_few_people_no_chance_is_shown():
    few = replace(FULL, attack=Attack(567, 1, {}, {"unlearned": 0.0, "original": 0.0}))
    assert "567 forgotten pairs of 1 person; those" in " ".join(few.limits)
    assert "cannot be told from so few people" in " ".join(few.limits)
    assert not attack_figure(few).axes[0].collections
    assert "567 forgotten pairs of 1 person." in few.to_html()
    assert "567 forgotten pairs of 45 people." in FULL.to_html()
    assert "between 56.2 and 61.3 of 100" in " ".join(FULL.limits)


# --- the forms


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("report", REPORTS)
def test_json_has_the_numbers_and_what_they_mean(report):
    content = strict(report.to_json())
    assert set(content) == {field.name for field in fields(AuditReport)} | {"verdict", "findings", "limits"}
    assert content["unlearned"] == report.unlearned
    assert content["verdict"] == report.verdict
    assert [finding["answer"] for finding in content["findings"]] == answers(report)
    assert all(finding["rule"] for finding in content["findings"])
    if report.closeness:
        assert content["closeness"]["test"]["ratio"] == report.closeness["test"].ratio


@pytest.mark.parametrize("report", REPORTS)
def test_the_table_fits_eighty_columns(report):
    text = rendered(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    rows = [line for line in text.splitlines() if "│ unlearned" in line or "│ original" in line]
    assert "0.605" in rows[1]
    flat = re.sub(r"[\s│]+", " ", text)
    for shown in (
        "1,234",
        "What this does not prove",
        report.verdict,
        report.limits[-1],
        report.findings[0].question[:40],
    ):
        assert re.sub(r"\s+", " ", shown) in flat, shown


class Page(HTMLParser):
    """Checks that what is opened is closed, and keeps tags, addresses and text."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.sources, self.alt, self.text = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        assert not [name for name in given if name.startswith("on") or name in ("href", "srcset", "action")]
        if tag == "img":
            self.sources.append(given["src"])
            self.alt.append(given["alt"])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def drawings(page):
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    return [base64.b64decode(source.partition(",")[2]).decode() for source in page.sources]


@pytest.mark.parametrize("report", REPORTS)
def test_the_page_parses_and_needs_nothing_from_outside(report):
    html = report.to_html()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert "$" not in html
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    figures = drawings(page)
    assert len(figures) == (3 if report.closeness else 2)
    assert all(page.alt)
    for figure in figures:
        ElementTree.fromstring(figure)
        assert "<script" not in figure
        assert not re.search(r"(href|src)=\"(?!#)", figure)
    assert page.tags.count("figcaption") == len(figures)
    assert html.count("How to read it") >= len(figures) + 1


@pytest.mark.parametrize("report", REPORTS)
def test_the_page_says_all_that_the_report_says(report):
    text = re.sub(r"\s+", " ", " ".join(Page(report.to_html()).text))
    for finding in report.findings:
        for said in (finding.question, finding.because, finding.rule):
            assert said in text
    for said in (
        report.verdict,
        *report.limits,
        "Signature",
        "Place and date",
        "original&.ckpt",
        "ab" * 32,
        "2026-01-02",
    ):
        assert said in text
    wanted = ["cd" * 32, "1,234", "4.2"] if report.requests else ["holds no record of a request"]
    for said in [*wanted, "0.7500", "LightGCN", "torch 2.0"]:
        assert said in text
    if report is PAIRED:
        for said in ("0.85 on test pairs and 0.95 on forgotten pairs", "0.100 of their size", "0.200"):
            assert said in text
    kinds = "one drawn at random" if report.implicit else "one that was not"
    assert kinds in text
    if report is ALONE:
        assert "the trace is weaker than before" in text
        assert "Not measured: there were no retrained model" in text.replace(" :", ":")
    if report is FULL:
        assert "21% (21% to 21%)" in text
        assert "75%" in text


def test_the_same_report_is_the_same_page():
    assert FULL.to_html() == FULL.to_html()


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_no_id_of_anybody_is_in_any_of_it(trained, make_data, make_model, make_trainer, tmp_path, loss):
    trainer, _, data = trained(loss)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    names = [*data.user_ids.tolist(), *data.item_ids.tolist()]
    trainer.unlearn(data, request=UnlearningRequest(users=data.user_ids[[3, 9, 12, 20, 21]].tolist()))
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    files = {"original": tmp_path / "a.ckpt", "unlearned": tmp_path / "b.ckpt"}
    report = audit(make_trainer(), make_data(loss), model=make_model(loss), output=tmp_path / "out", **files)
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    shown = [html, *drawings(Page(html)), (tmp_path / "out.json").read_text(encoding="utf-8"), rendered(report)]
    shown.append(repr(report))
    assert len(names) == 70
    for text in shown:
        assert not re.search(r"person-|film-", text)
    assert report.requests[0]["digest"] in html
