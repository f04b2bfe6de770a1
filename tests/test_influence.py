import math
from dataclasses import fields, replace
from itertools import pairwise

import oracles
import pytest
import torch

from lightning_ifru.errors import ObjectiveError, UnlearningError
from lightning_ifru.examples import Examples
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.influence import IFRU
from lightning_ifru.interactions import Interactions
from lightning_ifru.losses import Loss
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import ravel
from lightning_ifru.problem import Problem
from lightning_ifru.pruning import important_nodes

USERS, ITEMS = 30, 25


def small(loss, density=0.12, seed=3):
    """A sparse world, so that what a removal reaches is a part of it."""
    world = oracles.planted(USERS, ITEMS, density, seed)
    return world.positives() if loss == "bpr" else world


def forgotten_pairs(world, count=3):
    """A mask of ``count`` interactions, positives and (where there are any) a negative."""
    mask = torch.zeros(len(world.data), dtype=torch.bool)
    mask[(world.data.label > 0).nonzero().flatten()[5 : 5 + count]] = True
    mask[(world.data.label == 0).nonzero().flatten()[:1]] = True
    return mask


def at_random(world, dim=3, seed=0):
    return oracles.rows(world.num_users + world.num_items, dim, seed)


# ---------------------------------------------------------------- equation (1)

MODELS = [("bce", 0), ("bce", 1), ("bce", 2), ("mse", 1), ("bpr", 0), ("bpr", 1), ("bpr", 2)]


def full_gradients(world, problem, w, loss, layers, decay, sides):
    """Both sides of equation (1) by plain autograd; for BPR with the negatives that the method drew."""
    d, r, graphs = world.data, problem.retained, (problem.before, problem.after)
    adjacency = [oracles.dense_adjacency(g, len(w)) for g in graphs]
    if loss != "bpr":
        return [
            oracles.full_gradient(w, a, layers, some, world.num_users, loss, decay)
            for a, some in zip(adjacency, (d, r), strict=True)
        ]
    # The mean over D weighs R's examples, with the negatives drawn, and F's, with all items, by their numbers.
    everything = problem.candidates.expand(len(problem.forgotten), -1)
    share = len(problem.forgotten) / len(d)

    def of(a, some, negative):
        return oracles.full_gradient(w, a, layers, some, world.num_users, loss, decay, negative)

    before = (1 - share) * of(adjacency[0], r, sides.retained.negative)
    before = before + share * of(adjacency[0], problem.forgotten, everything)
    return [before, of(adjacency[1], r, sides.retained_after.negative)]


@pytest.mark.parametrize(("loss", "layers"), MODELS)
def test_equation_1_is_the_difference_of_two_full_gradients(loss, layers):
    world = small(loss)
    problem, w, decay = world.problem(forgotten_pairs(world)), at_random(world), 0.01
    method = IFRU(negatives=2)
    objective = oracles.objective(layers, loss, USERS, ITEMS, decay)
    influence = method.influence(objective, {"w": w}, problem)
    before, after = full_gradients(world, problem, w, loss, layers, decay, method.sides(objective, problem))
    assert (before - after).norm() > 1e-3
    torch.testing.assert_close(influence.total, before - after, rtol=0, atol=1e-15)
    torch.testing.assert_close(influence.leftover, before, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("loss", "layers"), MODELS)
def test_the_side_after_is_taken_at_the_parameters_with_the_reset_rows(loss, layers):
    world = small(loss)
    problem, w, decay = world.problem(forgotten_pairs(world)), at_random(world), 0.01
    start = w.clone()
    start[3] += 1.0
    objective, method = oracles.objective(layers, loss, USERS, ITEMS, decay), IFRU(negatives=2)
    influence = method.influence(objective, {"w": w}, problem, {"w": start})
    sides = method.sides(objective, problem)
    before, _ = full_gradients(world, problem, w, loss, layers, decay, sides)
    _, after = full_gradients(world, problem, start, loss, layers, decay, sides)
    assert not torch.allclose(influence.total, method.influence(objective, {"w": w}, problem).total, atol=1e-3)
    torch.testing.assert_close(influence.total, before - after, rtol=0, atol=1e-15)
    torch.testing.assert_close(influence.leftover, before, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("loss", "layers"), MODELS)
