"""When an unlearning is not to be trusted: the verdict, what it adds up, and what is refused."""

import contextlib
import json
import math

import lightning
import oracles
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_ifru import IFRU, DataError, IFRUCallback, UnlearningError, UnlearningRequest
from lightning_ifru.curvature import GaussNewton
from lightning_ifru.errors import IncompleteError
from lightning_ifru.ledger import entries_of
from lightning_ifru.looseness import WEAKER, pair_moves
from lightning_ifru.newton import NewtonSearch
from lightning_ifru.retraining import redraw
from lightning_ifru.system import System
from lightning_ifru.verdict import ADVISED, COMPLETE, WITHIN, Drift, Evidence, Tolerance, judge

GOOD = {"forgotten": 5, "present": 1000, "influence": 1.0, "left": 0.01, "steps": 2, "moved": 0.1, "asked": 1.0}
EVERYTHING = Tolerance(complete=0.0, doubt=0.0)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, COMPLETE, "Nothing that can be observed"),
        ({"undecided": 0.05}, ADVISED, "33% of the way to a retrained model"),
        ({"undecided": 0.02}, WITHIN, "17% of the way to a retrained model"),
        ({"undecided": 0.02}, WITHIN, "several changes of them explain the data equally well"),
        ({"forgotten": 150, "pulled": 1.0}, WITHIN, "training was not over"),
        ({"forgotten": 150, "pulled": 4.0}, ADVISED, "training was not over"),
        ({"forgotten": 300}, ADVISED, "30.0% of the training interactions have been forgotten"),
        ({"steps": 0}, ADVISED, "No step brought the model nearer"),
        ({"steps": 0, "influence": 0.0}, COMPLETE, "Nothing"),
        ({"undecided": math.nan}, ADVISED, "cannot be told: numbers that the doubt is made of are not finite"),
        ({"undecided": math.inf}, ADVISED, "cannot be told"),
        ({"moved": math.nan}, ADVISED, "cannot be told"),
        ({"pulled": math.inf}, ADVISED, "cannot be told"),
        ({"asked": math.nan, "pulled": 1.0}, ADVISED, "cannot be told"),
        ({"negative_curvature": 1}, WITHIN, "negative curvature was met"),
        ({"unconverged": 1}, WITHIN, "1 of 2 steps stopped before their equations were solved"),
        ({"sampled": True}, WITHIN, "on a sample of the data"),
    ],
)
def test_the_verdict_follows_from_what_is_observed(changes, verdict, words):
    found, drift = judge(Evidence(**GOOD | changes), Drift(), Tolerance())
    assert found.name == verdict
    assert any(words in reason for reason in found.reasons)
    assert all(reason.endswith(".") for reason in found.reasons)
    assert drift.requests == 1


@pytest.mark.parametrize("changes", [{"undecided": 0.05}, {"forgotten": 300}, {"steps": 0}])
def test_where_a_correction_is_not_kept_nothing_is_said_to_be_left(changes):
    kept, wouldbe = (judge(Evidence(**GOOD | changes), Drift(), Tolerance(), kept=k)[0] for k in (True, False))
    assert kept.name == wouldbe.name == ADVISED
    assert kept.reasons[0] != wouldbe.reasons[0]
    assert "have left" in wouldbe.reasons[0] or "would have been" in wouldbe.reasons[0]
    said = " ".join(wouldbe.reasons)
    assert not any(false in said for false in ("may be left", "are without", "interactions have been"))


@pytest.mark.parametrize("name", ["moved", "undecided", "asked", "pulled"])
def test_of_what_cannot_be_told_a_number_stays(name):
    """And one that a ledger may hold: else the checkpoint that it is in would be refused."""
    found, drift = judge(Evidence(**GOOD | {name: math.nan}), Drift(), Tolerance())
    assert len(found.reasons) == 1
    assert drift.doubt == 1.0
    assert entries_of({"ledger": [{"drift": vars(drift)}]})
    assert judge(Evidence(**GOOD), drift, Tolerance())[0].name == ADVISED


