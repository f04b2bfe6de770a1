"""Decoding by matrix products against decoding by gathered rows, and both against plain autograd over all pairs."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from lightning_ifru import dot_products
from lightning_ifru.decoding import Gathered
from lightning_ifru.dot_products import AllCandidates, DotProducts
from lightning_ifru.examples import Examples
from lightning_ifru.losses import Loss, resolve_loss
from lightning_ifru.objective import Objective

USERS, ITEMS, DIM, N = 7, 5, 3, 40
GENERATOR = torch.Generator().manual_seed(0)
USER, ITEM = (torch.randint(size, (N,), generator=GENERATOR) for size in (USERS, ITEMS))
NEGATIVE = torch.randint(ITEMS, (N, 3), generator=GENERATOR)
WEIGHT = torch.rand(N, generator=GENERATOR, dtype=torch.float64)
H, TANGENT = (torch.randn(USERS + ITEMS, DIM, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
LABEL = (ITEM % 2).double()
LOPSIDED = Loss("lopsided", lambda p, n: (n - 2 * p).exp() + p.square() * n.sin(), "pairwise")

CASES = {
    "bce": ("bce", {"target": LABEL}),
    "mse": ("mse", {"target": LABEL}),
    "bpr": ("bpr", {"negative": NEGATIVE}),
    "one negative": ("bpr", {"negative": NEGATIVE[:, :1]}),
    "sampled_bce": ("sampled_bce", {"negative": NEGATIVE}),
    "lopsided": (LOPSIDED, {"negative": NEGATIVE}),
    "sampled_softmax": ("sampled_softmax", {"negative": NEGATIVE}),
    "all candidates": ("bpr", {"candidates": torch.tensor([4, 0, 2])}),
    "groups of candidates": ("sampled_softmax", {"candidates": torch.tensor([4, 0, 2, 3]), "group": 2}),
}


def decodings(case, weight):
    loss, parts = CASES[case]
    loss = resolve_loss(loss)
    examples = Examples(USER, ITEM, weight, **parts)
    gathered = Gathered(lambda _, s, t: (s * t).sum(1), loss, examples, USERS, 8)
    if "candidates" in parts:
        return gathered, AllCandidates(loss, examples, USERS, 8)
    return gathered, DotProducts(loss, examples, USERS, ITEMS)


def by_hand(case, weight, h):
    """The sum over all pairs, one at a time."""
    name, parts = CASES[case]
    loss, total = resolve_loss(name), 0.0
    for k in range(N):
        own = h[USER[k]] @ h[USERS + ITEM[k]]
        sets = [parts["negative"][k]] if "negative" in parts else []
        if "candidates" in parts:
            sets = parts["candidates"].view(-1, parts.get("group", len(parts["candidates"])))
        w = weight[k] if isinstance(weight, torch.Tensor) else weight
        if not len(sets):
            total = total + w * loss(own.view(1, 1), LABEL[k : k + 1]).sum()
        for some in sets:
            negative = h[USERS + some] @ h[USER[k]]
            total = total + w * loss(torch.cat([own.view(1), negative]).view(1, -1), None).sum() / len(sets)
    return total


@pytest.mark.parametrize("blocks", ["one block", "many blocks"])
@pytest.mark.parametrize("weight", [pytest.param(1 / N, id="mean"), pytest.param(WEIGHT, id="weights")])
@pytest.mark.parametrize("case", CASES)
def test_matrix_products_equal_gathered_rows_and_every_pair_by_hand(case, weight, blocks, monkeypatch):
    if blocks == "many blocks":
        monkeypatch.setattr(dot_products, "SPARSE", 12)
        monkeypatch.setattr(dot_products, "_DENSE", 8)
    gathered, products = decodings(case, weight)
    h = H.clone().requires_grad_()
    wanted = by_hand(case, weight, h)
    (slope,) = torch.autograd.grad(wanted, h, create_graph=True)
    (bent,) = torch.autograd.grad((slope * TANGENT).sum(), h)
    assert slope.norm() > 0.1
    assert bent.norm() > 0.1
    for decoding in (gathered, products):
        value, gradient, decoder = decoding.value_and_gradient(H, {})
        assert float(value) == pytest.approx(float(wanted), rel=1e-13)
        assert decoder == {}
        torch.testing.assert_close(gradient, slope.detach(), rtol=1e-12, atol=1e-13)
        product, _ = decoding.bend(H, {}, exact=True)(TANGENT, {})
        torch.testing.assert_close(product, bent, rtol=1e-12, atol=1e-12)
    first, second = (decoding.bend(H, {}, exact=False)(TANGENT, {})[0] for decoding in (gathered, products))
    assert (first - bent).norm() > 1e-3, "Gauss-Newton leaves something out"
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("users", [[3] * N, [0] * N, [6] * (N - 1) + [2]])
def test_the_same_pairs_may_occur_more_often_than_there_are_different_ones(users):
    loss = resolve_loss("bpr")
    examples = Examples(torch.tensor(users), ITEM, 1 / N, negative=NEGATIVE)
    assert examples.columns * N > ITEMS * 2
    gathered = Gathered(lambda _, s, t: (s * t).sum(1), loss, examples, USERS, 1000)
    products = DotProducts(loss, examples, USERS, ITEMS)
    for first, second in zip(
        gathered.value_and_gradient(H, {})[:2], products.value_and_gradient(H, {})[:2], strict=True
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-13)


def test_patterns_live_as_long_as_their_examples():
    decoded = {"decode": lambda _, s, t: (s * t).sum(1), "dot_product": True}
    objective = Objective(lambda p, _: p["w"], loss=resolve_loss("bpr"), regularization=None, num_users=USERS,
                          num_items=ITEMS, **decoded)  # fmt: skip
    drawn = Examples(USER, ITEM, 1 / N, negative=NEGATIVE)
    everything = replace(drawn, negative=None, candidates=torch.arange(ITEMS))
    assert objective.decoding(drawn) is replace(objective, chunk_size=3).decoding(drawn)
    kept = [weakref.ref(x) for some in (drawn, everything) for x in (some, objective.decoding(some))]
    del drawn, everything
    gc.collect()
    assert [ref() for ref in kept] == [None] * 4


def test_no_examples_add_nothing():
    none = Examples(USER[:0], ITEM[:0], 1.0, negative=NEGATIVE[:0])
    for examples in (none, replace(none, negative=None, candidates=torch.arange(ITEMS))):
        decoding = AllCandidates if examples.candidates is not None else DotProducts
        value, gradient, _ = decoding(resolve_loss("bpr"), examples, USERS, ITEMS).value_and_gradient(H, {})
        assert float(value) == 0.0
        assert not gradient.any()