def test_direct_and_spillover_add_up_to_the_whole(loss, layers):
    world = small(loss)
    problem, w = world.problem(forgotten_pairs(world)), at_random(world)
    start = {"w": w.clone()}
    start["w"][3] += 1.0
    objective = oracles.objective(layers, loss, USERS, ITEMS, 0.01)
    for at in ({"w": w}, start):
        influence = IFRU().influence(objective, {"w": w}, problem, at)
        omega = 0.01 * (w - at["w"]).flatten()
        total = influence.direct + influence.spillover + omega
        torch.testing.assert_close(influence.total, total, rtol=0, atol=1e-15)
        assert influence.direct.norm() > 1e-4
    assert omega.norm() > 1e-3


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_the_direct_part_is_the_share_times_the_difference_of_means(loss):
    world = small(loss)
    problem, w = world.problem(forgotten_pairs(world)), at_random(world)
    objective = oracles.objective(1, loss, USERS, ITEMS, 0.0)
    method = IFRU()
    sides = method.sides(objective, problem)
    assert sides.retained is sides.retained_after
    mean = {
        part: ravel(objective.gradient({"w": w}, problem.before, examples))
        for part, examples in (("forgotten", sides.forgotten), ("retained", [sides.retained]))
    }
    wanted = len(problem.forgotten) / len(world.data) * (mean["forgotten"] - mean["retained"])
    assert wanted.norm() > 1e-4
    torch.testing.assert_close(method.influence(objective, {"w": w}, problem).direct, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_spillover_is_exactly_zero_for_matrix_factorisation(loss):
    world = small(loss)
    problem, w = world.problem(forgotten_pairs(world)), at_random(world)
    influence, graph = (
        IFRU().influence(oracles.objective(layers, loss, USERS, ITEMS, 0.01), {"w": w}, problem) for layers in (0, 1)
    )
    assert not influence.spillover.any()
    assert influence.direct.any()
    assert graph.spillover.norm() > 1e-4


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_spillover_comes_from_exactly_the_examples_within_reach_of_a_forgotten_edge(loss, layers):
    world = small(loss, density=0.06)
    problem, w = world.problem(forgotten_pairs(world, 1)), at_random(world)
    objective = oracles.objective(layers, loss, USERS, ITEMS, 0.01)
    method = IFRU(negatives=1)
    some = method.sides(objective, problem).retained_after
    n = len(some)
    graphs = problem.before, problem.after
    spill, reached = [], []
    near = problem.affected(objective, layers)
    for k in range(n):
        negative = None if some.negative is None else some.negative[k : k + 1]
        target = None if some.target is None else some.target[k : k + 1]
        one = Examples(some.user[k : k + 1], some.item[k : k + 1], 1 / n, target=target, negative=negative)
        before, after = (ravel(objective.gradient({"w": w}, g, [one])) for g in graphs)
        spill.append(before - after)
        nodes = [some.user[k], USERS + some.item[k]] + ([] if negative is None else [USERS + negative[0, 0]])
        reached.append(any(bool(near[v]) for v in nodes))
    spill = torch.stack(spill)
    assert (spill.abs() > 1e-10).any(dim=1).tolist() == reached
    assert not spill[~torch.tensor(reached)].any()
    assert 0 < sum(reached) < n, "the case should hold examples within reach and beyond it"
    total = method.influence(objective, {"w": w}, problem).spillover
    torch.testing.assert_close(total, spill.sum(0), rtol=0, atol=1e-14)


def test_forgetting_a_negative_example_alone_spills_nothing():
    world = small("bce")
    mask = torch.zeros(len(world.data), dtype=torch.bool)
    mask[(world.data.label == 0).nonzero().flatten()[:2]] = True
    objective = oracles.objective(2, "bce", USERS, ITEMS, 0.01)
    influence = IFRU().influence(objective, {"w": at_random(world)}, world.problem(mask))
    assert influence.spillover.abs().max() < 1e-16
    assert influence.direct.norm() > 1e-4


# ---------------------------------------------------------------- ridge regression


class Ridge:
    """Users carry fixed features, the one item its weights: s = x.w, the loss (s - y)^2 / 2, Ω = λ/2 |w|^2."""

    def __init__(self, n=40, k=5, penalty=0.1, forget=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.n, self.k, self.penalty = n, k, penalty
        self.x = torch.randn(n, k, generator=g, dtype=torch.float64)
        self.y = self.x @ torch.randn(k, generator=g, dtype=torch.float64)
        self.y = self.y + 0.3 * torch.randn(n, generator=g, dtype=torch.float64)
        self.forget = torch.arange(n) < forget
        self.y[self.forget] += 3.0
        data = Interactions(torch.arange(n), torch.zeros(n, dtype=torch.long), self.y)
        edges = [bipartite_edge_index(data.user[m], data.item[m], n) for m in (self.y > 0, (self.y > 0) & ~self.forget)]
        erased = torch.cat([self.forget, torch.tensor([False])])
        item = torch.tensor([0])
        self.problem = Problem(data, self.forget, *edges, erased, item, item)
        self.objective = Objective(
            encode=lambda p, _: torch.cat([self.x, p["w"]]),
            decode=lambda p, s, t: (s * t).sum(-1),
            loss=Loss("half square", lambda s, y: 0.5 * (s - y).square()),
            regularization=lambda p: penalty / 2 * p["w"].square().sum(),
            num_users=n,
            num_items=1,
            node_parameters={"w": "item"},
        )

    def solve(self, keep, leftover=0.0):
        """Where the gradient of the risk over ``keep`` is ``leftover``, in closed form."""
        x, y = self.x[keep], self.y[keep]
        matrix = x.T @ x / len(x) + self.penalty * torch.eye(self.k, dtype=torch.float64)
        return torch.linalg.solve(matrix, x.T @ y / len(x) + leftover)


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian", "auto"])
def test_one_step_of_ridge_regression_equals_retraining(curvature):
    ridge = Ridge()
    trained, retrained = ridge.solve(torch.ones(ridge.n, dtype=torch.bool)), ridge.solve(~ridge.forget)
    assert (trained - retrained).norm() > 0.1
    method = IFRU(curvature=curvature, damping=0.0, cg_tolerance=1e-13, cg_iterations=50)
    update = method.update(ridge.objective, {"w": trained[None]}, ridge.problem)
    torch.testing.assert_close(update.parameters["w"][0], retrained, rtol=0, atol=1e-10)
    assert len(update.steps) == 1
    assert update.residual_after < 1e-10 < update.residual_before


def test_both_curvatures_agree_on_ridge_regression_where_the_scores_are_linear():
    ridge = Ridge()
    trained = ridge.solve(torch.ones(ridge.n, dtype=torch.bool))
    moved = [
        IFRU(curvature=c, damping=0.5, max_steps=1).update(ridge.objective, {"w": trained[None]}, ridge.problem)
        for c in ("gauss-newton", "hessian")
    ]
    assert (moved[0].parameters["w"] - trained).norm() > 1e-2
    torch.testing.assert_close(moved[0].parameters["w"], moved[1].parameters["w"], rtol=0, atol=1e-13)


def test_weights_that_were_not_trained_to_the_minimum_go_to_the_equally_converged_ones():
    ridge = Ridge()
    everything = torch.ones(ridge.n, dtype=torch.bool)
    early = ridge.solve(everything) + 0.3
    hessian = ridge.x.T @ ridge.x / ridge.n + ridge.penalty * torch.eye(ridge.k, dtype=torch.float64)
    leftover = hessian @ (early - ridge.solve(everything))
    wanted = ridge.solve(~ridge.forget, leftover)
    assert (wanted - ridge.solve(~ridge.forget)).norm() > 0.1
    method = IFRU(damping=0.0, cg_tolerance=1e-13, cg_iterations=50)
    update = method.update(ridge.objective, {"w": early[None]}, ridge.problem)
    torch.testing.assert_close(update.parameters["w"][0], wanted, rtol=0, atol=1e-10)
    assert update.stationarity == pytest.approx(float(leftover.norm()) / update.residual_before, rel=1e-9)


# ---------------------------------------------------------------- against retraining


def distance(case, w, forgotten_graph=True, pairs=None):
    """Mean |Δ sigmoid score| to the retrained model, over all pairs or some."""
    gap = (case.scores(w, forgotten_graph) - case.scores(case.retrained)).abs()
    return float(gap.mean() if pairs is None else gap[pairs.user, pairs.item].mean())


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_a_minimum_default_settings_go_to_the_retrained_model(layers, seed):
    case = oracles.at_minimum(layers, seed)
    assert case.scores(case.trained).std() > 0.02, "the scores should vary"
    original, swapped = distance(case, case.trained, False), distance(case, case.trained)
    assert original > 1e-3
    update = IFRU().update(case.objective, {"w": case.trained}, case.problem)
    assert update.stationarity < 1e-3
    after = distance(case, update.parameters["w"])
    assert after < min(original, swapped) / 50
    assert update.residual_after < update.residual_before / 500
    sizes = [update.residual_before, *(step.residual for step in update.steps)]
    assert all(later < earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] == update.residual_after


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_on_early_stopped_weights_nothing_diverges_and_the_paired_retrained_model_is_nearer(layers, seed):
    case = oracles.early_stopped(layers, seed)
    assert case.scores(case.trained).std() > 0.02
    forgotten = case.problem.forgotten
    update = IFRU().update(case.objective, {"w": case.trained}, case.problem)
    w = update.parameters["w"]
    assert update.stationarity > 1.5, "the weights should be far from a minimum"
    assert torch.isfinite(w).all()
    assert (w - case.trained).norm() < 0.5 * case.trained.norm()
    assert w.abs().max() < 1.5 * case.trained.abs().max()
    sizes = [update.residual_before, *(step.residual for step in update.steps)]
    assert len(sizes) > 1
    assert all(later < earlier for earlier, later in pairwise(sizes))
    # On the new graph with the old weights for LightGCN; for MF that is the original.
    assert distance(case, w, pairs=forgotten) < 0.6 * distance(case, case.trained, pairs=forgotten)
    assert distance(case, w) < 0.95 * distance(case, case.trained)


def test_the_residual_is_that_of_the_returned_parameters():
    case = oracles.at_minimum(1)
    update = IFRU(max_steps=1).update(case.objective, {"w": case.trained}, case.problem)
    problem, data = case.problem, case.world.data
    gradients = [
        oracles.full_gradient(w, oracles.dense_adjacency(g, len(w)), 1, some, 60, "bce", case.decay)
        for w, g, some in (
            (update.parameters["w"], problem.after, problem.retained),
            (case.trained, problem.after, problem.retained),
            (case.trained, problem.before, data),
        )
    ]
    assert update.residual_after == pytest.approx(float((gradients[0] - gradients[2]).norm()), rel=1e-9)
    assert update.residual_before == pytest.approx(float((gradients[1] - gradients[2]).norm()), rel=1e-9)
    assert update.residual_after < 0.5 * update.residual_before


# ---------------------------------------------------------------- nothing, erased rows, pruning


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("same_tensor", [True, False])
def test_forgetting_nothing_changes_nothing_to_the_bit(loss, layers, same_tensor):
    world = small(loss)
    problem = world.problem(torch.zeros(len(world.data), dtype=torch.bool))
    if same_tensor:
        problem = replace(problem, after=problem.before)
    w = at_random(world)
    update = IFRU().update(oracles.objective(layers, loss, USERS, ITEMS, 0.01), {"w": w}, problem)
    assert torch.equal(update.parameters["w"], w)
    assert update.steps == ()
    assert update.residual_before == update.residual_after == update.direct_norm == update.spillover_norm == 0.0
    assert update.rows_changed == update.cg_iterations == 0


@pytest.mark.parametrize(("loss", "layers"), [("bce", 0), ("bce", 2), ("bpr", 0), ("bpr", 2)])
def test_erased_rows_are_the_given_ones_and_nothing_else_depends_on_them(loss, layers):
    world = small(loss)
    forget = (world.data.user == world.data.user[0]) | (world.data.item == world.data.item[7])
    problem = world.problem(forget)
    assert problem.erased[:USERS].any()
    assert problem.erased[USERS:].any()
    w, objective = at_random(world), oracles.objective(layers, loss, USERS, ITEMS, 0.05)
    results = []
    for seed, scale in ((1, 0.5), (2, 20.0)):
        start = {"w": torch.where(problem.erased[:, None], oracles.rows(len(w), 3, seed, scale), w)}
        update = IFRU().update(objective, {"w": w}, problem, start=start)
        assert torch.equal(update.parameters["w"][problem.erased], start["w"][problem.erased])
        assert update.steps
        assert update.unknowns == int((~problem.erased).sum())
        results.append(update)
    one, two = (u.parameters["w"][~problem.erased] for u in results)
    assert not torch.equal(one, w[~problem.erased])
    torch.testing.assert_close(one, two, rtol=0, atol=1e-14)
    assert results[0].residual_after == pytest.approx(results[1].residual_after, rel=1e-9)
    assert results[0].rows_changed == int((results[0].parameters["w"] != w).any(1).sum())


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("keep_ratio", [0.05, 0.3])
def test_rows_that_are_not_important_stay_as_they_were_to_the_bit(layers, keep_ratio):
    case = oracles.at_minimum(layers)
    case = replace(case, trained=case.trained.clone())
    case.trained[::7, 0] = -0.0  # signed zeros survive, too
    method = IFRU(keep_ratio=keep_ratio, hops=2)
    update = method.update(case.objective, {"w": case.trained}, case.problem)
    keep = important_nodes(case.objective, case.problem, keep_ratio, 2)
    w = update.parameters["w"]
    assert 0 < int(keep.sum()) < len(keep)
    assert torch.equal(w[~keep].view(torch.int64), case.trained[~keep].view(torch.int64))
    assert (w[keep] != case.trained[keep]).any(dim=1).all()
    assert (update.unknowns, update.rows_changed) == (int(keep.sum()),) * 2
    exact = IFRU().update(case.objective, {"w": case.trained}, case.problem)
    assert exact.unknowns == len(keep)
    assert exact.residual_after < update.residual_after < update.residual_before


def test_dense_parameters_and_one_dimensional_rows_take_part():
    """Biases of users and items, a global offset, and a decoder's slope."""
    world = oracles.planted(20, 15, seed=1)
    g = torch.Generator().manual_seed(0)
    shapes = {"user": (20,), "item": (15,), "offset": (1,), "slope": (1,)}
    parameters = {n: 0.5 + 0.1 * torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    objective = Objective(
        encode=lambda p, _: torch.cat([p["user"], p["item"] + p["offset"]])[:, None],
        decode=lambda p, s, t: (p["slope"] * (s + t)).squeeze(1),
        loss=oracles.objective(0, "bce", 20, 15, 0.0).loss,
        regularization=lambda p: 0.025 * sum(t.square().sum() for t in p.values()),
        num_users=20,
        num_items=15,
        node_parameters={"user": "user", "item": "item"},
        decoder_parameters=("slope",),
    )
    problem = world.problem(world.some(4))
    full = IFRU().update(objective, parameters, problem)
    pruned = IFRU(keep_ratio=0.4).update(objective, parameters, problem)
    for update in (full, pruned):
        assert update.residual_after < update.residual_before
        assert all(bool((update.parameters[n] != parameters[n]).all()) for n in ("offset", "slope"))
    assert full.rows_changed == 35
    assert 0 < pruned.rows_changed == pruned.unknowns < 35


def test_the_parameters_given_are_left_as_they_were():
    case = oracles.at_minimum(1)
    copy = case.trained.clone()
    update = IFRU().update(case.objective, {"w": case.trained}, case.problem)
    assert not torch.equal(update.parameters["w"], copy)
    assert torch.equal(case.trained, copy)


def test_a_stochastic_objective_is_refused_before_anything_is_solved():
    case = oracles.at_minimum(1)
    dropout = torch.nn.functional.dropout
    noisy = replace(case.objective, encode=lambda p, e: dropout(p["w"], 0.5))
    with pytest.raises(ObjectiveError, match="two different answers"):
        IFRU().update(noisy, {"w": case.trained}, case.problem)


# ---------------------------------------------------------------- hyper-parameters


def run(**changes):
    """A BPR LightGCN near its initialisation; returns the method, the update, and the sizes of the chunks used."""
    world = small("bpr", density=0.3)
    forget = world.some(4)
    w = oracles.rows(USERS + ITEMS, 4, 0, 0.7)
    chunks = []

    def decode(p, s, t):
        chunks.append(len(s))
        return (s * t).sum(-1)

    objective = replace(oracles.objective(1, "bpr", USERS, ITEMS, 0.05), decode=decode)
    method = IFRU(**changes)
    problem = world.problem(forget)
    return method.update(objective, {"w": w}, problem), method.sides(objective, problem), chunks


HYPERPARAMETERS = {
    "curvature": (
        {"curvature": "gauss-newton"},
        {"curvature": "hessian", "damping": 30.0},
        lambda u, s, c: {step.curvature for step in u.steps},
        lambda a, b: (a, b) == ({"gauss-newton"}, {"hessian"}),
    ),
    "damping": (
        {"damping": 0.1, "max_steps": 1},
        {"damping": 10.0, "max_steps": 1},
        lambda u, s, c: (u.steps[0].damping, float((u.parameters["w"] - oracles.rows(55, 4, 0, 0.7)).norm())),
        lambda a, b: (a[0], b[0]) == (0.1, 10.0) and a[1] > 2 * b[1] > 0,
    ),
    "max_steps": ({"max_steps": 1}, {"max_steps": 2}, lambda u, s, c: len(u.steps), lambda a, b: (a, b) == (1, 2)),
    "cg_iterations": (
        {"cg_iterations": 1, "cg_tolerance": 1e-8},
        {"cg_iterations": 6, "cg_tolerance": 1e-8},
        lambda u, s, c: max(step.cg_iterations for step in u.steps),
        lambda a, b: (a, b) == (1, 6),
    ),
    "cg_tolerance": (
        {"cg_tolerance": 0.5, "damping": 0.1, "max_steps": 1},
        {"cg_tolerance": 1e-4, "damping": 0.1, "max_steps": 1},
        lambda u, s, c: (u.steps[0].cg_iterations, u.steps[0].status.value),
        lambda a, b: 0 < a[0] < b[0] < 20 and a[1] == b[1] == "converged",
    ),
    "negatives": (
        {"negatives": 1},
        {"negatives": 3},
        lambda u, s, c: s.retained.negative.shape[1],
        lambda a, b: (a, b) == (1, 3),
    ),
    "keep_ratio": (
        {"keep_ratio": 0.3},
        {"keep_ratio": 0.6},
        lambda u, s, c: u.rows_changed,
        lambda a, b: 10 <= a <= 17 < 25 <= b <= 33,
    ),
    "hops": (
        {"keep_ratio": 0.9, "hops": 0},
        {"keep_ratio": 0.9, "hops": 2},
        lambda u, s, c: u.rows_changed,
        lambda a, b: a <= 8 and 40 <= b <= 50,
    ),
    "probes": (
        {"probes": 1, "damping": 1.0, "max_steps": 1},
        {"probes": 5, "damping": 1.0, "max_steps": 1},
        lambda u, s, c: u.cg_iterations - u.steps[0].cg_iterations,
        lambda a, b: (a, b) == (1, 5),
    ),
    "chunk_size": (
        {"chunk_size": 50},
        {"chunk_size": 100000},
        lambda u, s, c: (max(c), len(c), u.parameters["w"]),
        lambda a, b: a[0] <= 50 < b[0] and a[1] > 5 * b[1] and torch.allclose(a[2], b[2], rtol=0, atol=1e-12),
    ),
    "seed": (
        {"seed": 0},
        {"seed": 1},
        lambda u, s, c: s.retained.negative,
        lambda a, b: not torch.equal(a, b),
    ),
}


def test_the_table_of_hyperparameters_is_complete():
    budgets = {"locality", "max_rows", "examples_per_row"}  # of local solves, see test_local
    assert {field.name for field in fields(IFRU)} == set(HYPERPARAMETERS) | budgets == {name for name, *_ in INVALID}


def test_the_influence_alone_goes_through_in_chunks_of_the_methods_size():
    world, sizes = small("bce"), []

    def decode(p, s, t):
        sizes.append(len(s))
        return (s * t).sum(-1)

    objective = replace(oracles.objective(1, "bce", USERS, ITEMS, 0.05), decode=decode)
    IFRU(chunk_size=9).influence(objective, {"w": at_random(world)}, world.problem(world.some(4)))
    assert max(sizes) == 9 < len(world.data) - 4


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_hyperparameter_changes_what_it_says(name):
    one, other, look, differ = HYPERPARAMETERS[name]
    runs = [run(**changes) for changes in (one, other, one)]
    seen = [look(*result) for result in runs]
    assert differ(seen[0], seen[1]), seen
    results = [update.parameters["w"] for update, *_ in runs]
    assert torch.equal(results[0], results[2]), "the same settings give the same bits"
    if name != "chunk_size":
        assert (results[0] - results[1]).abs().max() > 1e-6


INVALID = [
    ("curvature", ["newton", "", None], "'auto', 'gauss-newton' or 'hessian'"),
    ("damping", ["0.1", True, -0.1, math.inf, math.nan], "None or a number of at least 0"),
    ("max_steps", [0, -1, 1.5], "an integer of at least 1"),
    ("cg_iterations", [0, -1, 2.5, True], "an integer of at least 1"),
    ("cg_tolerance", [0.0, 1.0, -1.0, math.nan], "a number between 0 and 1"),
    ("negatives", [0, -1, 2.5, "4"], "an integer of at least 1"),
    ("keep_ratio", ["1", 0.0, 1.1, -1.0, math.nan], "a number above 0 and at most 1"),
    ("hops", [-1, 0.5], "an integer of at least 0"),
    ("locality", ["near", "", None], "'auto', 'full' or 'local'"),
    ("max_rows", [-1, 0.5, True], "an integer of at least 0"),
    ("examples_per_row", [0, -1, 2.5], "an integer of at least 1"),
    ("probes", [0, -1, 0.5], "an integer of at least 1"),
    ("chunk_size", [0, -1, 10.5], "an integer of at least 1"),
    ("seed", [-1, 0.5], "an integer of at least 0"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), [(n, v, w) for n, values, w in INVALID for v in values])
def test_a_hyperparameter_out_of_its_range_is_refused_by_name(name, value, wanted):
    with pytest.raises(UnlearningError) as error:
        IFRU(**{name: value})
    assert str(error.value) == f"IFRU got {name}={value!r}; wanted {wanted}."


@pytest.mark.parametrize("changes", [{"damping": 0}, {"hops": 0}, {"keep_ratio": 1}, {"seed": 0}, {"max_steps": 1}])
def test_the_ends_of_the_ranges_are_accepted(changes):
    (name,) = changes
    assert getattr(IFRU(**changes), name) == changes[name]
