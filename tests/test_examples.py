"""The examples do what they say, small: the trainings against plain loops, the job against its folders."""

import difflib
import gzip
import inspect
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import lightgcn
import lightning
import movielens_erasure
import nightly_requests
import numpy as np
import own_module
import pandas as pd
import pytest
import stock_layers
import torch
import torch_geometric
from torch_geometric.data import HeteroData

from lightning_ifru import IFRUCallback, InteractionDataModule, UnlearningError, UnlearningRequest
from lightning_ifru.models import LightGCN
from lightning_ifru.outputs import LEDGER
from lightning_ifru.verdict import ADVISED

FOLDER = Path(lightgcn.__file__).parent
GOWALLA = FOLDER.parents[1] / "shared" / "data" / "gowalla-train.csv.gz"


@pytest.fixture(autouse=True)
def _one_seed():
    """What an example draws must not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def call(monkeypatch):
    """Run an example as its own program and return the exit code."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return ended.value.code

    return run


class Recorder(lightning.Callback):
    """Keeps every batch and its loss."""

    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def fit(make_trainer):
    """Train for some steps and return what was seen; ``limit_val_batches`` keeps the seed's draws to training."""

    def run(model, data, steps, **changes):
        seen = Recorder()
        changes = {"max_epochs": -1, "limit_val_batches": 0, "enable_checkpointing": False} | changes
        trainer = make_trainer(callbacks=[seen, IFRUCallback()], max_steps=steps, **changes)
        torch.manual_seed(11)  # of the batches
        trainer.fit(model, datamodule=data)
        assert len(seen.losses) == steps
        return seen

    return run


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_short_has_a_help_text_and_is_in_the_list(path, call, capsys):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert call(path.stem, "--help") == 0
    assert "--epochs" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- LightGCN


