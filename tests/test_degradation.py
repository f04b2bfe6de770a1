"""Numbers that cannot go wrong silently: not finite, a loss that explodes, a metric that falls. All is undone."""

import contextlib
import math
from dataclasses import replace

import pytest
import torch

from lightning_ifru import IFRU, IFRUCallback, ObjectiveError, UnlearningRequest, assessment
from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.degradation import check_metrics, check_risk
from lightning_ifru.errors import DegradationError, UnlearningError
from lightning_ifru.influence import IFRU as METHOD
from lightning_ifru.metrics import evaluation
from lightning_ifru.metrics.scores import auroc
from lightning_ifru.models import LightGCN
from lightning_ifru.newton import NewtonSearch
from lightning_ifru.objective import Objective
from lightning_ifru.verdict import Tolerance


def poisoned(tensor, value):
    """The tensor with one wrong number in it."""
    tensor = tensor.clone()
    tensor.view(-1)[len(tensor.view(-1)) // 2] = value
    return tensor


def influence(monkeypatch, value):
    original = METHOD._influence

    def wrong(*args):
        found = original(*args)
        return replace(found, total=poisoned(found.total, value))

    monkeypatch.setattr(METHOD, "_influence", wrong)


def leftover(monkeypatch, value):
    original = METHOD._influence

    def wrong(*args):
        found = original(*args)
        return replace(found, leftover=poisoned(found.leftover, value))

    monkeypatch.setattr(METHOD, "_influence", wrong)


def product(monkeypatch, value):
    original, calls = GaussNewton.__call__, []

    def wrong(self, vector):
        calls.append(None)
        found = original(self, vector)
        return poisoned(found, value) if len(calls) > 4 else found  # those of the mean curvature are right

    monkeypatch.setattr(GaussNewton, "__call__", wrong)


def mean_curvature(monkeypatch, value):
    monkeypatch.setattr(GaussNewton, "__call__", lambda self, vector: poisoned(vector, value))


def gradient(monkeypatch, value):
    """A gradient without a value, at a risk that has one: the derivative of a root at zero."""
    original = Objective.value_and_gradient

    def wrong(self, *args, **kwargs):
        risk, found = original(self, *args, **kwargs)
        return risk, {name: poisoned(tensor, value) for name, tensor in found.items()}

    monkeypatch.setattr(Objective, "value_and_gradient", wrong)


def parameters(monkeypatch, value):
    original = NewtonSearch.run

    def wrong(self, *args):
        theta, steps = original(self, *args)
        return {name: poisoned(tensor, value) for name, tensor in theta.items()}, steps

    monkeypatch.setattr(NewtonSearch, "run", wrong)


def representation(monkeypatch, value):
    """A layer that divides by the number of neighbours, for whoever has none left."""
    original = LightGCN.encode

    def wrong(self, edge_index):
        h = original(self, edge_index)
        alone = torch.bincount(edge_index[0], minlength=len(h)) == 0
        return torch.where(alone.unsqueeze(1), torch.full_like(h, value), h)

    monkeypatch.setattr(LightGCN, "encode", wrong)


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (influence, "the influence has the norm"),
        (leftover, "finite"),
        (gradient, "the influence has the norm"),
        (mean_curvature, "the mean curvature of"),
        (product, "a product with the gauss-newton matrix has values"),
        (parameters, "unlearning arrived at values of 'net.embedding.weight' that are not finite"),
        (representation, "gives 1 of 70 users and items numbers that are not finite"),
    ],
)
def test_what_is_not_finite_is_refused_wherever_it_comes_from(
    trained, snapshot, monkeypatch, fault, words, value, evaluate
):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(curvature="gauss-newton"), evaluate=evaluate)])
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    before = snapshot(model=model, data=data, trainer=trainer)
    with monkeypatch.context() as patch:
        fault(patch, value)
        with pytest.raises(UnlearningError, match=words) as refusal:
            trainer.unlearn(data)
    assert "\n" not in str(refusal.value)
    before.check()
    assert trainer.unlearn(data).steps > 0, "without the fault it goes through"


