"""The audit against an independent computation from the same checkpoints, and what it refuses."""

import copy
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch_geometric.data import HeteroData

import lightning_ifru
from conftest import NUM_ITEMS, NUM_USERS
from lightning_ifru import IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningError, UnlearningRequest, audit
from lightning_ifru.audit_questions import Questions
from lightning_ifru.metrics import evaluate, matched_nonmembers

KINDS = [
    pytest.param("bce", 1, id="bce-lightgcn"),
    pytest.param("bpr", 2, id="bpr-lightgcn"),
    pytest.param("bce", None, id="bce-mf"),
]
USERS, ITEM = (4, 9), 7


@dataclass
class Case:
    """Checkpoints of one model before and after an unlearning, and retrained: two seeds, and paired."""

    folder: Path
    request: UnlearningRequest
    report: lightning_ifru.UnlearningReport

    def __getattr__(self, name):
        return self.folder / f"{name}.ckpt"

    @property
    def files(self):
        return {"original": self.original, "unlearned": self.unlearned}


def request_on(data, singles=30):
    """Two users, an item, and single positive training pairs of others."""
    pairs = zip(data.train.user.tolist(), data.train.item.tolist(), data.train.label.tolist(), strict=True)
    free = [(u, i) for u, i, label in pairs if u not in USERS and i != ITEM and label > 0]
    return UnlearningRequest(
        users=data.user_ids[list(USERS)].tolist(),
        items=[data.item_ids[ITEM]],
        interactions=[(data.user_ids[u], data.item_ids[i]) for u, i in free[:: len(free) // singles][:singles]],
    )


_CASES = {}


@pytest.fixture
def case(make_data, make_model, make_trainer, tmp_path_factory):
    """Return the checkpoints of a kind of model, made once."""

    def fit(loss, layers, path, *, request=None, seed=5, fresh=None):
        data, model, trainer = make_data(loss), make_model(loss, layers), make_trainer(max_epochs=15)
        if request is not None:
            data.forget(request)
            data.commit(data.removal())
        if fresh is not None:
            torch.manual_seed(fresh)
            (model.net if layers else model).reset_parameters()
        torch.manual_seed(seed)
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(path)
        return trainer, data

    def make(loss="bce", layers=1):
        if (loss, layers) not in _CASES:
            folder = tmp_path_factory.mktemp("case")
            trainer, data = fit(loss, layers, folder / "original.ckpt")
            request = request_on(data)
            report = trainer.unlearn(data, request=request)
            trainer.save_checkpoint(folder / "unlearned.ckpt")
            fit(loss, layers, folder / "paired.ckpt", request=request)
            for seed in (11, 12):
                fit(loss, layers, folder / f"free{seed}.ckpt", request=request, seed=seed, fresh=seed)
            _CASES[loss, layers] = Case(folder, request, report)
        return _CASES[loss, layers]

    return make


@pytest.fixture
def run(make_data, make_model, make_trainer):
    """Return the audit of a case with a fresh model and fresh data."""

    def make(case, loss="bce", layers=1, **changes):
        data = changes.pop("data", None) or make_data(loss)
        model = changes.pop("model", None) or make_model(loss, layers)
        trainer = changes.pop("trainer", None) or make_trainer()
        return audit(trainer, data, model=model, **case.files | changes)

    return make


# --- the numbers, from the checkpoints and the request alone


def by_hand(path, layers, edges, num_users, num_items):
    """Representations in float64: the mean of the powers of the dense normalised adjacency times the embeddings."""
    weights = torch.load(path, weights_only=True)["state_dict"]
    (table,) = (w.double().numpy() for name, w in weights.items() if name.endswith("embedding.weight"))
    adjacency = np.zeros((num_users + num_items,) * 2)
    for u, i in edges:
        adjacency[u, num_users + i] = adjacency[num_users + i, u] = 1
    degree = adjacency.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)
    adjacency = scale[:, None] * adjacency * scale
    return sum(np.linalg.matrix_power(adjacency, k) @ table for k in range((layers or 0) + 1)) / ((layers or 0) + 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def wins(high, low):
    return np.mean([[(a > b) + 0.5 * (a == b) for b in low] for a in high])


class World:
    """Who did what before and after, found one pair at a time by the ids of the request."""

    def __init__(self, data, request):
        self.data, self.n, self.m = data, data.num_users, data.num_items

        def named(u, i):
            user, item = data.user_ids[u], data.item_ids[i]
            return user in request.users or item in request.items or (user, item) in request.interactions

        self.old = {
            split: list(zip(some.user.tolist(), some.item.tolist(), some.label.tolist(), strict=True))
            for split, some in (("train", data.train), ("val", data.val), ("test", data.test))
        }
        self.new = {split: [row for row in rows if not named(*row[:2])] for split, rows in self.old.items()}
        self.gone = [row for row in self.old["train"] if named(*row[:2])]
        self.members = [(u, i) for u, i, label in self.gone if label > 0]
        self.candidates = sorted({i for rows in self.new.values() for _, i, _ in rows})
        self.seen = {u: {i for v, i, _ in self.new["train"] if v == u} for u in range(self.n)}

    def edges(self, rows):
        return [(u, i) for u, i, label in rows["train"] if label > 0]

    def nonmembers(self):
        every = [row for rows in self.old.values() for row in rows]
        user, item = (torch.tensor([pair[k] for pair in self.members]) for k in (0, 1))
        popularity = torch.zeros(self.m, dtype=torch.long)
        for _, i in self.edges(self.old):
            popularity[i] += 1
        found = matched_nonmembers(
            user,
            item,
            torch.tensor([u for u, _, _ in every]),
            torch.tensor([i for _, i, _ in every]),
            self.n,
            self.m,
            popularity,
            self.data.seed,
        )
        pairs = list(zip(*(column.tolist() for column in found), strict=True))
        assert not set(pairs) & {(u, i) for u, i, _ in every}
        assert [u for u, _ in pairs] == user.tolist()
        return pairs

    def top(self, scores):
        """The best 20 of every user who has that many unseen, and by user the order of all unseen."""
        order = {u: sorted(set(self.candidates) - self.seen[u], key=lambda i: -scores(u, i)) for u in range(self.n)}
        return {u: set(ranked[:20]) for u, ranked in order.items() if self.seen[u] and len(ranked) >= 20}, order

    def look(self, h):
        """Every figure of one model."""

        def scores(u, i):
            return h[u] @ h[self.n + i]

        test = self.new["test"]
        users, items = {u for u, _, _ in self.gone}, {i for _, i, _ in self.gone}
        figures = {}
        if self.data.labelled:
            for name, kept in (
                ("auroc", lambda u, i: True),
                ("auroc_or", lambda u, i: u in users or i in items),
                ("auroc_and", lambda u, i: u in users and i in items),
            ):
                some = [(scores(u, i), label) for u, i, label in test if kept(u, i)]
                figures[name] = wins([s for s, label in some if label > 0], [s for s, label in some if not label])
        top, order = self.top(scores)
        recalls, gains = [], []
        for u in {u for u, _, label in test if label > 0}:
            wanted = {i for v, i, label in test if v == u and label > 0}
            places = [k for k, i in enumerate(order[u][:20]) if i in wanted]
            recalls.append(len(places) / len(wanted))
            ideal = sum(1 / math.log2(k + 2) for k in range(min(20, len(wanted))))
            gains.append(sum(1 / math.log2(k + 2) for k in places) / ideal)
        members = [scores(u, i) for u, i in self.members]
        figures |= {
            "recall@20": np.mean(recalls),
            "ndcg@20": np.mean(gains),
            "membership_auroc": wins(members, [scores(u, i) for u, i in self.nonmembers()]),
            "forgotten_probability": np.mean(sigmoid(members)),
        }
        answers = {
            "test": sigmoid([scores(u, i) for u, i, _ in test]),
            "forgotten": sigmoid([scores(u, i) for u, i, _ in self.gone]),
        }
        return figures, answers, top


def test_what_is_asked_counts_no_pair_twice_and_no_item_without_an_interaction():
    rng = np.random.default_rng(3)
    seen = rng.random((NUM_USERS, NUM_ITEMS)) < 0.3
    seen[4], seen[5, 1:] = True, True  # the one has left nothing unseen, the other one item
    pairs = np.argwhere(seen)
    times = rng.integers(2, 5, len(pairs))
    graph = HeteroData()
    graph["user"].num_nodes, graph["item"].num_nodes = NUM_USERS, 2 * NUM_ITEMS
    graph["user", "visits", "item"].edge_index = torch.from_numpy(np.repeat(pairs, times, axis=0)).T
    data = InteractionDataModule(graph, duplicates="keep", seed=3)
    before, after = data.table, copy.deepcopy(data.table)
    assert len(before) > 2 * len(pairs)

    def ask(after, users):
        after.remove(after.plan(UnlearningRequest(users=users)))
        return Questions.of(before, after, before.alive & ~after.alive, 0, torch.device("cpu"))

    trained = list(dict.fromkeys(zip(data.train.user.tolist(), data.train.item.tolist(), strict=True)))
    with pytest.raises(UnlearningError, match=f" {sum(u == 7 for u, _ in trained)} can be used"):
        ask(copy.deepcopy(before), [7])
    questions = ask(after, [4, 5, 9])
    members = list(zip(questions.members.user.tolist(), questions.members.item.tolist(), strict=True))
    assert members == [(u, i) for u, i in trained if u in (5, 9)]
    assert {u for u, _ in members} == {5, 9}
    unseen = list(zip(*(column.tolist() for column in questions.nonmembers), strict=True))
    assert all(i < NUM_ITEMS and not seen[u, i] for u, i in unseen)
    left = {u: NUM_ITEMS - sum(v == u for v, _ in trained) for u in range(NUM_USERS) if u not in (4, 5, 9)}
    assert questions.users.tolist() == [u for u, count in left.items() if count >= 20]
    assert 10 < len(questions.users) < len(left)


@pytest.mark.parametrize(("loss", "layers"), KINDS)
@pytest.mark.parametrize("retrained", [["free11", "free12"], ["paired"]], ids=["two seeds", "paired"])
def test_every_number_is_that_of_a_slow_computation(case, run, make_data, loss, layers, retrained):
    case, data = case(loss, layers), make_data(loss)
    world = World(data, case.request)
    paired = retrained == ["paired"]
    paths = [getattr(case, name) for name in retrained]
    report = run(case, loss, layers, retrained=paths, paired=paired)
    old, new = world.edges(world.old), world.edges(world.new)
    sides = {
        "original": (case.original, old),
        "graph_swapped": (case.original, new),
        "unlearned": (case.unlearned, new),
        **{f"retrained{k}": (path, new) for k, path in enumerate(paths)},
    }
    h = {name: by_hand(path, layers, edges, world.n, world.m) for name, (path, edges) in sides.items()}
    looks = {name: world.look(one) for name, one in h.items()}

    for name, (figures, _, _) in looks.items():
        found = report.retrained[int(name[9:])] if name.startswith("retrained") else getattr(report, name)
        for key, value in figures.items():
            assert found[key] == pytest.approx(value, abs=2e-6), (name, key)
    assert looks["original"][0]["membership_auroc"] > looks["retrained0"][0]["membership_auroc"] + 0.02
    assert report.attack.pairs == len(world.members) > 40
    assert report.attack.users == len({u for u, _ in world.members})
    assert report.erased == {"users": 2, "items": 1}
    for name, figures in report.models:
        low, high = report.attack.intervals[name]
        assert low < figures["membership_auroc"] < high
    assert report.counts["train"] == len(world.gone)
    assert report.counts["forgotten"] == case.report.num_forgotten
    assert report.implicit == (loss == "bpr")

    others = [looks[f"retrained{k}"] for k in range(len(paths))]
    for pairs, close in report.closeness.items():
        if pairs == "test" and loss == "bpr":  # the drawn pairs are held to metrics.evaluate below
            continue
        answers = {name: look[1][pairs] for name, look in looks.items()}
        away = {
            name: [np.abs(answers[name] - other[1][pairs]).mean() for other in others]
            for name in ("original", "graph_swapped", "unlearned")
        }
        assert min(away["original"]) > 1e-3
        assert close.pairs == len(answers["original"])
        assert close.distance == pytest.approx({name: np.mean(d) for name, d in away.items()}, abs=2e-6)
        ratios = np.divide(away["unlearned"], away["original"])
        assert close.ratios == pytest.approx(ratios, abs=1e-4)
        assert close.ratio == pytest.approx(ratios.mean(), abs=1e-4)
        swapped = np.divide(away["unlearned"], away["graph_swapped"])
        assert close.ratio_to_graph_swapped == pytest.approx(swapped.mean(), abs=1e-4)
        if paired:
            moved, wanted = (answers[n] - answers["original"] for n in ("unlearned", "retrained0"))
            cosine = moved @ wanted / np.linalg.norm(moved) / np.linalg.norm(wanted)
            assert close.cosine == pytest.approx(cosine, abs=1e-4)
            assert close.noise_floor is None
        else:
            floor = np.abs(others[0][1][pairs] - others[1][1][pairs]).mean()
            assert close.noise_floor == pytest.approx(floor, abs=2e-6)
            assert close.cosine is None

    def shared(one, other):
        assert one.keys() == other.keys()
        assert len(one) > 5
        return np.mean([len(one[u] & other[u]) / 20 for u in one])

    for name in ("original", "unlearned"):
        wanted = np.mean([shared(looks[name][2], other[2]) for other in others])
        assert report.overlap[name] == pytest.approx(wanted, abs=1e-9)
        if paired:
            one, other = (torch.load(p, weights_only=True)["state_dict"] for p in (sides[name][0], case.paired))
            (key,) = (k for k in one if k.endswith("embedding.weight"))
            left = [n for n in range(world.n + world.m) if n not in {*USERS, world.n + ITEM}]
            away = float((one[key] - other[key])[left].norm() / other[key][left].norm())
            assert report.parameter_distance[name] == pytest.approx(away, abs=1e-5)
            rows = np.linalg.norm((h[name] - h["retrained0"])[left], axis=1).mean()
            assert report.embedding_distance[name] == pytest.approx(rows, abs=1e-5)
    among = None if paired else pytest.approx(shared(others[0][2], others[1][2]), abs=1e-9)
    assert report.overlap["retrained"] == among
    if not paired:
        assert report.parameter_distance == report.embedding_distance == {}


@pytest.mark.parametrize("kind", ["users", "interactions"])
def test_of_a_model_that_was_really_retrained_it_is_never_said_that_it_has_not_forgotten(
    kind, run, make_data, make_model, make_trainer, tmp_path
):
    data = make_data()
    few = request_on(data, singles=60)
    request = (
        UnlearningRequest(users=data.user_ids[2:10].tolist())
        if kind == "users"
        else UnlearningRequest(interactions=few.interactions)
    )

    def fit(name, seed, request=None):
        data, model, trainer = make_data(), make_model("bce", None), make_trainer(max_epochs=15)
        if request is not None:
            data.forget(request)
            data.commit(data.removal())
        torch.manual_seed(seed)
        model.reset_parameters()
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        return tmp_path / f"{name}.ckpt"

    files = Case(tmp_path, request, None)
    fit("original", 1)
    paths = [fit(f"retrained{seed}", seed, request) for seed in range(2, 7)]
    found = []
    for k, path in enumerate(paths):
        others = [*paths[k + 1 :], *paths[:k]]
        for count in (1, 2, 3):
            report = run(files, "bce", None, unlearned=path, retrained=others[:count])
            found.append([finding.answer for finding in report.findings[:3]])
    assert not [answers for answers in found if "no" in answers]
    # And yet the questions are not idle: the model that has done nothing is told from these.
    changed = torch.load(files.original, weights_only=True)
    changed["InteractionDataModule"] = torch.load(paths[0], weights_only=True)["InteractionDataModule"]
    changed["state_dict"] = {name: value * 1.0001 for name, value in changed["state_dict"].items()}
    torch.save(changed, tmp_path / "idle.ckpt")
    report = run(files, "bce", None, unlearned=tmp_path / "idle.ckpt", retrained=paths[:3])
    idle = [finding.answer for finding in report.findings[:2]]
    assert "yes" not in idle
    assert ("no" in idle) == (kind == "users")  # of a model this small single interactions change less than a seed


def test_without_ratings_the_auroc_is_that_of_the_unlearning_report(case, run):
    case = case("bpr", 2)
    report = run(case, "bpr", 2)
    for name in ("auroc", "recall@20", "ndcg@20"):
        assert report.unlearned[name] == pytest.approx(case.report.metrics_after[name], abs=1e-6)
        assert report.original[name] == pytest.approx(case.report.metrics_before[name], abs=1e-6)
    assert report.unlearned["auroc"] != report.original["auroc"]


def test_it_says_what_was_examined_and_for_which_request(case, run):
    case = case()
    report = run(case, retrained=[case.free11])
    paths = [case.original, case.unlearned, case.free11]
    assert report.files == [
        {"role": role, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for role, path in zip(("original", "unlearned", "retrained 1"), paths, strict=True)
    ]
    (entry,) = report.requests
    assert entry["digest"] == case.report.digest
    assert entry["num_forgotten"] == case.report.num_forgotten
    assert (entry["num_users_erased"], entry["num_items_erased"]) == (2, 1)
    # Without the writing of the checkpoint, which the ledger is in.
    assert entry["seconds"] == pytest.approx(case.report.seconds["total"] - case.report.seconds["checkpoint"])
    assert f"<td>1</td><td>{entry['seconds']:.1f}</td></tr>" in report.to_html()
    assert report.model == "LightGCN"
    assert report.versions["lightning-ifru"] == lightning_ifru.__version__
    assert report.date.endswith("+00:00")


def test_what_it_is_given_stays_as_it_is(case, run, trained, snapshot):
    case = case()
    trainer, model, data = trained()
    model.train()
    before = snapshot(model=model, data=data, trainer=trainer)
    report = audit(trainer, retrained=[case.free11], **case.files)
    before.check()
    assert trainer.lightning_module is model
    other = run(case, retrained=[case.free11])
    assert (report.original, report.unlearned) == (other.original, other.unlearned)


def test_of_two_unlearnings_the_second_is_audited(make_data, make_model, make_trainer, tmp_path):
    data, model, trainer = make_data(), make_model(), make_trainer(max_epochs=15)
    trainer.fit(model, datamodule=data)
    trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    report = trainer.unlearn(data, request=request_on(data))
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    files = {"original": tmp_path / "first.ckpt", "unlearned": tmp_path / "second.ckpt"}
    found = audit(make_trainer(), make_data(), model=make_model(), **files)
    assert found.counts["forgotten"] == report.num_forgotten
    assert [entry["digest"] for entry in found.requests] == [report.digest]


# --- what is refused


def shortened(data, request):
    """The source without what a request forgets."""
    keep = [
        k
        for k, (u, i) in enumerate(zip(data["user"], data["item"], strict=True))
        if not (u in request.users or i in request.items or (u, i) in request.interactions)
    ]
    return {name: [column[k] for k in keep] for name, column in data.items()}


@dataclass
class Given:
    """What an audit of a case may be given instead, and the means to make it."""

    case: Case
    folder: Path
    planted: dict
    make_data: object
    make_model: object
    make_trainer: object

    def trained(self, name, data=None, request=None, **model):
        """A checkpoint of one epoch on data without a request."""
        data, trainer = self.make_data() if data is None else data, self.make_trainer(max_epochs=1)
        if request is not None:
            data.forget(request)
            data.commit(data.removal())
        trainer.fit(self.make_model(**model), datamodule=data)
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")
        return self.folder / f"{name}.ckpt"

    def changed(self, path, change):
        """The same checkpoint with something changed."""
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, self.folder / "changed.ckpt")
        return self.folder / "changed.ckpt"


class Bad:
    """One way each to get it wrong: the arguments, and what the refusal says."""

    @staticmethod
    def model_of_another_shape(g):
        return {"model": g.make_model(embedding_dim=8)}, "does not fit LightGCN"

    @staticmethod
    def retrained_of_another_shape(g):
        return {"retrained": [g.trained("wide", request=g.case.request, embedding_dim=8)]}, "does not fit LightGCN"

    @staticmethod
    def other_ids(g):
        source = g.planted | {"user": [f"{name}-b" for name in g.planted["user"]]}
        path = g.trained("others", g.make_data(source=source))
        return {"retrained": [path]}, "retrained 1 checkpoint others.ckpt stand for other users or in another order"

    @staticmethod
    def another_order_of_ids(g):
        source = {name: column[::-1] for name, column in g.planted.items()}
        path = g.trained("reversed", g.make_data(source=source), g.case.request)
        return {"retrained": [path]}, "retrained 1 checkpoint reversed.ckpt stand for other users or in another order"

    @staticmethod
    def another_split(g):
        path = g.trained("split", g.make_data(seed=4), g.case.request)
        return {"retrained": [path]}, "retrained 1 checkpoint split.ckpt was trained on another split"

    @staticmethod
    def another_listed_split(g):
        original = g.trained("listed", g.make_data(split="leave_one_out"))
        path = g.trained("other", g.make_data(split="leave_one_out", test_fraction=0), g.case.request)
        expected = "the unlearned checkpoint other.ckpt was trained on another split than the original listed.ckpt"
        return {"original": original, "unlearned": path}, expected

    @staticmethod
    def retrained_on_another_listed_split(g):
        number = len(g.planted["user"])
        one, other = (
            g.planted | {"split": [("train", "val", "test")[max(0, (k + start) % 9 - 6)] for k in range(number)]}
            for start in (0, 1)
        )
        original = g.trained("listed", g.make_data(source=one, split="given"))
        unlearned = g.trained("gone", g.make_data(source=one, split="given"), g.case.request)
        path = g.trained("other", g.make_data(source=other, split="given"), g.case.request)
        given = {"original": original, "unlearned": unlearned, "retrained": [path]}
        return given, "retrained 1 checkpoint other.ckpt was trained on another split than the original listed.ckpt"

    @staticmethod
    def a_retrained_model_that_still_has_them(g):
        number = g.case.report.num_forgotten
        expected = f"retrained 2 checkpoint original.ckpt still contains {number} of the {number} forgotten pairs"
        return {"retrained": [g.case.free11, g.case.original]}, expected

    @staticmethod
    def a_retrained_model_that_still_has_some(g):
        whole, single = g.case.request, g.case.request.interactions
        path = g.trained("some", request=UnlearningRequest(users=whole.users, items=whole.items))
        return {"retrained": [path]}, f"still contains {len(single)} of the {g.case.report.num_forgotten} forgotten"

    @staticmethod
    def a_retrained_model_without_more(g):
        data = g.make_data()
        pairs = list(zip(g.planted["user"], g.planted["item"], strict=True))
        mine = [(u, i) for u, i in pairs if u == "person-020" and i not in g.case.request.items]
        more = len(set(mine) - set(g.case.request.interactions))
        assert 0 < more < len(mine) + 1
        path = g.trained("fewer", data, g.case.request | UnlearningRequest(users=["person-020"]))
        return {"retrained": [path]}, f"fewer.ckpt and the unlearned one differ in {more} more interactions"

    @staticmethod
    def the_wrong_way_round(g):
        number = g.case.report.num_forgotten
        expected = f"has forgotten 0 interactions of the original unlearned.ckpt and holds {number}"
        return {"original": g.case.unlearned, "unlearned": g.case.original}, expected

    @staticmethod
    def twice_the_same(g):
        expected = "has forgotten 0 interactions of the original original.ckpt and holds 0"
        return {"unlearned": g.case.original}, expected

    @staticmethod
    def a_cleared_source(g):
        data = g.make_data(source=shortened(g.planted, g.case.request))
        return {"data": data}, "no longer holds the forgotten pairs"

    @staticmethod
    def data_that_have_forgotten(g):
        data = g.make_data()
        data.forget(g.case.request)
        data.commit(data.removal())
        return {"data": data}, "no longer holds the forgotten pairs"

    @staticmethod
    def other_data(g):
        rating = [6 - r for r in g.planted["rating"][:20]] + g.planted["rating"][20:]
        expected = "the data are not those that the original checkpoint original.ckpt was trained on"
        return {"data": g.make_data(source=g.planted | {"rating": rating})}, expected

    @staticmethod
    def another_threshold(g):
        expected = "the data are not those that the original checkpoint original.ckpt was trained on"
        return {"data": g.make_data(threshold=5.0)}, expected

    @staticmethod
    def unlearned_on_other_data(g):
        rating = [6 - r for r in g.planted["rating"][:20]] + g.planted["rating"][20:]
        path = g.trained("other", g.make_data(source=g.planted | {"rating": rating}), g.case.request)
        return {"unlearned": path}, "the data are not those that the unlearned checkpoint other.ckpt was trained on"

    @staticmethod
    def no_state_of_the_data(g):
        path = g.changed(g.case.unlearned, lambda checkpoint: checkpoint.pop("InteractionDataModule"))
        return {"unlearned": path}, "unlearned checkpoint changed.ckpt does not say which interactions"

    @staticmethod
    def no_such_file(g):
        return {"original": g.folder / "missing.ckpt"}, "missing.ckpt could not be loaded"

    @staticmethod
    def no_checkpoint(g):
        (g.folder / "text.ckpt").write_text("hello")
        return {"original": g.folder / "text.ckpt"}, "text.ckpt could not be loaded"

    @staticmethod
    def a_file_of_something_else(g):
        torch.save([1, 2], g.folder / "list.ckpt")
        return {"original": g.folder / "list.ckpt"}, "list.ckpt could not be loaded (it holds a list)"

    @staticmethod
    def scores_that_are_not_finite(g):
        path = g.changed(g.case.free12, lambda c: c["state_dict"]["net.embedding.weight"][2].fill_(torch.nan))
        return {"retrained": [g.case.free11, path]}, "of what the retrained 2 model encodes are not finite"

    @staticmethod
    def the_same_retrained_model_twice(g):
        expected = "retrained 1 checkpoint free11.ckpt and the retrained 2 checkpoint free11.ckpt hold the same weights"
        return {"retrained": [g.case.free11, g.case.free11]}, expected

    @staticmethod
    def the_same_weights_in_another_file(g):
        path = g.changed(g.case.free11, lambda checkpoint: checkpoint.update(epoch=99))
        expected = "retrained 1 checkpoint free11.ckpt and the retrained 2 checkpoint changed.ckpt hold the same"
        return {"retrained": [g.case.free11, path]}, expected

    @staticmethod
    def the_originals_weights_as_unlearned(g):
        weights = torch.load(g.case.original, weights_only=True)["state_dict"]
        path = g.changed(g.case.unlearned, lambda checkpoint: checkpoint.update(state_dict=weights))
        return {"unlearned": path}, "original.ckpt and the unlearned checkpoint changed.ckpt hold the same weights"

    @staticmethod
    def unlearned_and_not_retrained(g):
        expected = "retrained 1 checkpoint changed.ckpt was unlearned and not retrained: its ledger has 1 requests"

        def change(checkpoint):
            checkpoint["state_dict"]["net.embedding.weight"] += 1

        return {"retrained": [g.changed(g.case.unlearned, change)]}, expected

    @staticmethod
    def weights_that_are_none(g):
        path = g.changed(g.case.unlearned, lambda checkpoint: checkpoint.update(state_dict=[1]))
        return {"unlearned": path}, "changed.ckpt could not be loaded (ValueError: its state_dict is a list)"

    @staticmethod
    def a_state_of_the_data_that_lacks_something(g):
        path = g.changed(g.case.original, lambda checkpoint: checkpoint["InteractionDataModule"].pop("cuts"))
        return {"original": path}, "does not say which interactions it was trained on (it lacks 'cuts')"

    @staticmethod
    def too_few_forgotten(g):
        path = g.trained("few", request=UnlearningRequest(users=["person-004"]))
        return {"original": g.trained("all"), "unlearned": path}, "which needs 20"


@pytest.mark.parametrize("way", [name for name in vars(Bad) if not name.startswith("_")])
def test_bad_input_is_refused_in_one_sentence_and_an_older_report_stays(
    way, case, run, make_data, make_model, make_trainer, planted, tmp_path, snapshot
):
    case = case()
    (tmp_path / "audit.html").write_text("older")
    (tmp_path / "audit.json").write_text("older")
    given, expected = getattr(Bad, way)(Given(case, tmp_path, planted, make_data, make_model, make_trainer))
    before = snapshot()
    with pytest.raises(UnlearningError) as refusal:
        run(case, output=tmp_path, **given)
    message = str(refusal.value)
    assert expected in message
    assert "person-" not in message
    assert "film-" not in message
    assert "\n" not in message
    before.check(but={"rng"})
    assert (tmp_path / "audit.html").read_text() == "older"


def test_a_model_that_does_not_fit_the_data_is_refused(case, run, make_model):
    class Short(type(make_model())):
        def encode(self, edge_index):
            return super().encode(edge_index)[:-1]

    model = make_model()
    model.__class__ = Short
    with pytest.raises(UnlearningError, match=r"Short returned shape \(69, 4\); wanted one tensor \[70, d\]"):
        run(case(), model=model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.update(model=lightning.LightningModule()), "audit got LightningModule as model; wanted a L"),
        (lambda g: g.update(data=lightning.LightningDataModule()), "audit got LightningDataModule as datamodule; w"),
    ],
    ids=["model", "data"],
)
def test_what_cannot_be_audited_is_misconfiguration(case, run, change, message):
    given = {}
    change(given)
    with pytest.raises(MisconfigurationException, match=message):
        run(case(), **given)