def as_pyg(model, data, batches):
    """The losses of a plain loop of PyG's example on given batches; the model is trained by it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    losses, terms = [], []
    for batch in batches:
        pos = torch.stack([batch["user"], data.num_users + batch["item"]])
        neg = torch.stack([batch["user"], data.num_users + batch["negative"][:, 0]])
        edge_label_index = torch.cat([pos, neg], dim=1)
        optimizer.zero_grad()
        pos_rank, neg_rank = model(data.graph(), edge_label_index).chunk(2)
        node_id = edge_label_index.unique()
        loss = model.recommendation_loss(pos_rank, neg_rank, node_id=node_id)
        bare = model.recommendation_loss(pos_rank, neg_rank, node_id=node_id, lambda_reg=0.0)
        terms.append(float((loss - bare).detach()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, terms


def check_steps(fit, data, steps, **changes):
    torch.manual_seed(3)
    module = lightgcn.LightGCNExample(data.num_users + data.num_items)
    plain = torch_geometric.nn.LightGCN(data.num_users + data.num_items, embedding_dim=64, num_layers=2)
    plain.load_state_dict(module.net.state_dict())
    seen = fit(module, data, steps, **changes)
    losses, terms = as_pyg(plain, data, seen.batches)
    assert seen.losses == pytest.approx(losses, abs=1e-6)
    assert torch.allclose(module.net.embedding.weight, plain.embedding.weight, atol=1e-6)
    return losses, terms


def ratings(rows):
    return pd.read_csv(lightgcn.RATINGS, nrows=rows)


def test_lightgcn_trains_step_for_step_as_a_plain_pyg_loop(fit):
    data = InteractionDataModule(ratings(3000), user="userId", item="movieId", test_fraction=0.2, batch_size=256)
    losses, terms = check_steps(fit, data, 20)
    assert losses[-1] < losses[0]
    assert min(terms) > 2e-6  # the penalty of the batch's nodes is large enough to be missed


def test_lightgcn_measures_what_pygs_example_measures(fit):
    data = InteractionDataModule(ratings(3000), user="userId", item="movieId", val_fraction=0, test_fraction=0.2)
    model = lightgcn.LightGCNExample(data.num_users + data.num_items)
    fit(model, data, 20)
    with torch.no_grad():
        logits = model.encode(data.graph())[: data.num_users] @ model.encode(data.graph())[data.num_users :].T
    precisions, recalls = [], []
    for user in range(data.num_users):
        logits[user, data.train.item[data.train.user == user]] = -torch.inf
        wanted = set(data.test.item[data.test.user == user].tolist())
        if wanted:
            hits = len(wanted & set(logits[user].topk(20).indices.tolist()))
            precisions.append(hits / 20)
            recalls.append(hits / len(wanted))
    assert 0 < np.mean(recalls) < 1
    assert model.evaluate() == pytest.approx({"precision": np.mean(precisions), "recall": np.mean(recalls)}, abs=1e-6)


def test_lightgcn_forgets_one_percent_of_the_embedded_data(capsys):
    report = lightgcn.main(epochs=200, limit=1500)
    assert report.num_forgotten == report.forgotten_by_split["train"] == pytest.approx(0.01 * 0.8 * 1500, abs=1)
    assert report.spillover_norm > 0
    assert report.residual_after < report.residual_before
    out = capsys.readouterr().out
    assert re.findall(r"epoch +(\d+): precision@20 0\.\d{4}, recall@20 0\.\d{4}", out) == [
        str(k) for k in range(20, 201, 20)
    ]
    assert "What was forgotten" in out


def test_lightgcn_takes_any_csv_and_a_user_by_the_command_line(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((30, 25)) < 0.5)
    with gzip.open(tmp_path / "log.csv.gz", "wt") as file:
        pd.DataFrame({"who": [f"u{u}" for u in user], "what": item}).to_csv(file, index=False)
    arguments = ["--data", tmp_path / "log.csv.gz", "--user", "who", "--item=what", "--epochs=1", "--forget=u7"]
    monkeypatch.setattr(sys, "argv", ["lightgcn.py", *map(str, arguments)])
    runpy.run_path(str(FOLDER / "lightgcn.py"), run_name="__main__")
    assert re.search(rf"interactions +│ +{(user == 7).sum()} ", capsys.readouterr().out)


def test_lightgcn_says_in_a_sentence_whom_it_does_not_know(call):
    said = call("lightgcn", "--limit", 500, "--epochs", 1, "--forget", "nobody")
    assert "user 'nobody'" in said
    assert "\n" not in said


def test_lightgcn_reads_amazon_book_with_its_own_test_edges(monkeypatch, tmp_path):
    rng = np.random.default_rng(1)
    pairs = torch.tensor(np.stack(np.nonzero(rng.random((40, 30)) < 0.4)))
    pairs = pairs[:, torch.randperm(pairs.shape[1])]
    graph = HeteroData()
    graph["user"].num_nodes, graph["book"].num_nodes = 40, 30
    graph["user", "rates", "book"].edge_index = pairs[:, :-50]
    graph["user", "rates", "book"].edge_label_index = pairs[:, -50:]
    graph["book", "rated_by", "user"].edge_index = pairs[:, :-50].flip(0)
    monkeypatch.setattr(lightgcn, "AmazonBook", lambda root: [graph])
    made = []
    monkeypatch.setattr(
        lightgcn, "InteractionDataModule", lambda *a, **k: made.append(InteractionDataModule(*a, **k)) or made[0]
    )
    report = lightgcn.main("amazon-book", epochs=1, forget="3")
    assert made[0].batch_size == 8192  # as in PyG's example
    train, test = ((part[0] == 3).sum() for part in (pairs[:, :-50], pairs[:, -50:]))
    assert report.forgotten_by_split == {"train": train, "val": 0, "test": test}


def test_lightgcn_says_in_a_sentence_that_amazon_book_could_not_be_fetched(monkeypatch):
    def fail(root):
        raise URLError("no network")

    monkeypatch.setattr(lightgcn, "AmazonBook", fail)
    with pytest.raises(UnlearningError, match=r"could not be downloaded \(.*no network.*\); give a CSV with --data"):
        lightgcn.main("amazon-book")


@pytest.mark.skipif(not GOWALLA.exists(), reason="Gowalla is not part of the repository and not beside it")
def test_lightgcn_takes_gowalla_and_trains_on_it_as_pyg_does(fit):
    data = InteractionDataModule(GOWALLA, val_fraction=0, test_fraction=0.001, batch_size=8192)
    assert (data.num_users, data.num_items) == (29858, 40981)
    check_steps(fit, data, 2)


def test_lightgcn_says_in_a_sentence_that_there_is_no_such_file(call, tmp_path):
    for limit in ((), ("--limit", 100)):
        said = call("lightgcn", "--data", tmp_path / "nofile.csv", *limit)
        assert "there is no file" in said
        assert "\n" not in said


def test_lightgcn_takes_the_first_rows_of_a_file(monkeypatch):
    taken = []
    monkeypatch.setattr(lightgcn, "InteractionDataModule", lambda rows, **_: taken.append(rows) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lightgcn.main(limit=7)
    assert taken[0].reset_index(drop=True).equals(pd.read_csv(lightgcn.RATINGS, dtype=str).head(7))


# -------------------------------------------------------------------------------------------------- the paper's setting


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_erasure_comes_near_the_retrained_model(model, capsys):
    report, left = movielens_erasure.main(model, epochs=40, limit=12000)
    assert report.forgotten_by_split == {"train": pytest.approx(0.02 * 0.8 * 12000, abs=2), "val": 0, "test": 0}
    assert report.residual_after < report.residual_before
    assert left < 0.5
    out = capsys.readouterr().out
    belief = {name: float(share) for name, share in re.findall(r"│ (\w+) +│ 0\.\d{4} +│ ([\d.]+)%", out)}
    assert list(belief) == ["before", "after", "retrained"]
    assert abs(belief["after"] - belief["retrained"]) < abs(belief["before"] - belief["retrained"]) / 2


def test_erasure_can_do_without_retraining(capsys):
    report, left = movielens_erasure.main("mf", share=0.05, epochs=1, retrain=False, limit=2000)
    assert left is None
    assert report.num_forgotten == pytest.approx(0.05 * 0.8 * 2000, abs=2)
    assert "retrained" not in capsys.readouterr().out


def test_only_training_labels_are_turned_around(monkeypatch):
    fitted = []

    def look(data, *_):
        fitted.append(data)
        raise InterruptedError

    monkeypatch.setattr(movielens_erasure, "fit", look)
    with pytest.raises(InterruptedError):
        movielens_erasure.main(limit=2000)
    (data,) = fitted
    liked = ratings(2000).set_index(["userId", "movieId"])["rating"] >= 4
    wrong = {}
    for name in ("train", "val", "test"):
        part = getattr(data, name)
        true = liked.loc[list(zip(data.user_ids[part.user], data.item_ids[part.item], strict=True))]
        wrong[name] = int((true.to_numpy() != (part.label > 0).numpy()).sum())
    assert wrong == {"train": round(0.02 * len(data.train)), "val": 0, "test": 0}


# ------------------------------------------------------------------------------------------------ a module of one's own


def lines_of_code(cls):
    """The lines of a class without blank ones and docstrings."""
    return [line for line in inspect.getsource(cls).splitlines() if line.strip() and '"""' not in line]