def test_a_second_derivative_without_a_value_takes_back_an_offer_alone(trained, monkeypatch):
    """Beside Gauss-Newton the Hessian is tried; where it is forced, it is an error."""
    trainer, _, data = trained(max_epochs=60)
    monkeypatch.setattr(Hessian, "__call__", lambda self, vector: torch.full_like(vector, math.nan))
    (callback,) = (each for each in trainer.callbacks if isinstance(each, IFRUCallback))
    callback.method = IFRU(curvature="hessian")
    data.forget(UnlearningRequest(users=data.user_ids[:3].tolist()))
    with pytest.raises(ObjectiveError, match="a product with the hessian matrix has values"):
        trainer.unlearn(data)
    callback.method = IFRU()
    assert trainer.unlearn(data).curvature == "gauss-newton"


def exploding(monkeypatch):
    """A step by which the residual falls, as far as it is told, and the loss explodes."""
    original = NewtonSearch.run

    def wrong(self, *args):
        theta, (step, *_) = original(self, *args)
        theta = {name: 30 * tensor for name, tensor in theta.items()}
        return theta, (replace(step, risk=self.system.look(theta)[0]),)

    monkeypatch.setattr(NewtonSearch, "run", wrong)


@pytest.mark.parametrize("layers", [None, 1])
def test_a_loss_that_explodes_is_undone(trained, snapshot, monkeypatch, layers):
    trainer, model, data = trained(layers=layers, max_epochs=30)
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    before = snapshot(model=model, data=data, trainer=trainer)
    with monkeypatch.context() as patch:
        exploding(patch)
        with pytest.raises(DegradationError, match=r"from 0\.\d+ to \d+.*3-fold") as refusal:
            trainer.unlearn(data)
    assert "\n" not in str(refusal.value)
    before.check()
    report = trainer.unlearn(data)
    assert report.risk_after < 3 * report.risk_before


def test_a_metric_that_falls_is_undone(trained, make_data, snapshot, monkeypatch):
    data = make_data(val_fraction=0.1, test_fraction=0.4)
    assert len(data.test) >= 100
    trainer, model, data = trained(data=data)
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    before = snapshot(model=model, data=data, trainer=trainer)
    answers = iter([{"auroc": 0.8, "recall@20": None}, {"auroc": 0.3, "recall@20": None}])
    with monkeypatch.context() as patch:
        patch.setattr(assessment, "metrics_of", lambda *args, **kwargs: next(answers))
        with pytest.raises(DegradationError, match=r"auroc on 1\d\d .* 0\.800 to 0\.300"):
            trainer.unlearn(data)
    before.check()
    assert trainer.unlearn(data).metrics_after["auroc"] > 0.5


@pytest.fixture
def measurable(make_data, trained):
    """Return ``(trainer, model, data)`` with test pairs enough, and a request staged."""

    def make(loss="bce"):
        data = make_data(loss, val_fraction=0.1, test_fraction=0.4)
        trainer, model, _ = trained(loss, data=data, max_epochs=30)
        data.forget(UnlearningRequest(users=[data.user_ids[3]]))
        return trainer, model, data

    return make


def test_a_model_that_scores_all_alike_is_undone(measurable, snapshot, monkeypatch):
    """By which the loss grows less than threefold, and AUROC loses less than half of its value."""
    trainer, model, data = measurable()
    before = snapshot(model=model, data=data, trainer=trainer)
    original = NewtonSearch.run

    def collapsed(self, *args):
        theta, (step, *_) = original(self, *args)
        theta = {name: 1e-6 * tensor for name, tensor in theta.items()}
        return theta, (replace(step, risk=self.system.look(theta)[0]),)

    def all_alike(scores, positive):
        return auroc((1e3 * scores.double()).round(), positive)

    with monkeypatch.context() as patch:
        patch.setattr(NewtonSearch, "run", collapsed)
        patch.setattr(evaluation, "auroc", all_alike)
        with pytest.raises(
            DegradationError, match=r"auroc on 1\d\d .* to 0\.500, .* the 50% of what lies above one half"
        ):
            trainer.unlearn(data)
    before.check()


