import itertools
import math
from dataclasses import replace

import oracles
import pytest
import torch
import torch.nn.functional as F

from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Chunk, Examples, chunks
from lightning_ifru.losses import Loss, resolve_loss
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import ravel

USERS, ITEMS, DIM, DECAY = 6, 5, 3, 0.03
WORLD = oracles.planted(USERS, ITEMS, density=0.7, seed=2)
DATA, N = WORLD.data, len(WORLD.data)
NEGATIVE = torch.randint(ITEMS, (N, 3), generator=torch.Generator().manual_seed(0))
W = oracles.rows(USERS + ITEMS, DIM, seed=1)
GRAPH = WORLD.graph()


def huber(scores, targets):
    return F.smooth_l1_loss(scores, targets, beta=10.0, reduction="none")


def examples(loss, weight=1 / N):
    if loss == "bpr":
        return Examples(DATA.user, DATA.item, weight, negative=NEGATIVE)
    return Examples(DATA.user, DATA.item, weight, target=DATA.label)


def naive(loss, w, layers=2):
    """Value and gradient by a loop over examples and one autograd graph."""
    w = w.clone().requires_grad_()
    h = oracles.represent(w, oracles.dense_adjacency(GRAPH, len(w)), layers)
    total = 0.0
    for k in range(N):
        s = h[DATA.user[k]] @ h[USERS + DATA.item[k]]
        if loss == "bpr":
            terms = [-F.logsigmoid(s - h[DATA.user[k]] @ h[USERS + j]) for j in NEGATIVE[k].tolist()]
            total = total + sum(terms) / len(terms)
        elif loss == "bce":
            total = total - F.logsigmoid(s if DATA.label[k] > 0 else -s)
        else:
            total = total + (s - DATA.label[k]) ** 2 / (20.0 if loss is huber else 1.0)
    value = total / N + DECAY / 2 * (w * w).sum()
    return float(value), torch.autograd.grad(value, w)[0]


# ---------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 7, 1000])
@pytest.mark.parametrize("loss", ["bce", "bpr", "mse", pytest.param(huber, id="huber")])
def test_value_and_gradient_equal_plain_autograd_whatever_the_chunks(loss, chunk_size):
    objective = oracles.objective(2, loss, USERS, ITEMS, DECAY, chunk_size)
    value, gradient = objective.value_and_gradient({"w": W}, GRAPH, [examples(loss)])
    wanted, wanted_gradient = naive(loss, W)
    assert wanted_gradient.norm() > 1e-2
    assert value == pytest.approx(wanted, rel=1e-13)
    torch.testing.assert_close(gradient["w"], wanted_gradient, rtol=0, atol=1e-15)
    assert torch.equal(gradient["w"], objective.gradient({"w": W}, GRAPH, [examples(loss)])["w"])


def test_without_regularisation_the_gradient_is_that_of_the_mean_alone():
    objective = oracles.objective(1, "bce", USERS, ITEMS, DECAY)
    value, gradient = objective.value_and_gradient({"w": W}, GRAPH, [examples("bce")])
    bare, bare_gradient = objective.value_and_gradient({"w": W}, GRAPH, [examples("bce")], regularize=False)
    assert value - bare == pytest.approx(DECAY / 2 * float(W.square().sum()), rel=1e-12)
    torch.testing.assert_close(gradient["w"] - bare_gradient["w"], DECAY * W, rtol=0, atol=1e-15)


def test_weighted_sets_of_examples_add_up():
    objective = oracles.objective(1, "mse", USERS, ITEMS, 0.0)
    half = torch.arange(N) % 2 == 0
    parts = [Examples(DATA.user[m], DATA.item[m], 1 / N, target=DATA.label[m]) for m in (half, ~half)]
    assert min(len(part) for part in parts) > 2
    value, gradient = objective.value_and_gradient({"w": W}, GRAPH, parts)
    whole, whole_gradient = objective.value_and_gradient({"w": W}, GRAPH, [examples("mse")])
    twice, _ = objective.value_and_gradient({"w": W}, GRAPH, [examples("mse", 2 / N)])
    assert value == pytest.approx(whole, rel=1e-13)
    assert twice == pytest.approx(2 * whole, rel=1e-13)
    torch.testing.assert_close(gradient["w"], whole_gradient["w"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 6, 12, 1000])
