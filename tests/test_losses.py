"""The losses against formulas written out by hand, one example at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.losses import Loss, resolve_loss

# exp of these does not overflow, so that the naive formulas hold to 1e-9.
SCORES = st.floats(-20, 20).map(lambda x: round(x, 6))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


BY_HAND = {
    "bpr": lambda p, ns: sum(-math.log(sigmoid(p - n)) for n in ns) / len(ns),
    "sampled_bce": lambda p, ns: -math.log(sigmoid(p)) - sum(math.log(1 / (1 + math.exp(n))) for n in ns) / len(ns),
    "margin": lambda p, ns: sum(math.log(1 + math.exp(1 - p + n)) for n in ns) / len(ns),
    "sampled_softmax": lambda p, ns: -math.log(math.exp(p) / (math.exp(p) + sum(math.exp(n) for n in ns))),
}


@pytest.mark.parametrize("name", BY_HAND)
@given(rows=st.integers(1, 4).flatmap(lambda k: st.lists(st.lists(SCORES, min_size=1 + k, max_size=1 + k), min_size=1)))
def test_a_loss_of_negatives_is_its_formula(name, rows):
    found = resolve_loss(name)(torch.tensor(rows, dtype=torch.float64), None)
    wanted = [BY_HAND[name](positive, negatives) for positive, *negatives in rows]
    assert found.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-8)


@given(score=SCORES, label=st.floats(0, 1))
def test_a_loss_of_labels_is_its_formula(score, label):
    scores, target = torch.tensor([[score]], dtype=torch.float64), torch.tensor([label], dtype=torch.float64)
    bce = -label * math.log(sigmoid(score)) - (1 - label) * math.log(1 / (1 + math.exp(score)))
    assert resolve_loss("bce")(scores, target).item() == pytest.approx(bce, rel=1e-9, abs=1e-8)
    assert resolve_loss("mse")(scores, target).item() == pytest.approx((score - label) ** 2, rel=1e-12)


@pytest.mark.parametrize("name", [*BY_HAND, "bce", "mse"])
def test_extreme_scores_have_a_finite_loss_and_gradient(name):
    loss = resolve_loss(name)
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    target = None if loss.needs_negatives else torch.tensor([0.0, 1.0])
    value = loss(scores[:, : 2 if loss.needs_negatives else 1], target).sum()
    (gradient,) = torch.autograd.grad(value, scores)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def test_a_listwise_loss_sees_all_negatives_of_an_example_at_once():
    seen = []

    def largest(positive, negative):
        seen.append((tuple(positive.shape), tuple(negative.shape)))
        return negative.max(dim=1).values - positive

    scores = torch.tensor([[1.0, 5.0, 2.0], [0.0, 1.0, 3.0]])
    assert Loss("largest", largest, "listwise")(scores, None).tolist() == [4.0, 3.0]
    assert seen == [((2,), (2, 2))]


@pytest.mark.parametrize("kind", ["pairwise", "listwise"])
def test_a_loss_of_negatives_refuses_examples_without(kind):
    loss = Loss("mine", lambda p, n: p - n, kind)
    with pytest.raises(ObjectiveError, match="'mine' needs negatives and got labelled interactions; leave out the rat"):
        loss(torch.zeros(3, 1), torch.zeros(3))


def test_a_loss_of_labels_refuses_examples_without_and_names_those_that_need_none():
    with pytest.raises(ObjectiveError, match=r"'bce' needs labels and got implicit.*'bpr' or 'sampled_bce'"):
        resolve_loss("bce")(torch.zeros(3, 1), None)


def test_a_listwise_loss_that_returns_one_per_negative_is_refused():
    loss = Loss("mine", lambda p, n: p.unsqueeze(1) - n, "listwise")
    with pytest.raises(ObjectiveError, match=r"'mine' returned \(3, 2\); wanted one loss per example, shape \(3,\)"):
        loss(torch.zeros(3, 3), None)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ObjectiveError, match="'mine' got kind='triple'; wanted 'pointwise', 'pairwise' or 'listwise'"):
        Loss("mine", lambda p, n: p, "triple")


@pytest.mark.parametrize("loss", [["bce"], None, 3])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ObjectiveError, match=r"wanted one of .* a Loss, or a callable"):
        resolve_loss(loss)


def test_a_loss_without_a_function_is_refused():
    with pytest.raises(ObjectiveError, match="the loss 'mine' got None as its function; wanted a callable"):
        Loss("mine", None)


def test_the_path_of_a_function_or_of_a_loss_stands_for_it():
    scores, target = torch.tensor([[2.0]]), torch.tensor([5.0])
    found = resolve_loss("test_losses.absolute_cube")
    assert (found.name, found(scores, target).tolist()) == ("absolute_cube", [27.0])
    assert resolve_loss("test_losses.OWN") is OWN


def absolute_cube(scores, targets):
    return (scores - targets).abs() ** 3


OWN = Loss("own", lambda p, n: (1 - p + n) ** 2, "pairwise")


@pytest.mark.parametrize("path", ["no.such.module", "torch.nn.functional.no_such", ".bce", "bce."])
def test_a_path_that_cannot_be_imported_is_refused(path):
    with pytest.raises(ObjectiveError, match=r"which cannot be imported \(.*\); wanted the path of a function"):
        resolve_loss(path)


def test_a_pairwise_loss_that_looks_at_other_negatives_is_refused():
    scores = torch.linspace(-1, 1, 12).view(3, 4)
    jealous = Loss("jealous", lambda p, n: (n - p).exp() / (n - p).exp().sum(1, keepdim=True), "pairwise")
    with pytest.raises(ObjectiveError, match=r"'jealous' gives a negative another loss beside others.*kind='listwise'"):
        jealous.check_negatives(scores)
    with pytest.raises(ObjectiveError, match="gives a negative another loss beside others"):
        jealous.check_negatives(scores[:, :2])
    for loss in (OWN, *map(resolve_loss, ("bpr", "margin", "sampled_bce", "sampled_softmax", "bce"))):
        loss.check_negatives(scores)
        loss.check_negatives(scores[:, :2])