@pytest.mark.parametrize(("hits", "fine"), [(19.5, True), (20.5, False)])
def test_a_handful_of_hits_is_that_of_the_test_users(measurable, monkeypatch, hits, fine):
    trainer, _, data = measurable()
    test = data.table.select("test", without=data.removal())
    users = len({int(user) for user, label in zip(test.user, test.label, strict=True) if label > 0})
    answers = iter([{"recall@20": hits / users}, {"recall@20": 0.0}])
    monkeypatch.setattr(assessment, "metrics_of", lambda *args, **kwargs: next(answers))
    with contextlib.nullcontext() if fine else pytest.raises(DegradationError, match=r"recall@20 .* to 0\.000"):
        trainer.unlearn(data)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_the_chance_of_auroc_is_that_of_the_pairs_it_is_taken_on(measurable, monkeypatch, loss):
    """Two standard deviations of the AUROC of scores that say nothing, as many draws of them have it."""
    trainer, _, data = measurable(loss)
    test = data.table.select("test", without=data.removal())
    pairs = test if data.labelled else evaluation.with_negatives(test, data.candidates)
    generator = torch.Generator().manual_seed(1)
    draws = [auroc(torch.rand(len(pairs), generator=generator), pairs.label > 0) for _ in range(1000)]
    chance = 2 * float(torch.tensor(draws).std())
    for fall, fine in ((1.1 * chance, False), (0.9 * chance, True)):
        answers = iter([{"auroc": 0.51 + fall}, {"auroc": 0.51}])
        monkeypatch.setattr(assessment, "metrics_of", lambda *args, one=answers, **kwargs: next(one))
        with contextlib.nullcontext() if fine else pytest.raises(DegradationError, match="auroc"):
            trainer.unlearn(data)


@pytest.mark.parametrize(
    ("before", "after", "pairs", "fine"),
    [
        ({"a": 0.8}, {"a": 0.41}, 100, True),
        ({"a": 0.8}, {"a": 0.39}, 100, False),
        ({"a": 0.8}, {"a": 0.39}, 99, True),
        ({"a": None}, {"a": 0.1}, 100, True),
        ({"a": 0.8}, {"a": None}, 100, True),
        ({"a": 0.8}, {"a": math.nan}, 100, False),
        ({"a": 0.0}, {"a": 0.0}, 100, True),
        ({"auroc": 0.8, "recall@20": 0.02}, {"auroc": 0.8, "recall@20": 0.0}, 100, True),
        ({"auroc": 0.8, "recall@20": 0.1}, {"auroc": 0.3, "recall@20": 0.1}, 100, False),
        ({"auroc": 0.8, "ndcg@20": 0.21}, {"auroc": 0.8, "ndcg@20": 0.1}, 100, False),
        ({"auroc": 0.8, "ndcg@20": 0.19}, {"auroc": 0.8, "ndcg@20": 0.0}, 100, True),
        ({"auroc": 0.723}, {"auroc": 0.5}, 100, False),
        ({"auroc": 0.723}, {"auroc": 0.5}, 99, True),
        ({"auroc": 0.8}, {"auroc": 0.66}, 100, True),
        ({"auroc": 0.8}, {"auroc": 0.64}, 100, False),
        ({"auroc": 0.55}, {"auroc": 0.52}, 100, True),  # a fall of 0.116 is two standard errors
        ({"auroc": 0.61}, {"auroc": 0.5}, 100, True),
        ({"auroc": 0.62}, {"auroc": 0.5}, 100, False),
        ({"auroc": 0.5}, {"auroc": 0.3}, 100, True),
        ({"auroc": 0.4}, {"auroc": 0.1}, 100, True),
        ({"auroc": None}, {"auroc": None}, 100, True),
    ],
)
def test_metrics_may_lose_half_and_what_can_go_by_chance_all(before, after, pairs, fine):
    if fine:
        check_metrics(before, after, pairs, 100, (50, 50), Tolerance())
    else:
        with pytest.raises(DegradationError):
            check_metrics(before, after, pairs, 100, (50, 50), Tolerance())
        check_metrics(before, dict.fromkeys(after, 0.0), pairs, 100, (50, 50), Tolerance(metric_falls=1.0))


@pytest.mark.parametrize(
    ("before", "after", "fine"),
    [(0.5, 1.49, True), (0.5, 1.51, False), (0.5, math.nan, False), (0.5, math.inf, False), (0.0, 0.0, True),
     (-1.0, 0.9, True), (-1.0, 1.1, False), (0.5, 0.1, True)],
)  # fmt: skip
def test_the_loss_may_become_three_times_as_large(before, after, fine):
    if fine:
        check_risk(before, after, Tolerance())
    else:
        with pytest.raises(DegradationError):
            check_risk(before, after, Tolerance())