def test_at_most_ten_lines_are_added_and_each_is_marked():
    before, after = lines_of_code(own_module.Before), lines_of_code(own_module.After)
    difference = list(difflib.ndiff(before, [line.removesuffix("  # +") for line in after]))
    added = [line[2:] for line in difference if line.startswith("+ ")]
    marked = [line.removesuffix("  # +") for line in after if line.endswith("# +")]
    assert sorted(added) == sorted(marked)
    assert 0 < len(marked) <= 10


def test_the_module_trains_as_before(fit):
    seen = []
    for cls in (own_module.Before, own_module.After):
        columns = {"user": "userId", "item": "movieId", "rating": "rating"}
        data = InteractionDataModule(ratings(3000), **columns, threshold=4.0, val_fraction=0, batch_size=256)
        graph = (data.graph(),) if cls is own_module.Before else ()
        torch.manual_seed(3)
        seen.append(fit(cls(data.num_users, data.num_items, *graph), data, 20).losses)
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)
    assert seen[0][-1] < seen[0][0]


def test_the_module_forgets(capsys):
    report = own_module.main(forget="1", epochs=5, limit=1000)
    assert report.num_users_erased == 1
    assert report.spillover_norm > 0
    assert report.residual_after < report.residual_before
    assert report.rows_changed > 1
    assert "What was forgotten" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- stock layers


def test_modules_of_stock_layers_forget_a_person(capsys):
    count = 20
    log = ratings(None)
    log = log[log["movieId"].isin(log["movieId"].value_counts().index[:count])]
    stock_layers.main(epochs=20, dim=4, films=count, user="42")
    out = capsys.readouterr().out
    assert re.findall("^(?:GraphSAGE|GAT|Bipartite)$", out, re.MULTILINE) == ["GraphSAGE", "GAT", "Bipartite"]
    assert re.findall(r"interactions +│ +(\d+) ", out) == [str((log["userId"] == 42).sum())] * 3
    residuals = re.findall(r"residual +│ (\S+) → (\S+) ", out)
    assert [float(after) < float(before) for before, after in residuals] == [True] * 3


def test_stock_layers_says_in_a_sentence_whom_it_does_not_know(call):
    said = call("stock_layers", "--epochs=1", "--dim=2", "--films=5", "--user=nobody")
    assert "user 'nobody'" in said
    assert "\n" not in said


