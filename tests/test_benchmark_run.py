"""The experiment's machinery: protocol, measures, rows, the command itself, and the tables made of its rows."""

import doctest
import json
import math
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import protocol
import pytest
import rows
import summary
import torch
from measure import RANDOM_PAIRS, Probe, measure, seed_cosines
from methods.local import Local
from plan import ALL_METHODS, Block, Config, jobs_of, tasks_of
from protocol import DataSettings, Deletion, Ratings, core
from recipes import Recipe, Scorer
from rows import FILE, RowFile, key_of, provenance, read_rows
from run import main
from selection import averaged_key, select
from summary import Estimate, difference, jackknife, metric
from tables import SECTIONS, Column, fill, speed_table, table
from targets import targets

import lightning_ifru

RUN = Path(__file__).parents[1] / "examples" / "benchmarks"
BCE, BPR = Recipe("mf", loss="bce"), Recipe("mf", loss="bpr")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Ratings of rank 2 by 60 users of 40 items, some of them rare."""
    rng = np.random.default_rng(7)
    taste, trait = rng.normal(size=(60, 2)), rng.normal(size=(40, 2))
    seen = rng.random((60, 40)) < np.linspace(0.02, 0.6, 40)
    user, item = np.nonzero(seen)
    rating = np.clip(np.rint(3.4 + (taste @ trait.T)[seen] + 0.3 * rng.normal(size=len(user))), 1, 5)
    frame = pd.DataFrame({"user": [f"u{u}" for u in user], "item": [f"i{i}" for i in item], "rating": rating})
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    frame.sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def ratings(file):
    return Ratings.read(file, DataSettings())


# --- protocol -----------------------------------------------------------------------------------------------------


def naive_core(pairs, least):
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        left = [(u, i) for u, i in pairs if users.count(u) >= least and items.count(i) >= least]
        if left == pairs:
            return left
        pairs = left


@pytest.mark.parametrize(("least", "seed"), [(2, 0), (3, 1), (5, 2), (9, 3)])
def test_the_core_is_that_of_a_naive_loop(least, seed):
    rng = np.random.default_rng(seed)
    pairs = sorted({(int(u), int(i)) for u, i in zip(rng.geometric(0.1, 300), rng.geometric(0.1, 300), strict=True)})
    found = core(pd.DataFrame(pairs, columns=["user", "item"]), least)
    wanted = naive_core(pairs, least)
    assert list(found.itertuples(index=False, name=None)) == wanted
    once = [(u, i) for u, i in pairs if sum(v == u for v, _ in pairs) >= least]
    assert least == 9 or 0 < len(wanted) < len(once)  # one pass over the users would not have been enough


def test_ratings_above_three_are_positive_and_three_fifths_train(ratings):
    data = ratings.source(BCE, Deletion("users", 0.1))()
    wanted = {(r.user, r.item): float(r.rating > 3) for r in ratings.frame.itertuples()}
    found = {
        (data.user_ids[u], data.item_ids[i]): label
        for split in (data.train, data.val, data.test)
        for u, i, label in zip(split.user.tolist(), split.item.tolist(), split.label.tolist(), strict=True)
    }
    assert found == wanted
    assert 0 < sum(wanted.values()) < len(wanted)
    assert [round(len(split) / len(wanted), 2) for split in (data.train, data.val, data.test)] == [0.6, 0.2, 0.2]
    implicit = ratings.source(BPR, Deletion("users", 0.1))()
    assert not implicit.labelled
    assert len(implicit.train) + len(implicit.val) + len(implicit.test) == sum(wanted.values())


@pytest.mark.parametrize("fraction", [0.01, 0.02, 0.05])
def test_the_last_training_labels_are_flipped_and_then_asked_to_be_forgotten(ratings, fraction):
    deletion = Deletion("flipped", fraction)
    clean, planted = (ratings.source(BCE, d)() for d in (Deletion("users", 0.1), deletion))
    wanted = math.ceil(fraction * len(clean.train))
    changed = (clean.train.label != planted.train.label).nonzero().flatten()
    assert changed.tolist() == list(range(len(clean.train) - wanted, len(clean.train)))
    assert torch.equal(clean.test.label, planted.test.label)
    assert torch.equal(clean.val.label, planted.val.label)
    planted.forget(ratings.request(deletion, planted))
    removal = planted.removal()
    assert removal.counts == {"train": wanted, "val": 0, "test": 0}
    planted.commit(removal)
    assert torch.equal(planted.train.label, clean.train.label[:-wanted])


def test_of_implicit_feedback_the_wrong_positives_are_forgotten_and_the_wrong_negatives_lack(ratings):
    deletion = Deletion("flipped", 0.05)
    clean, planted = (ratings.source(BPR, d)() for d in (Deletion("users", 0.1), deletion))
    request = ratings.request(deletion, planted)
    rating = {(r.user, r.item): r.rating for r in ratings.frame.itertuples()}
    assert all(rating[pair] <= 3 for pair in request.interactions)
    total = len(clean.table) - (
        math.ceil(0.05 * len(ratings.source(BCE, deletion)().train)) - len(request.interactions)
    )
    assert len(planted.table) == total + len(request.interactions)
    planted.forget(request)
    planted.commit(planted.removal())
    assert int(planted.table.alive.sum()) == total


@pytest.mark.parametrize("recipe", [BCE, BPR], ids=["bce", "bpr"])
@pytest.mark.parametrize("kind", ["users", "interactions", "active", "popular"])
def test_a_deletion_takes_its_fraction_and_is_always_the_same(ratings, kind, recipe):
    deletion = Deletion(kind, 0.1)
    data = ratings.source(recipe, deletion)()
    users, items = (torch.bincount(column) for column in (data.train.user, data.train.item))
    request = ratings.request(deletion, data)
    assert request == ratings.request(deletion, ratings.source(recipe, deletion)())
    data.forget(request)
    removal = data.removal()
    wanted = math.ceil(0.1 * len(data.train))
    gone = removal.rows & data.table.rows("train")
    if kind == "users":
        assert len(request.users) == math.ceil(0.1 * int((users > 0).sum()))
        assert not request.items
        assert not request.interactions
    elif kind == "popular":
        chosen = items[removal.items].sort(descending=True).values.tolist()
        assert chosen == items.sort(descending=True).values[: len(chosen)].tolist()
        assert sum(chosen[:-1]) < wanted <= sum(chosen)
    else:
        assert removal.counts == {"train": wanted, "val": 0, "test": 0}
        lost = torch.bincount(data.table.user[gone], minlength=len(users))
        if kind == "active":
            touched = lost.nonzero().flatten()
            assert users[touched].min() >= users[lost == 0].max()
            assert int((lost[touched] == users[touched] // 2).sum()) >= len(touched) - 1
            assert (lost <= users // 2).all()
        else:
            assert len(lost.nonzero()) > wanted / 4


# --- measures -----------------------------------------------------------------------------------------------------


def sigma(scores):
    return 1 / (1 + np.exp(-np.asarray(scores, dtype=np.float64)))


def naive_auroc(scores, positive):
    wins = [(p > q) + 0.5 * (p == q) for p in scores[positive] for q in scores[~positive]]
    return sum(wins) / len(wins)


@pytest.fixture(scope="module")
def views(ratings):
    """A deletion of users, and random models: unlearned, original, swapped, paired, and three free."""
    recipe, deletion = BCE, Deletion("users", 0.2)
    data = ratings.source(recipe, deletion)()
    data.forget(ratings.request(deletion, data))
    removal = data.removal()
    probe = Probe.of(data, removal, seed=3)
    generator = torch.Generator().manual_seed(0)
    nodes = data.num_users + data.num_items
    tables = [torch.randn(nodes, 4, generator=generator) for _ in range(7)]
    scorers = [Scorer(h, data.num_users, {"table": h}) for h in tables]
    return data, removal, probe, scorers, [probe.view(scorer) for scorer in scorers]


def test_pairs_are_those_that_survive_those_forgotten_and_random_ones_of_who_stays(views):
    data, removal, probe, _, _ = views
    erased = set(removal.users.tolist())
    assert len(erased) == 12
    test = [(u, i) for u, i in zip(data.test.user.tolist(), data.test.item.tolist(), strict=True) if u not in erased]
    assert list(zip(*(part.tolist() for part in probe.groups["test"]), strict=True)) == test
    assert 0 < len(test) < len(data.test)
    assert set(probe.groups["forgotten"][0].tolist()) == erased
    assert len(probe.groups["forgotten"][0]) == removal.counts["train"]
    assert len(probe.groups["random"][0]) == RANDOM_PAIRS
    assert not erased & set(probe.groups["random"][0].tolist())
    forgotten_items = set(probe.groups["forgotten"][1].tolist())
    assert probe.touched[1].tolist() == [i in forgotten_items for _, i in test]
    assert not probe.touched[0].any()
    everything = set(zip(data.table.user.tolist(), data.table.item.tolist(), strict=True))
    members, others = (
        list(zip(*(p.tolist() for p in pairs), strict=True)) for pairs in (probe.members, probe.nonmembers)
    )
    assert [u for u, _ in members] == [u for u, _ in others]
    assert not everything & set(others)
    assert len(members) >= 20


def test_measures_are_those_of_naive_loops(views):
    data, _, probe, scorers, (unlearned, original, swapped, paired, *free) = views
    found = measure(unlearned, original, swapped, paired, free)
    h = [scorer.h.double().numpy() for scorer in scorers]
    offset = data.num_users
    for name, (user, item) in probe.groups.items():
        pairs = list(zip(user.tolist(), item.tolist(), strict=True))
        u, o, s, p, *f = (sigma([table[a] @ table[offset + b] for a, b in pairs]) for table in h)
        wanted = {
            f"distance.{name}.paired": abs(u - p).mean(),
            f"original.distance.{name}.paired": abs(o - p).mean(),
            f"swapped.distance.{name}.paired": abs(s - p).mean(),
            f"ratio.{name}.paired": abs(u - p).sum() / abs(o - p).sum(),
            f"ratio.{name}.paired.swapped": abs(u - p).sum() / abs(s - p).sum(),
            f"cosine.{name}.paired": (u - o) @ (p - o) / np.linalg.norm(u - o) / np.linalg.norm(p - o),
            f"cosine.{name}.paired.swapped": (u - s) @ (p - s) / np.linalg.norm(u - s) / np.linalg.norm(p - s),
            f"distance.{name}.free": [abs(u - one).mean() for one in f],
            f"floor.{name}.without": [abs(f[a] - f[b]).mean() for a, b in ((1, 2), (0, 2), (0, 1))],
            f"ratio.{name}.free": [abs(u - one).sum() / abs(o - one).sum() for one in f],
            f"floor.{name}": np.mean([abs(f[a] - f[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]),
        }
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, abs=1e-6), key
    scores = (h[0][probe.test.user] * h[0][offset + probe.test.item]).sum(1)
    assert found["auroc.all"] == pytest.approx(naive_auroc(scores, probe.test.label.numpy() > 0), abs=1e-6)
    members, others = ((h[0][a] * h[0][offset + b]).sum(1) for a, b in (probe.members, probe.nonmembers))
    both = np.concatenate([members, others])
    assert found["membership"] == pytest.approx(naive_auroc(both, np.arange(len(both)) < len(members)), abs=1e-6)
    kept = probe.kept.numpy()
    assert kept.sum() == len(kept) - 12
    apart, norm = (h[0] - h[3])[kept], np.linalg.norm(h[3][kept])
    assert found["embedding.paired"] == pytest.approx(np.linalg.norm(apart, axis=1).mean(), abs=1e-6)
    assert found["parameter.paired"] == pytest.approx(np.linalg.norm(apart) / norm, abs=1e-6)


def test_recommendations_are_those_of_a_naive_loop(views):
    data, removal, _, scorers, (unlearned, _, _, paired, *_) = views
    erased = set(removal.users.tolist())

    def naive_top(h, user):
        seen = {i for u, i in zip(data.train.user.tolist(), data.train.item.tolist(), strict=True) if u == user}
        score = {i: float(h[user] @ h[data.num_users + i]) for i in range(data.num_items) if i not in seen}
        return sorted(score, key=score.get, reverse=True)[:20]

    truth = {}
    for u, i, label in zip(data.test.user.tolist(), data.test.item.tolist(), data.test.label.tolist(), strict=True):
        if label and u not in erased:
            truth.setdefault(u, set()).add(i)
    tops = [[naive_top(scorers[k].h, user) for user in sorted(truth)] for k in (0, 3)]
    recalls = [len(set(top) & truth[user]) / len(truth[user]) for user, top in zip(sorted(truth), tops[0], strict=True)]
    ndcgs = []
    for user, top in zip(sorted(truth), tops[0], strict=True):
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(top) if item in truth[user])
        ndcgs.append(gain / sum(1 / math.log2(place + 2) for place in range(min(20, len(truth[user])))))
    assert unlearned.quality["recall@20"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert unlearned.quality["ndcg@20"] == pytest.approx(np.mean(ndcgs), abs=1e-6)
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(*tops, strict=True)]
    found = measure(unlearned, unlearned, unlearned, paired)
    assert found["overlap.paired"] == pytest.approx(np.mean(shared), abs=1e-6)
    assert found["distance.test.free"] == []
    assert found["floor.test"] is None
    assert found["cosine.test.paired"] is None


def test_changes_are_averaged_over_seeds_before_their_cosine_is_taken():
    rng = np.random.default_rng(0)
    original, change = rng.normal(size=(30, 50)), rng.normal(size=50)
    noisy = [original + 0.1 * change + rng.normal(size=original.shape) for _ in range(2)]
    arrays = {
        "unlearned.test": noisy[0],
        "paired.test": noisy[1],
        "original.test": original,
        "swapped.test": original + 1,
    }
    seeds = [{name: torch.from_numpy(values[k]) for name, values in arrays.items()} for k in range(30)]
    found = seed_cosines(seeds)
    for start, end in (("original.test", ""), ("swapped.test", ".swapped")):
        u, r = ((sigma(after) - sigma(arrays[start])).mean(0) for after in noisy)
        assert found[f"cosine.test.paired{end}"] == pytest.approx(u @ r / np.linalg.norm(u) / np.linalg.norm(r))
    assert found["cosine.test.paired"] > 2 * seed_cosines(seeds[:1])["cosine.test.paired"]


# --- rows and plan ------------------------------------------------------------------------------------------------


def test_a_torn_line_is_no_row_and_is_cut_off_before_the_next(tmp_path):
    RowFile(tmp_path).append({"key": "a", "value": math.inf})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"key": "b", "val')
    assert read_rows(tmp_path) == [{"key": "a", "value": None}]
    RowFile(tmp_path).append({"key": "c"})
    assert [row["key"] for row in read_rows(tmp_path)] == ["a", "c"]
    (tmp_path / FILE).write_text('{"key": "a"}\nnot a row\n{"key": "c"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_rows(tmp_path)


def test_a_row_says_where_it_comes_from_but_names_neither_host_nor_paths():
    said = provenance(workers=2)
    assert said["hardware"]["workers"] == 2
    assert said["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{40}", said["commit"] or "0" * 40)
    text = json.dumps(said)
    assert socket.gethostname() not in text
    assert "/" not in text.replace("+00:00", "").replace(said["hardware"]["cpu"], "")


def test_every_task_is_made_once_and_its_key_depends_on_every_setting(ratings):
    config = Config.read(Path("smoke.yaml"))
    tasks = tasks_of(config, ratings.described(), config.suites)
    assert len({task["key"] for task in tasks}) == len(tasks) == sum(len(job.tasks) for job in jobs_of(tasks))
    block = {"recipes": ["a"], "deletions": [Deletion("users", 0.1)], "methods": ["ifru"], "seeds": 2}

    def keys(recipe=BPR, data=ratings, **changes):
        one = Config({"a": recipe}, {"s": [Block(**block | changes)] * 2})
        return {task["key"] for task in tasks_of(one, data.described(), ["s"])}

    assert len(keys()) == 2
    assert keys(seeds=1) < keys()
    others = [keys(recipe=BCE), keys(recipe=Recipe("mf", loss="bpr", lr=0.5)), keys(retraining_seeds=1)]
    others += [keys(deletions=[Deletion("users", 0.2)]), keys(methods=["scif"])]
    others.append(keys(data=Ratings(ratings.frame, DataSettings(seed=1), ratings.digest)))
    assert all(not keys() & other for other in others)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("recipes: {a: {model: mf}}\nsuites: {s: [{recipes: [b], deletions: [], methods: []}]}", "no recipe 'b'"),
        ("recipes: {a: {model: mf}}\nsuites: {s: [{recipes: [a], deletions: [], methods: [x]}]}", "no method 'x'"),
        ("recipes: {a: {model: mf, layers: 2}}\nsuites: {}", "layers"),
        (None, "no configuration"),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_sentence(tmp_path, file, text, sentence):
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Config.read(path)


# --- the command --------------------------------------------------------------------------------------------------


def command(file, folder, *more):
    return [
        sys.executable,
        str(RUN / "run.py"),
        "--config",
        "smoke.yaml",
        "--data",
        str(file),
        "--rows",
        str(folder),
        *more,
    ]


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    words = command(file, folder, "--workers", "2")
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 rows made, 0 were there, 0 failed." in done.stdout
    assert re.search(r"\[1/30, .* left\] flipped, .*-bce, flipped \d%, seed 0, ifru: \d", done.stdout)
    return folder


def test_every_combination_is_a_row_with_what_a_row_must_have(folder):
    rows = read_rows(folder)
    single = [row for row in rows if row["seed"] is not None]
    assert len(single) == 30
    for row in single:
        assert {"commit", "date", "python", "versions", "hardware", "settings", "peak_memory_mb"} <= row.keys()
        assert row["seconds"]["total"] > 0
        assert row["hardware"]["workers"] == 2
        assert row["hardware"]["threads"] == 1
        assert row["peak_memory_mb"] >= row["memory_before_mb"] > 50
        assert row["seconds"]["cpu"] > 0
        assert row["metrics"]["distance.test.paired"] is not None
        if row["method"] == "retraining-paired":
            assert row["metrics"]["distance.random.paired"] == 0
        if row["method"] == "graph-swap" and row["recipe"] != "mf-bce":
            assert row["metrics"]["ratio.random.paired.swapped"] == pytest.approx(1, abs=1e-6)
            assert row["metrics"]["cosine.random.paired"] is not None
    flipped = [row for row in single if row["suite"] == "flipped"]
    for row in flipped:
        free, floors = row["metrics"]["distance.test.free"], row["metrics"]["floor.test.without"]
        assert (len(free), len(floors)) == ((2, 0) if row["deletion"] == "flipped 2%" else (3, 3))
        assert len(set(free)) == len(free)  # seeds of their own,
        assert min(free) > 1e-4  # none of them that of the paired or of the method's retraining
        assert row["metrics"]["floor.test"] > 1e-4
    assert len({row["settings"]["deletion"]["fraction"] for row in flipped}) == 2
    forgotten = {row["deletion"]: row["forgotten"] for row in single}
    assert forgotten["flipped 5%"] > 2 * forgotten["flipped 2%"]
    assert forgotten["interactions 5%"] > 3 * forgotten["interactions 1%"]
    averages = [row for row in rows if row["seed"] is None]
    assert len(averages) == 3 * 3
    assert all(row["seeds"] == [0, 1] for row in averages)
    assert {row["metrics"]["cosine.test.paired"] is None for row in averages} == {False}


@pytest.fixture
def again(file, capsys):
    """Run the command in this process, which is the faster way, and return what it says."""
    threads = torch.get_num_threads()

    def run(folder, *more):
        assert main(command(file, folder, *more)[2:]) == 0
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_a_second_run_does_nothing_and_a_torn_one_makes_what_it_lost(again, folder):
    path = folder / FILE
    before = path.read_bytes()
    assert "0 rows made, 30 were there, 0 failed." in again(folder)
    assert path.read_bytes() == before
    lines = before.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:14]) + lines[14][:40])
    models = {model.name: model.stat().st_mtime_ns for model in (folder / "models").glob("*.pt")}
    assert "16 rows made, 14 were there, 0 failed." in again(folder)
    assert {model.name: model.stat().st_mtime_ns for model in (folder / "models").glob("*.pt")} == models
    was, now = (
        {row["key"]: row["metrics"] for row in map(json.loads, text.splitlines())}
        for text in (before, path.read_bytes())
    )
    assert now.keys() == was.keys()
    for key, metrics in was.items():
        assert now[key].keys() == metrics.keys()
        for name, value in metrics.items():
            assert now[key][name] == value or now[key][name] == pytest.approx(value, abs=1e-6), name


def test_a_killed_run_goes_on_where_it_was(again, file, tmp_path):
    words = command(file, tmp_path, "--suite", "deletions")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while len(read_rows(tmp_path)) < 2 and running.poll() is None:
            time.sleep(0.02)
        running.kill()
    kept = len(read_rows(tmp_path))
    assert 2 <= kept < 18
    assert f"{18 - kept} rows made, {kept} were there, 0 failed." in again(tmp_path, "--suite", "deletions")
    rows = [row for row in read_rows(tmp_path) if row["seed"] is not None]
    assert len(rows) == len({row["key"] for row in rows}) == 18


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--suite", "nonsense"), "there is no suite 'nonsense'"),
        (("--workers", "0"), "--workers 0 is too few"),
        (("--data", "absent.csv"), "there is no file"),
        (("--config", "absent.yaml"), "no configuration 'absent.yaml'"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_sentence(file, tmp_path, capsys, more, sentence):
    with pytest.raises(SystemExit) as refusal:
        main(command(file, tmp_path, *more)[2:])
    assert refusal.value.code == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_a_method_that_fails_is_said_and_the_others_go_on(file, tmp_path, capsys, monkeypatch):
    class Failing(Local):
        def forget(self, original, request):
            raise RuntimeError("no way to forget")

    monkeypatch.setitem(ALL_METHODS, "ifru", lambda: Failing("ifru", reset=False))
    assert main([*command(file, tmp_path, "--suite", "flipped")[2:]]) == 1
    said = capsys.readouterr().out
    assert "no way to forget" in said
    assert "9 rows made, 0 were there, 3 failed." in said
    assert "ifru" not in {row["method"] for row in read_rows(tmp_path)}


def test_a_training_that_fails_is_said_and_other_deletions_go_on(file, tmp_path, capsys, monkeypatch):
    request = Ratings.request

    def failing(self, deletion, data):
        if deletion.name == "interactions 1%":
            raise RuntimeError("nobody to forget")
        return request(self, deletion, data)

    monkeypatch.setattr(Ratings, "request", failing)
    assert main([*command(file, tmp_path, "--suite", "deletions")[2:]]) == 1
    said = capsys.readouterr().out
    assert said.count("RuntimeError: nobody to forget") == 2
    assert "12 rows made, 0 were there, 6 failed." in said
    assert {row["deletion"] for row in read_rows(tmp_path)} == {"users 2%", "interactions 5%"}


def test_partial_retraining_is_held_to_its_own_and_its_quality_to_one_model(file, tmp_path, capsys):
    path = tmp_path / "partial.yaml"
    path.write_text(
        "recipes: {a: {model: lightgcn, num_layers: 1, embedding_dim: 4, lr: 0.05, epochs: 2, batch_size: 64}}\n"
        "data: {core: 2}\n"
        "suites: {s: [{recipes: [a], deletions: [{kind: interactions, fraction: 0.01}],"
        " methods: [sisa, receraser, graph-swap], seeds: 2}]}"
    )
    assert main(["--config", str(path), "--data", str(file), "--rows", str(tmp_path / "rows")]) == 0
    rows = read_rows(tmp_path / "rows")
    one = {row["seed"]: row["metrics"] for row in rows if row["method"] == "graph-swap"}
    for row in (row for row in rows if row["method"] != "graph-swap"):
        found = row["metrics"]
        assert found["cosine.test.paired.swapped"] is None
        if row["seed"] is not None:
            assert found["ratio.test.paired"] == pytest.approx(0, abs=1e-6)
            assert found["ratio.test.paired.swapped"] is None
            assert found["original.distance.test.paired"] > 1e-4
            assert found["paired.auroc.all"] == one[row["seed"]]["paired.auroc.all"]
    assert [row["seeds"] for row in rows if row["seed"] is None] == [[0, 1]] * 3
    assert "6 rows made" in capsys.readouterr().out


def test_another_checkouts_package_is_refused(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lightning_ifru, "__file__", str(tmp_path / "lightning_ifru" / "__init__.py"))
    with pytest.raises(SystemExit):
        main(command(file, tmp_path / "rows")[2:])
    assert "different checkouts" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()


def test_rows_that_cannot_be_written_are_one_sentence(file, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit):
        main(command(file, tmp_path / "taken")[2:])
    assert "give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"core": 1000}, "none is left with 1000"), ({"user": "who"}, "'data: {user: ...}'")],
)
def test_ratings_that_cannot_be_used_are_refused_with_advice(file, settings, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Ratings.read(file, DataSettings(**settings))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_is_above_0_and_up_to_1(fraction):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        Deletion("users", fraction)


# --- tables -------------------------------------------------------------------------------------------------------


def test_tables_and_figures_are_made_of_rows_and_the_prose_is_kept(folder, tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text(
        "Prose.\n" + "".join(f"<!-- rows: {n} -->\nold\n<!-- end -->\nMore of {n}.\n" for n in ("about", *SECTIONS))
    )
    words = [sys.executable, str(RUN / "tables.py"), str(folder), "--config", "smoke.yaml", "--output", str(document)]
    subprocess.run(words, check=True, capture_output=True)
    text = document.read_text()
    assert text.startswith("Prose.\n")
    assert all(f"<!-- end -->\nMore of {name}.\n" in text for name in SECTIONS)
    assert "\nold\n" not in text
    assert "2 paired seeds and 3 free retrainings" in text
    assert "**lightgcn2-bpr, users 2%.**" in text
    assert text.count("not measured |\n") > 5
    assert "reached |\n" in text or "**missed** |\n" in text
    for name in ("seconds", "ratios"):
        assert (tmp_path / f"benchmarks-{name}.png").read_bytes().startswith(b"\x89PNG")
    once = document.read_text()
    selection = select(Config.read(Path("smoke.yaml")), read_rows(folder))
    assert fill(once, selection) == once
    with pytest.raises(ValueError, match="nonsense"):
        fill(once + "<!-- rows: nonsense -->\n<!-- end -->", selection)
    with pytest.raises(ValueError, match="about"):
        fill("no markers", selection)


@pytest.fixture
def small(ratings):
    """A configuration of four tasks, and a row for each in the order in which they might be done."""
    block = Block(["b", "a"], [Deletion("users", 0.1)], ["ifru"], seeds=2)
    config = Config({"a": BPR, "b": BCE}, {"s": [block]})
    tasks = tasks_of(config, ratings.described(), ["s"])
    return config, [task | {"value": 0} for task in reversed(tasks)]


def test_rows_of_the_configuration_are_taken_in_its_order(small):
    config, made = small
    average = made[2] | {"key": averaged_key(made[2:]), "seed": None, "seeds": [0, 1]}
    stale = average | {"key": averaged_key(made[3:])}
    elsewhere = [row | {"key": "x", "settings": row["settings"] | {"retraining_seeds": 9}} for row in made]
    found = select(config, [*elsewhere, *made[1:], average, stale])
    assert [(row["recipe"], row["seed"]) for row in found.rows] == [("b", 0), ("b", 1), ("a", 0), ("b", None)]
    assert found.missing == 1
    other = [row | {"settings": row["settings"] | {"data": row["settings"]["data"] | {"seed": 1}}} for row in made]
    assert select(config, [*other, *made]).rows == made[::-1]
    with pytest.raises(ValueError, match="none of the rows"):
        select(config, other)
    mixed = made[0] | {"settings": made[0]["settings"] | {"data": made[0]["settings"]["data"] | {"digest": "0"}}}
    with pytest.raises(ValueError, match="2 files of ratings"):
        select(config, [*made, mixed])


def test_of_one_combination_the_last_row_counts(small, ratings):
    config, _ = small
    (block,) = config.suites["s"]
    twice = Config(config.recipes, {"s": [block, replace(block, retraining_seeds=3)]})
    first, second = (tasks_of(one, ratings.described(), ["s"]) for one in (config, twice))
    later = [row for row in second if row["key"] not in {one["key"] for one in first}]
    assert len(first) == len(later) == 4
    assert [row["key"] for row in select(twice, [*later, *first]).rows] == [row["key"] for row in first]
    assert select(twice, [*first, *later[:1]]).rows == [*first[1:], later[0]]
    assert select(twice, [*first, *later]).missing == 0
    # As many as there are retrained models in either: those of the smaller one are the first of the larger.
    assert metric([made_row(d=[1.0, 2.0]), made_row(d=[3.0, 4.0, 5.0])], "d") == [2.0, 3.0, 5.0]


def made_row(method="ifru", seed=0, suite="flipped", recipe="mf-bce", deletion="flipped 2%", seconds=1.0, **metrics):
    about = {"suite": suite, "recipe": recipe, "deletion": deletion, "seed": seed, "method": method}
    return about | {"metrics": metrics, "seconds": {"total": 99.0, "cpu": seconds}}


def test_the_best_is_bold_whoever_it_is_and_retraining_does_not_take_part():
    rows = [made_row("ifru", x=0.5), made_row("finetuning-5", x=0.25), made_row("retraining-paired", x=0.0)]
    found = table(rows, [Column("x", lambda some: metric(some, "x")[0], float, 2)])
    assert found.splitlines()[2:] == [
        "| `ifru` | 0.50 |",
        "| `finetuning-5` | **0.25** |",
        "| `retraining-paired` | 0.00 |",
    ]


def test_originals_that_share_retrained_models_are_averaged_first():
    rows = [made_row(seed=k, d=[1.0 + k, 3.0 + k], **{"a": 0.7 + k / 10, "free.a": [0.5, 0.6]}) for k in range(2)]
    assert metric(rows, "d") == [1.5, 3.5]
    assert difference(rows, "a", "free") == pytest.approx([0.25, 0.15])
    # Student's t with two degrees of freedom is 4.303.
    assert Estimate.of([1.0, 2.0, 3.0]).half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert Estimate.of([1.0]).half is None
    assert Estimate.of([None]) is None


FLIPPED = {"suite": "flipped", "deletion": "flipped 2%"}
ONE_PERCENT = {"suite": "deletions", "deletion": "interactions 1%"}
USERS = {"suite": "deletions", "deletion": "users 2%"}
RETRAINED = {"free.auroc.all": [0.7] * 5, "free.membership": [0.5] * 5}


def of_seeds(recipe, where, name, value, seeds=1, **metrics):
    return [made_row(seed=seed, recipe=recipe, **where, **{name: value, **metrics}) for seed in range(seeds)]


def of_flipped(name, recipe, **metrics):
    return lambda value: of_seeds(recipe, FLIPPED, name, value, **RETRAINED, **metrics)


def of_distance(recipe, pairs):
    return lambda value: of_seeds(recipe, FLIPPED, f"distance.{pairs}.free", [value] * 5, **{f"floor.{pairs}": 1.0})


def of_average(value, seeds=8):
    single = of_seeds("mf-bpr", ONE_PERCENT, "cosine.test.paired", 0.0, seeds)
    average = made_row(seed=None, recipe="mf-bpr", **ONE_PERCENT, **{"cosine.test.paired": value})
    return [*single, average | {"seeds": list(range(seeds))}]


def of_sequential(pairs):
    def rows(value):
        where, name = {"suite": "sequential", "deletion": "interactions 1%"}, f"ratio.{pairs}.paired"
        many, one = (
            made_row(m, recipe="mf-bce", **where, **{name: r}) for m, r in (("ifru-sequential", value), ("ifru", 1.0))
        )
        return [many, one]

    return rows


def of_share(recipe, where):
    return lambda value: [
        made_row(m, recipe=recipe, **where, seconds=s) for m, s in (("ifru", value), ("retraining-free", 1.0))
    ]


SWAPPED = "1% random, paired, BPR, LightGCN-2, {}, random pairs, against the graph-swapped original: {}"
FORGOTTEN = "1% random, paired, BPR, {}, forgotten pairs: ρ"
ERASED = "2% of users erased, paired, BPR, {}, test pairs of other users: ρ"
# The line, rows with a value, the value at the limit, and whether more is worse (1) or better (-1).
LIMITS = [
    ("2% flipped, MF: Δ to retrained, test pairs", of_distance("mf-bce", "test"), 1.05, 1),
    ("2% flipped, MF: Δ to retrained, forgotten pairs", of_distance("mf-bce", "forgotten"), 1.05, 1),
    ("2% flipped, LightGCN-1: Δ to retrained, test pairs", of_distance("lightgcn1-bce", "test"), 1.3, 1),
    ("2% flipped, LightGCN-1: Δ to retrained, forgotten pairs", of_distance("lightgcn1-bce", "forgotten"), 1.3, 1),
    *(
        line
        for recipe, name in (("mf-bce", "MF"), ("lightgcn1-bce", "LightGCN-1"), ("lightgcn2-bce", "LightGCN-2"))
        for line in (
            (f"2% flipped, {name}: test AUC below retrained by", of_flipped("auroc.all", recipe), 0.698, -1),
            (
                f"2% flipped, {name}: membership AUROC less the retrained model's",
                of_flipped("membership", recipe),
                0.51,
                1,
            ),
            (
                f"2% flipped, {name}: membership AUROC less the retrained model's",
                of_flipped("membership", recipe),
                0.49,
                -1,
            ),
        )
    ),
    *(
        line
        for recipe, name in (("lightgcn2-bpr-weak", "weakly regularised"), ("lightgcn2-bpr", "well regularised"))
        for line in (
            (SWAPPED.format(name, "ρ"), partial(of_seeds, recipe, ONE_PERCENT, "ratio.random.paired.swapped"), 0.3, 1),
            (
                SWAPPED.format(name, "cosine"),
                partial(of_seeds, recipe, ONE_PERCENT, "cosine.random.paired.swapped"),
                0.9,
                -1,
            ),
        )
    ),
    *(
        line
        for recipe, name, ratio, others in (
            ("mf-bpr", "MF", 0.25, 0.8),
            ("lightgcn2-bpr-weak", "LightGCN-2, weakly regularised", 0.35, 0.8),
            ("lightgcn2-bpr", "LightGCN-2, well regularised", 0.12, 0.45),
        )
        for line in (
            (FORGOTTEN.format(name), partial(of_seeds, recipe, ONE_PERCENT, "ratio.forgotten.paired"), ratio, 1),
            (ERASED.format(name), partial(of_seeds, recipe, USERS, "ratio.test.paired"), others, 1),
        )
    ),
    (
        "1% random, paired, BPR, MF, test pairs: cosine of the change averaged over eight paired seeds",
        of_average,
        0.85,
        -1,
    ),
    *(
        (
            f"100 requests one after another against one, mf-bce, {pairs} pairs: ρ over ρ, less 1",
            of_sequential(pairs),
            value,
            side,
        )
        for pairs in ("test", "forgotten")
        for value, side in ((1.1, 1), (0.9, -1))
    ),
    (
        "2% flipped, LightGCN-1: CPU seconds, set-up and all",
        lambda s: [made_row(recipe="lightgcn1-bce", seconds=s)],
        6,
        1,
    ),
    (
        "2% flipped, LightGCN-2: CPU seconds, set-up and all",
        lambda s: [made_row(recipe="lightgcn2-bce", seconds=s)],
        6,
        1,
    ),
    ("2% flipped, LightGCN-1: CPU seconds over those of retraining", of_share("lightgcn1-bce", FLIPPED), 0.1, 1),
    ("2% flipped, LightGCN-2: CPU seconds over those of retraining", of_share("lightgcn2-bce", FLIPPED), 0.1, 1),
    (
        "1% random, LightGCN-3, as published: CPU seconds over those of retraining",
        of_share("lightgcn3-published", {"suite": "published", "deletion": "interactions 1%"}),
        0.1,
        1,
    ),
]


@pytest.mark.parametrize(("what", "made", "limit", "worse"), LIMITS)
def test_a_target_is_reached_up_to_its_limit_and_not_beyond(what, made, limit, worse):
    for value, words in (
        (limit - worse * 1e-4, {"reached", "within the range"}),
        (limit + worse * 1e-4, {"**missed**"}),
    ):
        (line,) = (line for line in targets(made(value)) if line.what == what)
        assert line.found is not None
        assert line.verdict in words


def test_every_target_has_its_limits_in_the_table():
    everything = [row for _, made, limit, _ in LIMITS for row in made(limit)]
    assert {line.what for line in targets(everything)} == {what for what, *_ in LIMITS}
    assert {line.verdict for line in targets([])} == {"not measured"}


def test_what_cannot_be_said_is_no_verdict():
    what = "1% random, paired, BPR, MF, test pairs: cosine of the change averaged over eight paired seeds"
    (few,) = (line for line in targets(of_average(0.99, seeds=7)) if line.what == what)
    assert (few.found is not None, few.verdict) == (True, "not measured")
    nothing = of_sequential("test")(None)
    assert {line.verdict for line in targets(nothing)} == {"not measured"}
    (quick,) = (
        t for t in targets([made_row(recipe="lightgcn1-bce", seconds=1.3)]) if "LightGCN-1: CPU seconds, s" in t.what
    )
    assert quick.verdict == "reached"


def test_an_interval_around_the_limit_takes_the_certainty_from_the_verdict():
    where = {"recipe": "mf-bpr", **ONE_PERCENT}
    rows = [made_row(seed=k, **where, **{"ratio.forgotten.paired": r}) for k, r in enumerate((0.1, 0.2, 0.3))]
    (line,) = (line for line in targets(rows) if line.what == FORGOTTEN.format("MF"))
    assert line.verdict == "reached, within the interval"
    # By hand: 1.5 over 1, and without one after another 2 / 1.2 and 1 / 0.8 and 1.5 / 1; t is 4.303.
    left = np.array([2 / 1.2, 1 / 0.8, 1.5 / 1.0])
    found = jackknife([0.5, 2.5, 1.5], 1.0, [1.2, 0.8, 1.0])
    assert found.half == pytest.approx(4.3027 * math.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum()), rel=1e-4)
    name = "2% flipped, MF: Δ to retrained, test pairs"
    metrics = {"distance.test.free": [0.5, 2.5, 1.5], "floor.test": 1.0, "floor.test.without": [1.2, 0.8, 1.0]}
    (line,) = (line for line in targets([made_row(**metrics)]) if line.what == name)
    assert line.verdict == "**missed**, within the interval"


def test_speeds_are_compared_where_all_methods_were_run():
    rows = [made_row(method, seconds=s) for method, s in (("ifru", 2.0), ("retraining-free", 4.0))]
    rows += [made_row("ifru", seed=1, seconds=50.0), made_row("ifru", suite="partial", seconds=70.0)]
    found = speed_table([row | {"peak_memory_mb": 600.0} for row in rows]).splitlines()
    assert [line for line in found if line.startswith("| `")] == [
        "| `ifru` | **2.00** | **0.500** | **99.00** | 600 |",
        "| `retraining-free` | 4.00 | 1.000 | 99.00 | 600 |",
    ]


@pytest.mark.parametrize(
    "module", [protocol, rows, summary, sys.modules["targets"]], ids=lambda module: module.__name__
)
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_keys_depend_on_values_and_not_on_their_order():
    assert key_of(a=1, b={"c": 2, "d": 3}) == key_of(b={"d": 3, "c": 2}, a=1) != key_of(a=1, b={"c": 3, "d": 2})