def test_what_small_requests_leave_adds_up():
    """Each is complete by itself; together they have removed what the experiments go no further than."""
    drift, names, present = Drift(), [], 1000
    for _ in range(60):
        found, drift = judge(Evidence(**GOOD | {"present": present, "pulled": 1.0}), drift, Tolerance())
        names.append(found.name)
        present -= 5
    assert names[0] == COMPLETE
    assert names.index(WITHIN) < names.index(ADVISED)
    assert drift.trained == 1000
    assert drift.removed == 0.3
    assert drift.left == pytest.approx(60 * 0.01**2)
    assert Drift.of(json.loads(json.dumps({"drift": vars(drift)}))) == drift


@pytest.mark.parametrize("entry", [None, {}, {"drift": None}, {"drift": {}}])
def test_a_ledger_without_a_drift_begins_at_none(entry):
    assert Drift.of(entry) == Drift()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"doubt": 2}, "doubt=2"),
        ({"doubt": True}, "doubt=True"),
        ({"removed": -0.1}, "a number from 0 to 1"),
        ({"loss_grows": 0.5}, "a number of at least 1"),
        ({"metric_falls": math.nan}, "metric_falls=nan"),
        ({"complete": 0.5}, "complete=0.5 above doubt"),
    ],
)
def test_thresholds_out_of_range_are_refused(changes, words):
    with pytest.raises(UnlearningError, match=words):
        Tolerance(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tolerance": 0.2}, "wanted a Tolerance"),
        ({"on_incomplete": "ignore"}, "wanted 'warn', 'raise' or 'retrain'"),
        ({"on_incomplete": "retrain", "request": "forget.csv"}, "inside of another"),
    ],
)
def test_a_callback_refuses_what_it_cannot_do(changes, words):
    with pytest.raises(MisconfigurationException, match=words):
        IFRUCallback(**changes)


@pytest.fixture
def searched():
    """Return a search of one step on a small problem, and the system's dense matrices."""
    world = oracles.planted(12, 10, density=0.6, seed=1)
    problem = world.problem(world.some(4))
    objective = oracles.objective(1, "bce", 12, 10, 1e-2)
    theta = {"w": oracles.rows(22, 3, seed=2)}
    method = IFRU(curvature="gauss-newton", max_steps=1, cg_iterations=66, cg_tolerance=1e-12)
    sides = method.sides(objective, problem)
    influence = method.influence(objective, theta, problem)
    whole = torch.ones(66, dtype=torch.float64)
    nodes = torch.ones(22, dtype=torch.bool)
    system = System.of(objective, problem, sides, start=theta, leftover=influence.leftover, free=whole, nodes=nodes)
    search = NewtonSearch(method, system, lambda _: None)
    _, (step,) = search.run(-influence.total, 2.0)
    matrix = GaussNewton(objective, theta, problem.after, [sides.retained_after])
    dense = torch.stack([matrix(e) for e in torch.eye(66, dtype=torch.float64)])
    return search, step, dense, influence, theta["w"], problem


def test_looseness_is_that_of_dense_matrices(searched):
    search, step, dense, influence, w, problem = searched
    metric = torch.diag(search._metric())
    pairs = torch.stack([problem.forgotten.user, problem.forgotten.item + 12])

    def probabilities(flat):
        h = oracles.represent(flat.view_as(w), oracles.dense_adjacency(problem.after, 22), 1)
        return torch.sigmoid((h[pairs[0]] * h[pairs[1]]).sum(-1))

    jacobian = torch.autograd.functional.jacobian(probabilities, w.flatten())
    taus = step.damping, WEAKER * step.damping
    change, weaker = (torch.linalg.solve(dense + tau * metric, influence.total) for tau in taus)
    pulls = [torch.linalg.solve(metric, v) for v in (influence.total, influence.leftover)]
    wanted = [float((jacobian @ v).abs().mean()) for v in (change, weaker - change, *pulls)]
    found = search.looseness
    assert [found.moved, found.undecided, found.asked, found.pulled] == pytest.approx(wanted, rel=1e-6)
    assert found.undecided > 0.01 * found.moved > 0


def test_changes_of_probabilities_are_those_of_a_small_step(searched):
    search, _, _, influence, w, _ = searched
    system, direction = search.system, influence.total
    (found,) = pair_moves(system, {"w": w}, direction)
    source, destination = system.pairs

    def probabilities(size):
        h = system.objective.encode({"w": w + size * direction.view_as(w)}, system.edge_index)
        return torch.sigmoid((h[source] * h[destination]).sum(-1))

    eps = 1e-3
    assert found == pytest.approx(float((probabilities(eps) - probabilities(-eps)).abs().mean() / (2 * eps)), rel=1e-5)
    nothing = System(**vars(system) | {"pairs": system.pairs[:, :0]})
    assert pair_moves(nothing, {"w": w}, direction) == [0.0]