def test_candidates_are_the_exact_mean_over_all_items_whatever_the_chunks(chunk_size):
    objective = oracles.objective(1, "bpr", USERS, ITEMS, 0.0, chunk_size)
    some = torch.tensor([4, 0, 2, 3])
    value, gradient = objective.value_and_gradient(
        {"w": W}, GRAPH, [Examples(DATA.user, DATA.item, 1 / N, candidates=some)]
    )
    w = W.clone().requires_grad_()
    h = oracles.represent(w, oracles.dense_adjacency(GRAPH, len(w)), 1)
    wanted = oracles.example_losses(h, DATA, USERS, "bpr", some.expand(N, -1)).mean()
    assert value == pytest.approx(float(wanted), rel=1e-13)
    torch.testing.assert_close(gradient["w"], torch.autograd.grad(wanted, w)[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 8, 1000])
def test_groups_of_candidates_are_the_mean_over_examples_with_every_group(chunk_size):
    objective = oracles.objective(1, "sampled_softmax", USERS, ITEMS, 0.0, chunk_size)
    dealt = torch.tensor([4, 0, 2, 3, 1, 0])
    parts = Examples(DATA.user, DATA.item, 1 / N, candidates=dealt, group=2)
    value, gradient = objective.value_and_gradient({"w": W}, GRAPH, [parts])
    w = W.clone().requires_grad_()
    h = oracles.represent(w, oracles.dense_adjacency(GRAPH, len(w)), 1)
    wanted = 0.0
    for k, group in itertools.product(range(N), [[4, 0], [2, 3], [1, 0]]):
        own, others = h[DATA.user[k]] @ h[USERS + DATA.item[k]], h[USERS + torch.tensor(group)] @ h[DATA.user[k]]
        wanted = wanted - torch.log(own.exp() / (own.exp() + others.exp().sum())) / 3 / N
    assert value == pytest.approx(float(wanted), rel=1e-13)
    torch.testing.assert_close(gradient["w"], torch.autograd.grad(wanted, w)[0], rtol=0, atol=1e-15)
    cut = list(chunks(parts, USERS, chunk_size))
    assert max(c.source.numel() for c in cut) <= max(chunk_size, 3)
    assert sum(c.weight * c.source.numel() / c.columns for c in cut) == pytest.approx(1.0)