# -------------------------------------------------------------------------------------------------------- a nightly job


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the data of a nightly job and the checkpoint that it starts from."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(4)
    user, item = np.nonzero(rng.random((30, 25)) < 0.5)
    log = pd.DataFrame({"user": [f"u{u}" for u in user], "item": [f"i{i}" for i in item]})
    log.to_csv(folder / "log.csv", index=False)
    (folder / "requests").mkdir()
    columns = {"data": folder / "log.csv", "user": "user", "item": "item"}
    assert nightly_requests.main(folder / "requests", folder / "checkpoints", train=True, epochs=200, **columns) == 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0000-trained.ckpt"]
    return folder


@pytest.fixture
def job(first, tmp_path, call, capsys):
    """Folders and data of a nightly job of the test's own, and a way to run it."""

    class Job:
        requests, checkpoints, data = tmp_path / "requests", tmp_path / "checkpoints", tmp_path / "log.csv"
        log = pd.read_csv(first / "log.csv")

        def run(self, *more):
            folders = ["--requests", self.requests, "--checkpoints", self.checkpoints]
            code = call("nightly_requests", *folders, "--data", self.data, "--user=user", "--item=item", *more)
            return code, capsys.readouterr()

        def ask(self, name, text):
            (self.requests / name).write_text(text)

        @property
        def names(self):
            return [
                sorted(path.name for path in folder.glob("[!.]*") if path.is_file() and path.name != LEDGER)
                for folder in (self.requests, self.requests / "done", self.checkpoints)
            ]

        def ledger(self, name):
            return torch.load(self.checkpoints / name, weights_only=True)["callbacks"]["IFRUCallback"]["ledger"]

        def ids(self, name):
            state = torch.load(self.checkpoints / name, weights_only=True)["InteractionDataModule"]
            return set(state["user_ids"]) | set(state["item_ids"])

    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return Job()


def test_a_night_applies_requests_in_order_and_leaves_a_checkpoint_after_each(job):
    job.ask("2026-11-22.json", json.dumps({"items": ["i3"], "interactions": [job.log.iloc[-1].tolist()]}))
    job.ask("2026-11-21.csv", "user,item\nu5,\n")
    code, said = job.run()
    assert (code, said.err) == (0, "")
    first, second = "0001-2026-11-21.csv.ckpt", "0002-2026-11-22.json.ckpt"
    assert job.names == [[], ["2026-11-21.csv", "2026-11-22.json"], ["0000-trained.ckpt", first, second]]
    counts = [(job.log["user"] == "u5").sum(), ((job.log["item"] == "i3") & (job.log["user"] != "u5")).sum() + 1]
    assert [entry["num_forgotten"] for entry in job.ledger(second)] == counts
    assert job.ledger(first) == job.ledger(second)[:1]
    assert "u5" in job.ids("0000-trained.ckpt")
    assert "u5" not in job.ids(first) | job.ids(second)
    assert "i3" in job.ids(first) - job.ids(second)
    wanted = rf"2026-11-21.csv: {counts[0]} interactions in [\d.]+ s, residual [\d.]+-fold down -> {first}, .+"
    assert re.fullmatch(wanted, said.out.splitlines()[0])
    for line, entry in zip(said.out.splitlines(), job.ledger(second), strict=False):
        assert f", {entry['verdict']}" in line

    assert job.run() == (0, (f"0 requests applied, 0 left; the last checkpoint is {job.checkpoints / second}.\n", ""))
    job.ask("2026-11-23.csv", "user,item\nu6,\n")
    assert job.run()[0] == 0
    assert job.names[2][3:] == ["0003-2026-11-23.csv.ckpt"]
    assert len(job.ledger("0003-2026-11-23.csv.ckpt")) == 3


def test_a_night_says_of_each_request_why_it_is_not_to_be_trusted(job):
    job.ask("a.csv", "user,item\nu5,\n")
    code, said = job.run()
    assert (code, said.err) == (0, "")
    (entry,) = job.ledger("0001-a.csv.ckpt")
    assert entry["verdict"] == ADVISED
    assert said.out.splitlines()[0].endswith(f"ckpt, retrain advised: {' '.join(entry['verdict_reasons'])}")


def test_a_night_does_what_unlearning_by_hand_does(job, make_trainer):
    job.ask("a.csv", "user,item\nu5,\n")
    assert job.run()[0] == 0
    data = InteractionDataModule(job.data)
    model = LightGCN(data.num_users, data.num_items, embedding_dim=32, lr=3e-3, weight_decay=1e-4)
    trainer = make_trainer(callbacks=[IFRUCallback()], enable_checkpointing=False)
    before = job.checkpoints / "0000-trained.ckpt"
    report = trainer.unlearn(data, model=model, request=UnlearningRequest(users=["u5"]), ckpt_path=before)
    assert report.steps > 0
    after = torch.load(job.checkpoints / "0001-a.csv.ckpt", weights_only=True)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(after[name], tensor), name