def people(data, *positions):
    return UnlearningRequest(users=[data.user_ids[k] for k in positions])


def pairs(data, *rows):
    train = data.train
    return UnlearningRequest(interactions=[(data.user_ids[train.user[k]], data.item_ids[train.item[k]]) for k in rows])


@pytest.mark.parametrize("layers", [None, 1])
def test_report_and_ledger_carry_the_verdict_and_what_adds_up(trained, layers):
    trainer, _, data = trained(layers=layers)
    present = len(data.train)
    first = trainer.unlearn(data, request=pairs(data, 0, 1))
    second = trainer.unlearn(data, request=pairs(data, 7))
    (callback,) = (each for each in trainer.callbacks if isinstance(each, IFRUCallback))
    assert [entry["verdict"] for entry in callback.ledger] == [first.verdict, second.verdict]
    assert [entry["drift"]["forgotten"] for entry in callback.ledger] == [2, 3]
    assert second.drift["trained"] == present
    assert second.drift["influence"] == pytest.approx(first.residual_before**2 + second.residual_before**2)
    assert second.verdict in str(second)
    assert json.loads(second.to_json())["verdict_reasons"] == second.verdict_reasons
    assert second.risk_after == second.trajectory[-1]["risk"]


def test_what_adds_up_goes_on_from_a_checkpoint(trained, make_data, make_model, make_trainer, best, tmp_path):
    trainer, _, data = trained(callbacks=[IFRUCallback(), best()])
    first = trainer.unlearn(data, request=pairs(data, 0, 1))
    again = make_data()
    report = make_trainer().unlearn(
        again, model=make_model(), ckpt_path=first.checkpoint, request=pairs(data, 3), output=tmp_path / "second.ckpt"
    )
    assert report.drift["requests"] == 2
    assert report.drift["trained"] == first.drift["trained"]


@pytest.mark.parametrize("new", ["trainer", "process"])
def test_what_adds_up_ends_with_a_training_anew_and_goes_on_with_a_longer_one(
    trained, make_data, make_trainer, tmp_path, new
):
    """Also where the model trained anew has been saved and is loaded elsewhere before it forgets again."""
    trainer, model, data = trained(callbacks=[callback := IFRUCallback()], max_epochs=2)
    first = trainer.unlearn(data, request=pairs(data, 0, 1))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, datamodule=data)
    second = trainer.unlearn(data, request=pairs(data, 3))
    assert second.drift["requests"] == 2, "trained further"
    trainer.save_checkpoint(tmp_path / "second.ckpt")

    again = make_trainer(callbacks=[callback], max_epochs=4)
    again.fit(model, datamodule=data, ckpt_path=tmp_path / "second.ckpt")
    assert again.unlearn(data, request=pairs(data, 7), dry_run=True).drift == {}
    assert "trained_after" not in callback.state_dict(), "trained further from a checkpoint"

    redraw(model)
    present = len(data.train)
    fresh = make_trainer(callbacks=[callback], max_epochs=2)
    fresh.fit(model, datamodule=data)
    given = {}
    if new == "process":
        fresh.save_checkpoint(tmp_path / "fresh.ckpt")
        callback = IFRUCallback()
        fresh, data = make_trainer(callbacks=[callback]), make_data()
        given = {"model": model, "ckpt_path": tmp_path / "fresh.ckpt"}
    request = pairs(data, 20)
    third = fresh.unlearn(data, request=request, **given)
    assert (third.drift["requests"], third.drift["trained"]) == (1, present)
    assert third.drift["requests"] < first.drift["requests"] + second.drift["requests"]
    assert [entry["drift"]["requests"] for entry in callback.ledger] == [1, 2, 1]
    assert "trained_after" not in callback.state_dict()
    assert fresh.unlearn(data, request=pairs(data, 9)).drift["requests"] == 2


class Stops(lightning.Callback):
    """Ends a fit before its first step, in one way or another."""

    def __init__(self, error=None):
        self.error = error

    def on_train_start(self, trainer, *_):
        if self.error is not None:
            raise self.error
        trainer.fit_loop.epoch_loop.max_steps = 0