def test_nodes_own_penalties_weigh_as_much_as_the_examples_say():
    plain = oracles.objective(1, "bce", USERS, ITEMS, DECAY)
    objective = replace(plain, node_regularization=lambda p: p["w"].pow(4).sum(1))
    presence = torch.rand(USERS + ITEMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with_it, without = replace(examples("bce"), presence=presence), examples("bce")
    value, gradient = objective.value_and_gradient({"w": W}, GRAPH, [with_it])
    least, least_gradient = plain.value_and_gradient({"w": W}, GRAPH, [without])
    assert objective.value_and_gradient({"w": W}, GRAPH, [without])[0] == least
    assert value - least == pytest.approx(sum(float(presence[v] * W[v].pow(4).sum()) for v in range(len(W))), rel=1e-10)
    wanted = 4 * presence.unsqueeze(1) * W.pow(3)
    assert wanted.norm() > 1e-2
    torch.testing.assert_close(gradient["w"] - least_gradient["w"], wanted, rtol=0, atol=1e-13)
    bare = objective.value_and_gradient({"w": W}, GRAPH, [with_it], regularize=False)[0]
    assert bare == pytest.approx(least - DECAY / 2 * float(W.square().sum()))
    for curvature in (GaussNewton, Hessian):
        vector = oracles.rows(USERS + ITEMS, DIM, seed=4).flatten()
        more = curvature(objective, {"w": W}, GRAPH, [with_it])(vector)
        less = curvature(plain, {"w": W}, GRAPH, [without])(vector)
        bend = (12 * presence.unsqueeze(1) * W.square()).flatten() * vector
        torch.testing.assert_close(more - less, bend, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("kind", ["target", "negative", "candidates"])
def test_chunks_hold_at_most_their_size_and_at_least_one_example(kind, chunk_size):
    value = {"target": DATA.label, "negative": NEGATIVE, "candidates": torch.arange(ITEMS)}[kind]
    cut = list(chunks(Examples(DATA.user, DATA.item, 1.0, **{kind: value}), USERS, chunk_size))
    smallest = {"target": 1, "negative": 4, "candidates": 2}[kind]
    assert max(c.source.numel() for c in cut) <= max(chunk_size, smallest)
    assert all(c.source.numel() % c.columns == 0 for c in cut)
    own = sum((c.weight * c.source.numel() / c.columns for c in cut), start=0.0)
    assert own == pytest.approx(N), "each example's weight appears once in all"
    if chunk_size < N:
        assert len(cut) > 1


def test_a_chunk_pairs_the_user_with_its_item_and_then_its_negatives():
    chunk = Chunk.of(
        10, Examples(torch.tensor([1, 2]), torch.tensor([3, 4]), 1.0, negative=torch.tensor([[5, 6], [7, 8]]))
    )
    assert chunk.source.tolist() == [1, 1, 1, 2, 2, 2]
    assert chunk.destination.tolist() == [13, 15, 16, 14, 17, 18]
    assert chunk.columns == 3


class MLP:
    """Scores by a small network on both rows; a user table and an item table instead of one."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        shapes = {"user": (USERS, 2), "item": (ITEMS, 2), "hidden": (4, 4), "out": (4,), "unused": (2,)}
        self.parameters = {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}

    @staticmethod
    def encode(p, edge_index):
        return torch.cat([p["user"], p["item"]])

    @staticmethod
    def decode(p, source, destination):
        return torch.tanh(torch.cat([source, destination], 1) @ p["hidden"]) @ p["out"]

    def objective(self, loss="bce", **changes):
        known = {"user": "user", "item": "item"}
        return Objective(
            self.encode,
            self.decode,
            resolve_loss(loss),
            lambda p: DECAY / 2 * sum(t.square().sum() for t in p.values()),
            USERS,
            ITEMS,
            node_parameters=known,
            decoder_parameters=("hidden", "out"),
            **changes,
        )


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_the_decoders_own_parameters_take_part(chunk_size):
    model = MLP()
    _, gradient = model.objective(chunk_size=chunk_size).value_and_gradient(model.parameters, GRAPH, [examples("bce")])
    p = {name: t.clone().requires_grad_() for name, t in model.parameters.items()}
    scores = model.decode(p, p["user"][DATA.user], p["item"][DATA.item])
    value = F.binary_cross_entropy_with_logits(scores, DATA.label)
    value = value + DECAY / 2 * sum(t.square().sum() for t in p.values())
    wanted = dict(zip(p, torch.autograd.grad(value, list(p.values())), strict=True))
    assert list(gradient) == list(wanted)
    assert (wanted["hidden"] - DECAY * p["hidden"]).norm() > 1e-2
    torch.testing.assert_close(ravel(gradient), ravel(wanted), rtol=0, atol=1e-15)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("name", ["bce", "mse"])
def test_a_pointwise_loss_refuses_examples_without_labels(name):
    with pytest.raises(ObjectiveError, match=rf"'{name}' needs labels and got implicit .* or choose loss='bpr'"):
        resolve_loss(name)(torch.zeros(2, 1), None)


def test_a_pairwise_loss_refuses_examples_without_negatives():
    objective = oracles.objective(0, "bpr", USERS, ITEMS, 0.0)
    with pytest.raises(ObjectiveError, match=r"'bpr' needs negatives and got labelled .* choose loss='bce'"):
        objective.gradient({"w": W}, GRAPH, [examples("bce")])


@pytest.mark.parametrize(
    ("loss", "columns", "got", "wanted"),
    [
        (F.mse_loss, 1, r"\(\)", r"\(4,\)"),
        (lambda s, y: (s - y).square().unsqueeze(1), 1, r"\(4, 1\)", r"\(4,\)"),
        (lambda s, y: 0.5, 1, "float", r"\(4,\)"),
        (Loss("pairs", lambda p, n: F.softplus(n - p).mean(), "pairwise"), 3, r"\(\)", r"\(4, 2\)"),
        (Loss("pairs", lambda p, n: F.softplus(n - p).mean(1), "pairwise"), 3, r"\(4,\)", r"\(4, 2\)"),
    ],
    ids=["mean", "a column", "a number", "mean of pairs", "mean over negatives"],
)
def test_a_loss_that_is_not_one_per_example_is_refused_by_its_shape(loss, columns, got, wanted):
    with pytest.raises(ObjectiveError, match=rf"returned {got}; wanted one loss per example, shape {wanted}: .*'none'"):
        resolve_loss(loss)(torch.zeros(4, columns), torch.zeros(4))


def test_an_unknown_loss_is_refused_with_those_known():
    with pytest.raises(
        ObjectiveError, match=r"loss='warp'; wanted one of \['bce', 'bpr', .*'sampled_softmax'\], a Loss, or a callable"
    ):
        resolve_loss("warp")


def test_a_loss_is_resolved_from_a_name_a_callable_or_itself():
    assert resolve_loss(huber).name == "huber"
    assert resolve_loss(huber).kind == "pointwise"
    assert resolve_loss("bpr").kind == "pairwise"
    loss = Loss("mine", huber)
    assert resolve_loss(loss) is loss


def test_labels_are_brought_to_the_scores_precision():
    out = resolve_loss("bce")(torch.zeros(2, 1, dtype=torch.float64), torch.tensor([1, 0]))
    assert out.dtype == torch.float64
    assert out.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-15)


# ---------------------------------------------------------------- refusals


def check(loss="mse", **changes):
    objective = replace(oracles.objective(1, loss, USERS, ITEMS, 0.0), **changes)
    objective.check({"w": W}, GRAPH, examples(loss))


@pytest.mark.parametrize("loss", ["bce", "bpr", "mse", pytest.param(huber, id="huber")])
def test_a_proper_objective_passes_the_check(loss):
    check(loss)
    check(loss, linear=True)


def hinge(scores, targets):
    return torch.relu(1 - scores * (2 * targets - 1))


HINGE_PAIRS = Loss("hinge pairs", lambda p, n: torch.relu(1 - p + n), "pairwise")
REFUSED = {
    "dropout in the encoder": (
        {"encode": lambda p, e: F.dropout(p["w"], 0.5)},
        "two different answers to the same input.*model.eval",
    ),
    "dropout in the decoder": (
        {"decode": lambda p, s, t: F.dropout(s * t, 0.5).sum(-1)},
        "two different answers to the same input.*model.eval",
    ),
    "an encoder without items": (
        {"encode": lambda p, e: p["w"][:USERS]},
        rf"encode of .* returned shape \({USERS}, {DIM}\); wanted .*{USERS + ITEMS}, d\].*{USERS} users .*{ITEMS} it",
    ),
    "an encoder of one dimension": (
        {"encode": lambda p, e: p["w"].sum(-1)},
        rf"encode of .* returned shape \({USERS + ITEMS},\)",
    ),
    "a decoder that keeps the dimension": (
        {"decode": lambda p, s, t: s * t},
        rf"decode of .* returned shape \({N}, {DIM}\) for {N} pairs; wanted one score .* shape \({N},\)",
    ),
    "a bent encoder that is said to be linear": (
        {"encode": lambda p, e: p["w"].relu(), "linear": True},
        "declares layer_weights and its encode is not linear.*declare none",
    ),
    "a shifted encoder that is said to be linear": (
        {"encode": lambda p, e: p["w"] + 1, "linear": True},
        "declares layer_weights and its encode is not linear.*declare none",
    ),
    "hinge loss": ({"loss": Loss("hinge", hinge)}, "'hinge' has no curvature.*'bce', 'bpr' or 'mse'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_check_refuses(name):
    changes, message = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ObjectiveError, match=message):
        check(**changes)


def test_the_check_refuses_a_pairwise_hinge_loss():
    objective = replace(oracles.objective(1, "bpr", USERS, ITEMS, 0.0), loss=HINGE_PAIRS)
    with pytest.raises(ObjectiveError, match="'hinge pairs' has no curvature"):
        objective.check({"w": W}, GRAPH, examples("bpr"))


@pytest.mark.parametrize(("least", "most"), [(1.0, 5.0), (-1.0, 1.0), (0.0, 1.5)])
def test_the_check_refuses_labels_that_are_no_probabilities_for_bce_alone(least, most):
    target = torch.linspace(least, most, N)
    rated = replace(examples("bce"), target=target)
    with pytest.raises(
        ObjectiveError, match=rf"'bce' needs .* 0 to 1 and got labels from {least:g} to {most:g}; .*'mse'"
    ):
        oracles.objective(1, "bce", USERS, ITEMS, 0.0).check({"w": W}, GRAPH, rated)
    oracles.objective(1, "mse", USERS, ITEMS, 0.0).check({"w": W}, GRAPH, rated)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_risk_that_is_not_finite_is_refused(bad):
    objective = oracles.objective(1, "mse", USERS, ITEMS, DECAY)
    w = W.clone()
    w[0, 0] = bad
    with pytest.raises(
        ObjectiveError, match=r"objective of the model is (nan|inf) at these parameters.*check weights and data"
    ):
        objective.value_and_gradient({"w": w}, GRAPH, [examples("mse")])


def test_weights_that_are_not_numbers_are_not_mistaken_for_dropout():
    objective = oracles.objective(1, "mse", USERS, ITEMS, DECAY)
    w = torch.full_like(W, math.nan)
    objective.check({"w": w}, GRAPH, examples("mse"))
    with pytest.raises(ObjectiveError, match="NaN"):
        objective.gradient({"w": w}, GRAPH, [examples("mse")])


STOCHASTIC = {
    "encode": {"encode": lambda p, e: p["w"] + torch.randn(())},
    "decode": {"decode": lambda p, s, t: (s * t).sum(-1) * torch.rand(())},
    "the loss": {"loss": Loss("noisy", lambda s, y: (s - y) ** 2 * torch.rand(()))},
    "the regularization": {"regularization": lambda p: p["w"].sum() * torch.rand(())},
}


@pytest.mark.parametrize("part", STOCHASTIC)
def test_a_part_that_draws_random_numbers_is_named_and_refused(part):
    objective = replace(oracles.objective(1, "mse", USERS, ITEMS, DECAY), **STOCHASTIC[part], name="Mine")
    with pytest.raises(ObjectiveError, match=rf"^{part} of Mine gave two different answers .*eval\(\)"):
        objective.check({"w": W}, GRAPH, examples("mse"))


def test_a_loss_that_is_no_number_for_finite_scores_is_named_and_refused():
    root = Loss("root", lambda s, y: (s - 100).sqrt())
    objective = replace(oracles.objective(1, "mse", USERS, ITEMS, DECAY), loss=root, name="Mine")
    with pytest.raises(
        ObjectiveError, match=r"the loss 'root' of Mine is nan for finite scores from .* check its form"
    ):
        objective.check({"w": W}, GRAPH, examples("mse"))


DETACHED = {
    "detached": lambda p, e: p["w"].detach() * 2,
    "constant": lambda p, e: torch.ones(USERS + ITEMS, DIM, dtype=torch.float64) * W,
    "dead units": lambda p, e: torch.relu(-p["w"].abs() - 1),
}


@pytest.mark.parametrize("how", DETACHED)
def test_scores_that_do_not_depend_on_the_parameters_are_refused(how):
    objective = replace(oracles.objective(1, "bce", USERS, ITEMS, DECAY), encode=DETACHED[how], name="Mine")
    with pytest.raises(ObjectiveError, match=r"scores of Mine do not depend on its trainable parameters \(w\); "):
        objective.check({"w": W}, GRAPH, examples("bce"))