def test_the_data_may_have_lost_what_was_forgotten(job):
    job.ask("a.csv", "user,item\nu5,\n")
    assert job.run()[0] == 0
    job.log[job.log["user"] != "u5"].to_csv(job.data, index=False)
    job.ask("b.csv", "user,item\nu6,\n")
    assert job.run()[0] == 0
    assert [entry["num_users_erased"] for entry in job.ledger("0002-b.csv.ckpt")] == [1, 1]


BAD = {
    "unknown.csv": ("user,item\nnobody,\n", "user 'nobody' (line 2)"),
    "column.csv": ("person\nu4\n", "'person'"),
    "broken.json": ("{", "JSON"),
    "request.xlsx": ("", "not supported"),
    "all.json": (json.dumps({"users": [f"u{k}" for k in range(30)]}), "leaves none"),
}


def test_bad_requests_are_left_with_a_sentence_each_and_the_others_go_on(job):
    for name, (text, _) in BAD.items():
        job.ask(name, text)
    job.ask("good.csv", "user,item\nu5,\n")
    for applied, done in ((1, 1), (0, 1)):  # and again the next night
        code, said = job.run()
        assert code == 1
        lines = dict(line.split(" is left where it is: ", 1) for line in said.err.splitlines())
        assert lines.keys() == BAD.keys()
        for name, (_, part) in BAD.items():
            assert part in lines[name]
        assert f"{applied} requests applied, {len(BAD)} left" in said.out
        assert job.names == [sorted(BAD), ["good.csv"], ["0000-trained.ckpt", "0001-good.csv.ckpt"][: done + 1]]


def test_the_name_of_an_applied_request_is_not_taken_twice(job):
    job.ask("a.csv", "user,item\nu5,\n")
    assert job.run()[0] == 0
    job.ask("a.csv", "user,item\nu6,\n")
    code, said = job.run()
    assert code == 1
    assert "rename" in said.err
    assert job.names[0] == ["a.csv"]
    assert "u5" in (job.requests / "done" / "a.csv").read_text()


@pytest.mark.parametrize("moment", ["while the checkpoint is written", "before the request is moved"])
def test_a_run_that_breaks_off_loses_nothing_and_repeats_nothing(job, moment, monkeypatch):
    job.ask("a.csv", "user,item\nu5,\n")
    job.ask("b.csv", "user,item\nu6,\n")
    with monkeypatch.context() as patch:
        if moment.startswith("while"):

            def save(trainer, path, **_):
                Path(path).write_bytes(b"half")
                raise KeyboardInterrupt

            patch.setattr(lightning.Trainer, "save_checkpoint", save)
        else:
            rename = Path.rename

            def move(path, target):
                if path.suffix == ".csv":
                    raise KeyboardInterrupt
                return rename(path, target)

            patch.setattr(Path, "rename", move)
        with pytest.raises((KeyboardInterrupt, SystemExit)):  # the latter is Lightning's way out
            nightly_requests.main(job.requests, job.checkpoints, data=job.data, user="user", item="item")
    assert job.names[:2] == [["a.csv", "b.csv"], []]
    code, said = job.run()
    assert (code, said.err) == (0, "")
    last = "0002-b.csv.ckpt"
    assert job.names == [[], ["a.csv", "b.csv"], sorted(["0000-trained.ckpt", "0001-a.csv.ckpt", last])]
    assert [entry["num_users_erased"] for entry in job.ledger(last)] == [1, 1]
    assert not {"u5", "u6"} & job.ids(last)


def test_training_anew_is_refused_where_it_would_bring_people_back(job):
    job.ask("a.csv", "user,item\nu5,\n")
    assert job.run()[0] == 0
    kept = job.names
    for _ in range(2):
        code, said = job.run("--train=true")
        assert code == 1
        assert "bring back" in said.err
        assert job.names == kept
        for path in job.checkpoints.iterdir():  # the requests that were applied say so, too
            path.unlink()
        kept = job.names


def test_nothing_is_created_without_a_checkpoint_or_a_folder(job, tmp_path):
    job.ask("a.csv", "user,item\nu5,\n")
    job.checkpoints = tmp_path / "elsewhere"
    code, said = job.run()
    assert (code, said.out) == (1, "")
    assert "0000-trained.ckpt" in said.err
    assert not job.checkpoints.exists()
    assert job.names[0] == ["a.csv"]
    job.requests = tmp_path / "typo"
    code, said = job.run()
    assert code == 1
    assert "there is no folder" in said.err
    assert not job.requests.exists()