class Breaks(lightning.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx:
            raise KeyError("broken")


@pytest.mark.parametrize(
    ("others", "given"),
    [
        ([Stops()], {}),
        ([Stops(KeyError("broken"))], {}),
        ([Stops(KeyboardInterrupt())], {}),
        ([Breaks()], {}),
        ([], {"max_epochs": 0}),
        ([], {"fast_dev_run": True}),
        ([], {"limit_train_batches": 0}),
    ],
    ids=["stopped", "an error", "interrupted", "an error later", "no epochs", "a trial", "no batches"],
)
def test_a_fit_that_trains_nothing_or_breaks_off_is_no_training_anew(trained, make_trainer, others, given):
    trainer, model, data = trained(callbacks=[callback := IFRUCallback(tolerance=EVERYTHING)])
    assert trainer.unlearn(data, request=pairs(data, 0, 1)).verdict == ADVISED
    other = make_trainer(callbacks=[callback, *others], **{"max_epochs": 2} | given)
    with contextlib.suppress(KeyError, SystemExit):
        other.fit(model, datamodule=data)
    assert "trained_after" not in callback.state_dict()
    assert trainer.unlearn(data, request=pairs(data, 3)).drift["requests"] == 2


def test_a_checkpoint_from_the_midst_of_a_training_anew_says_so(trained, make_data, make_trainer, make_model, best):
    trainer, model, data = trained(callbacks=[callback := IFRUCallback()])
    trainer.unlearn(data, request=pairs(data, 0, 1))
    redraw(model)
    fresh = make_trainer(callbacks=[callback, best()], max_epochs=2)
    fresh.fit(model, datamodule=data)
    path = fresh.checkpoint_callback.best_model_path
    report = make_trainer().unlearn(again := make_data(), model=make_model(), ckpt_path=path, request=pairs(again, 20))
    assert report.drift["requests"] == 1


@pytest.mark.parametrize("after", [{"a": [1]}, 7, ["x"]])
def test_what_is_no_id_of_an_entry_is_refused(after):
    callback = IFRUCallback()
    with pytest.raises(DataError, match="give the file as it was written"):
        callback.load_state_dict({"ledger": [{"id": "a"}], "trained_after": after})
    assert callback.ledger == []


def test_an_incomplete_one_is_undone_where_that_is_asked_for(trained, snapshot):
    callback = IFRUCallback(tolerance=EVERYTHING, on_incomplete="raise")
    trainer, model, data = trained(callbacks=[callback])
    data.forget(pairs(data, 0, 1))
    before = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(
        IncompleteError, match=r"more than the 0% that are tolerated: .* Nothing was changed"
    ) as refusal:
        trainer.unlearn(data)
    assert "might have left" in str(refusal.value)
    assert "--ifru.on_incomplete warn" in str(refusal.value)
    before.check()
    callback.tolerance = Tolerance(doubt=1.0, removed=1.0)
    assert trainer.unlearn(data).verdict != ADVISED
    assert data.pending is None


def test_by_default_it_is_said(trained):
    trainer, _, data = trained(callbacks=[IFRUCallback(tolerance=EVERYTHING)])
    with pytest.warns(UserWarning, match=r"Retrain this model: About .* of the way to a retrained model") as said:
        assert trainer.unlearn(data, request=pairs(data, 0)).verdict == ADVISED
    (place,) = {one.filename for one in said if "Retrain this model" in str(one.message)}
    assert place == __file__, "a line of the caller's"


def test_without_graph_or_steps_nothing_is_added(trained):
    """A request of validation and test pairs alone has no influence."""
    trainer, _, data = trained()
    test = data.test
    request = UnlearningRequest(interactions=[(data.user_ids[test.user[0]], data.item_ids[test.item[0]])])
    report = trainer.unlearn(data, request=request)
    assert (report.residual_before, report.verdict) == (0.0, COMPLETE)
    assert report.drift["forgotten"] == 0


def test_a_seed_gives_the_same_verdict(trained):
    found = []
    for _ in range(2):
        trainer, _, data = trained()
        found.append(trainer.unlearn(data, request=people(data, 3)))
    assert found[0].drift == found[1].drift