def test_more_than_one_process_is_refused(case, run, make_trainer):
    trainer = make_trainer(devices=2, strategy="ddp")
    with pytest.raises(MisconfigurationException, match="2 processes"):
        run(case(), trainer=trainer)


# --- what is written


@pytest.mark.parametrize("output", ["", "name", "name.html", "name.json", "name.v2"])
def test_two_files_are_written_and_nothing_else(case, run, tmp_path, output):
    folder = tmp_path / "out"
    folder.mkdir()
    report = run(case(), output=folder / output if output else folder)
    stem = {"": "audit", "name.v2": "name.v2"}.get(output, "name")
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.html", f"{stem}.json"]
    assert json.loads((folder / f"{stem}.json").read_text(encoding="utf-8")) == json.loads(report.to_json())
    assert (folder / f"{stem}.html").read_text(encoding="utf-8") == report.to_html()


def test_a_place_that_cannot_be_written_to_after_all_is_refused_in_one_sentence(case, run, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_ifru.auditing.os.replace", full)
    with pytest.raises(UnlearningError, match=r"no report can be written to .* \(No space left on device\)"):
        run(case(), output=tmp_path / "name")
    assert list(tmp_path.iterdir()) == []


def test_one_retrained_model_may_be_given_as_its_path(case, run):
    case = case()
    for path in (case.free11, str(case.free11)):
        assert [entry["role"] for entry in run(case, retrained=path).files][2:] == ["retrained 1"]


def test_no_file_is_written_unless_asked_for(case, run, tmp_path, snapshot):
    case = case()  # which may have to be made
    before = snapshot()
    run(case)
    before.check(but={"rng"})


@pytest.mark.parametrize("output", ["missing/name", "taken"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(case, run, tmp_path, output, monkeypatch):
    (tmp_path / "taken.json").mkdir()
    monkeypatch.setattr("lightning_ifru.auditing.Exhibit", None)  # would be used next
    with pytest.raises(UnlearningError, match="no report can be written to"):
        run(case(), output=tmp_path / output)


def test_a_page_that_cannot_be_made_leaves_nothing_behind(case, run, tmp_path, monkeypatch):
    def fail(self):
        raise ArithmeticError

    monkeypatch.setattr("lightning_ifru.AuditReport.to_json", fail)
    with pytest.raises(ArithmeticError):
        run(case(), output=tmp_path / "name")
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_ones_own_with_a_decoder_and_dropout(case, make_data, make_trainer, tmp_path):
    class Own(IFRUMixin, lightning.LightningModule):
        loss = "bce"

        def __init__(self):
            super().__init__()
            self.rows = torch.nn.Embedding(70, 4)
            self.dropout = torch.nn.Dropout(0.5)
            self.weight = torch.nn.Parameter(torch.ones(4))
            self.node_parameters = {"rows.weight": "node"}

        def encode(self, edge_index):
            return self.dropout(self.rows.weight)

        def decode(self, src, dst):
            return (src * dst * self.weight).sum(-1) - 1

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05, weight_decay=1e-3)

    data, model, trainer = make_data(), Own(), make_trainer()
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.unlearn(data, request=request_on(data))
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    model.train()
    reports = [
        audit(make_trainer(), make_data(), model=model, original=tmp_path / "a.ckpt", unlearned=tmp_path / "b.ckpt")
        for _ in range(2)
    ]
    assert reports[0].unlearned == reports[1].unlearned
    model.eval()
    model = copy.deepcopy(model)
    test, seen = data.test, data.train
    with torch.no_grad():
        h = model.encode(data.graph())
        wanted = evaluate(model.decode, h, 40, test, seen, data.candidates, True)
    assert reports[0].unlearned["auroc"] == pytest.approx(wanted["auroc"], abs=1e-6)
    assert reports[0].unlearned["ndcg@20"] == pytest.approx(wanted["ndcg@20"], abs=1e-6)


def test_a_module_that_is_built_late_is_built_for_the_audit(case, run, make_model):
    class Late(type(make_model())):
        def __init__(self):
            super().__init__(40, 30, 4, 1, loss="bce")
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = make_model().net

    model = Late()
    assert run(case(), model=model).unlearned == run(case()).unlearned
    assert model.net is None


def test_it_needs_no_callback_and_reads_the_data_once(case, make_data, make_model, tmp_path):
    data = make_data()
    assert isinstance(data, InteractionDataModule)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    assert not any(isinstance(c, IFRUCallback) for c in trainer.callbacks)
    assert audit(trainer, data, model=make_model(), **case().files).counts["forgotten"] > 0


@pytest.mark.parametrize("changes", [{"threshold": None}, {"test_fraction": 0.0}], ids=["ratings", "nothing held out"])
def test_what_cannot_be_measured_is_left_open(make_data, make_model, make_trainer, tmp_path, changes):
    loss = "mse" if "threshold" in changes else "bce"
    paths = [tmp_path / f"{name}.ckpt" for name in ("a", "b", "c")]
    data, trainer = make_data(loss, **changes), make_trainer(max_epochs=3)
    trainer.fit(make_model(loss), datamodule=data)
    trainer.save_checkpoint(paths[0])
    request = request_on(data)
    trainer.unlearn(data, request=request)
    trainer.save_checkpoint(paths[1])
    again, trainer = make_data(loss, **changes), make_trainer(max_epochs=3)
    again.forget(request)
    again.commit(again.removal())
    trainer.fit(make_model(loss), datamodule=again)
    trainer.save_checkpoint(paths[2])
    report = audit(
        make_trainer(),
        make_data(loss, **changes),
        model=make_model(loss),
        original=paths[0],
        unlearned=paths[1],
        retrained=paths[2:],
        output=tmp_path / "out",
    )
    assert report.unlearned["auroc"] is None
    assert report.findings[3].answer == "cannot be said"
    assert set(report.closeness) == ({"test", "forgotten"} if loss == "mse" else {"forgotten"})
    assert (report.unlearned["recall@20"] is None) == (loss == "bce")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["unlearned"]["auroc"] is None
