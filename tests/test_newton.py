import math
from dataclasses import replace
from itertools import pairwise

import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ifru import newton
from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.graph import bipartite_edge_index
from lightning_ifru.influence import IFRU
from lightning_ifru.interactions import Interactions
from lightning_ifru.losses import Loss
from lightning_ifru.newton import DAMPINGS, _walk
from lightning_ifru.objective import Objective
from lightning_ifru.problem import Problem
from lightning_ifru.pruning import important_nodes
from lightning_ifru.solvers import Status

# ---------------------------------------------------------------- the walk along the ladder


def walk(sizes, start, current=math.inf):
    """The index walked to, and the indices looked at."""
    seen = []

    def size(index):
        assert 0 <= index < len(sizes)
        seen.append(index)
        return sizes[index]

    return _walk(size, start, len(sizes), current), seen


def reference_walk(sizes, start, current):
    """The rule without a walk: of all places where a search could end, the one that each of its sentences names."""
    indices = range(len(sizes))
    # To smaller dampings up to the first that the next one does not improve on by 2%.
    ends = {k for k in indices[start:] if k + 1 == len(sizes) or not sizes[k + 1] < 0.98 * sizes[k]}
    best = min(ends)
    if best == start:
        # To larger ones as long as each gains, or is looked for because the last has gained nothing.
        upward = {k for k in indices[:start] if sizes[k] < sizes[k + 1] or sizes[k + 1] >= current}
        best = min(k for k in indices[: start + 1] if upward >= set(range(k, start)))

    # Back to the largest that is worse by at most 5% of the best and of what the best gains, and all between with it.
    def as_good(k):
        least = min(sizes[k + 1 : best + 1])
        return sizes[k] <= least + 0.05 * min(least, current - least)

    return min(k for k in indices[: best + 1] if all(as_good(j) for j in range(k, best)))


@st.composite
def ladders(draw):
    """Sizes from a fine grid, some infinite, where to start, and the size to fall below."""
    grid = [1.015**k for k in range(-8, 25)]
    size = st.sampled_from(grid) | st.sampled_from(grid) | st.just(math.inf)
    sizes = draw(st.lists(size, min_size=1, max_size=10))
    if draw(st.booleans()):
        bottom = draw(st.integers(0, len(sizes)))
        sizes = sorted(sizes[:bottom], reverse=True) + sorted(sizes[bottom:])
    start = draw(st.integers(0, len(sizes) - 1))
    return sizes, start, draw(size)


@given(case=ladders())
@settings(max_examples=1000, deadline=None)
def test_the_walk_ends_where_the_rule_says(case):
    assert walk(*case)[0] == reference_walk(*case)


@st.composite
def valleys(draw, least_ratio):
    """Sizes that fall and then rise, neighbours at least a factor apart; and where to start."""
    ratio = st.floats(least_ratio, 3.0)
    left, right = draw(st.lists(ratio, max_size=6)), draw(st.lists(ratio, max_size=6))
    sizes = [1.0]
    for r in left:
        sizes.insert(0, sizes[0] * r)
    for r in right:
        sizes.append(sizes[-1] * r)
    return sizes, draw(st.integers(0, len(sizes) - 1))


@given(case=valleys(1.06))
@settings(max_examples=200, deadline=None)
def test_the_walk_finds_the_bottom_of_a_steep_valley_from_anywhere(case):
    sizes, start = case
    assert walk(sizes, start)[0] == min(range(len(sizes)), key=sizes.__getitem__)


@given(case=valleys(1.021), gain=st.floats(1e-3, 3.0))
@settings(max_examples=200, deadline=None)
def test_of_a_valley_the_largest_damping_within_indifference_of_the_bottom_is_taken(case, gain):
    sizes, start = case
    within = [k for k in range(len(sizes)) if sizes[k] <= 1 + 0.05 * min(1, gain)]
    assert walk(sizes, start, current=1 + gain)[0] == min(within)


@given(sizes=st.lists(st.floats(0.1, 10.0) | st.just(math.inf), min_size=1, max_size=10), data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_walk_looks_at_neighbours_only_and_ends_no_higher_than_indifference_allows(sizes, data):
    start = data.draw(st.integers(0, len(sizes) - 1))
    found, seen = walk(sizes, start)
    reached = {*seen, start}
    assert reached == set(range(min(reached), max(reached) + 1))
    assert sizes[found] <= 1.05 * sizes[start]
    if any(math.isfinite(s) for s in sizes[: start + 1]):
        assert math.isfinite(sizes[found]), "larger dampings are tried where smaller ones are infinite"


INF = math.inf
#: Sizes, where to start, the size to fall below; and where the walk ends.
WALKS = {
    "downhill to the bottom": ([4.0, 2.0, 1.0, 1.5], 0, INF, 2),
    "a gain of 2.1% is gone for": ([8.0, 4.0, 3.916], 1, 4.001, 2),
    "one of 1.9% is not": ([8.0, 4.0, 3.924], 1, 4.001, 1),
    "a fall behind a rise is not seen": ([1.0, 1.04, 0.5, 2.0], 0, INF, 0),
    "smaller dampings are infinite: stop before": ([4.0, 2.0, 1.0, INF, INF], 1, INF, 2),
    "the start and all smaller are infinite: go up": ([4.0, 2.0, 1.0, INF, INF], 3, INF, 2),
    "from the last, all but one infinite": ([1.0, INF, INF, INF], 3, INF, 0),
    "an infinite start between finite ones prefers the smaller damping": ([3.0, INF, 1.0, 2.0], 1, INF, 2),
    "all infinite": ([INF, INF], 1, 1.0, 0),
    "larger dampings need only gain": ([0.8, 0.99, 1.0, 2.0], 2, 1.5, 0),
    "up to the bottom": ([2.0, 0.5, 0.7, 1.0, 2.0], 3, 1.5, 1),
    "past what gains nothing as long as nothing is gained": ([0.5, 2.0, 1.5, 1.2], 3, 1.0, 0),
    "once something is gained larger dampings must gain more": ([0.5, 0.9, 0.8, 1.2], 3, 1.0, 2),
    "having gone downhill the walk does not look up": ([0.1, 4.0, 2.0, 1.5, 3.0], 2, 1.0, 3),
    "flat: as large a damping as can be": ([1.0, 1.0, 1.0, 1.0], 1, INF, 0),
    "back within 5% of the bottom": ([1.06, 1.04, 1.02, 1.0, 2.0], 3, INF, 1),
    "back within 5% of what the bottom gains": ([1.06, 1.04, 1.02, 1.0, 2.0], 3, 1.5, 2),
    "where nothing is gained the last": ([1.0, 1.0, 1.0], 2, 0.99, 0),
    "back only as far as all are as good": ([1.0, 2.0, 1.03, 1.0, 3.0], 3, INF, 2),
    "a ladder of one": ([7.0], 0, INF, 0),
    "a ladder of one that gains nothing": ([7.0], 0, 1.0, 0),
}


@pytest.mark.parametrize("name", WALKS)
def test_the_walk_follows_its_rules(name):
    *case, wanted = WALKS[name]
    assert walk(*case)[0] == reference_walk(*case) == wanted


@given(case=valleys(1.001), current=st.floats(0.5, 3.0))
def test_where_smaller_dampings_gain_nothing_larger_ones_are_tried_down_to_the_bottom_of_the_valley(case, current):
    sizes, start = case
    found = walk(sizes, start, current)[0]
    if sizes[found] >= current:
        assert min(sizes[: start + 1]) >= current


def test_a_flat_stretch_does_not_hide_a_much_larger_damping_that_gains():
    sizes = [0.066, 0.1, 0.123, 0.1317, 0.135, 0.136, 0.1363, 0.1364, 0.1365, 0.1365]
    assert walk(sizes, 5, current=0.13)[0] == 0
    assert walk(sizes, 5, current=0.14)[0] == 0


# ---------------------------------------------------------------- steps


def trained(layers=1):
    case = oracles.at_minimum(layers)
    return case, case.objective, case.problem


def indefinite():
    """An MF far from its minimum, where the Hessian has large negative eigenvalues; and these."""
    world = oracles.planted(12, 10, seed=1)
    forget = world.some(3)
    w = oracles.rows(22, 3, seed=5, scale=1.0)
    objective = oracles.objective(0, "bce", 12, 10, 1e-3)
    problem = world.problem(forget)
    matrix = Hessian(objective, {"w": w}, problem.after, [IFRU().sides(objective, problem).retained_after])
    dense = torch.stack([matrix(e) for e in torch.eye(66, dtype=torch.float64)])
    return objective, problem, w, torch.linalg.eigvalsh(dense)


def record(monkeypatch):
    """Keep every trial's status and size."""
    trials = []
    original = newton.NewtonSearch._try

    def spy(self, theta, solution):
        result = original(self, theta, solution)
        trials.append((solution.status, result.size))
        return result

    monkeypatch.setattr(newton.NewtonSearch, "_try", spy)
    return trials


def test_a_step_along_negative_curvature_is_never_accepted(monkeypatch):
    objective, problem, w, eigenvalues = indefinite()
    assert eigenvalues[0] < -0.05 * eigenvalues[-1]
    trials = record(monkeypatch)
    exact = {"damping": 0.0, "cg_tolerance": 1e-10, "cg_iterations": 66}
    update = IFRU(curvature="hessian", **exact).update(objective, {"w": w}, problem)
    assert trials == [(Status.NEGATIVE_CURVATURE, math.inf)]
    assert update.steps == ()
    assert torch.equal(update.parameters["w"], w)
    assert update.residual_after == update.residual_before > 0


def test_with_the_whole_ladder_the_hessian_is_damped_until_it_is_positive(monkeypatch):
    objective, problem, w, _ = indefinite()
    trials = record(monkeypatch)
    update = IFRU(curvature="hessian", cg_tolerance=1e-10, cg_iterations=66).update(objective, {"w": w}, problem)
    assert Status.NEGATIVE_CURVATURE in {status for status, _ in trials}
    assert all(size == math.inf for status, size in trials if status is Status.NEGATIVE_CURVATURE)
    assert update.steps, "larger dampings make it positive definite"
    assert {step.status for step in update.steps} == {Status.CONVERGED}
    assert min(step.damping for step in update.steps) > 0.1


class Plateau:
    """One number w per item, users carry 1: the mean of log cosh(w - y), whose Newton steps overshoot afar."""

    def __init__(self, labels, forget):
        n = len(labels)
        self.forget = torch.tensor(forget)
        data = Interactions(torch.arange(n), torch.zeros(n, dtype=torch.long), torch.tensor(labels).double())
        edges = bipartite_edge_index(data.user, data.item, n)
        erased = torch.cat([self.forget, torch.tensor([False])])
        self.problem = Problem(data, self.forget, edges, edges, erased, torch.tensor([0]), torch.tensor([0]))

        def log_cosh(s, y):
            return (s - y).abs() + F.softplus(-2 * (s - y).abs()) - math.log(2)

        self.objective = Objective(
            encode=lambda p, _: torch.cat([torch.ones(n, 1, dtype=torch.float64), p["w"]]),
            decode=lambda p, s, t: (s * t).sum(-1),
            loss=Loss("log cosh", log_cosh),
            regularization=lambda p: 0.0 * p["w"].sum(),
            num_users=n,
            num_items=1,
            node_parameters={"w": "item"},
        )

    def update(self, w, progress=None, **settings):
        method = IFRU(curvature="gauss-newton", cg_tolerance=1e-12, **settings)
        parameters = {"w": torch.tensor([[w]], dtype=torch.float64)}
        return method.update(self.objective, parameters, self.problem, progress=progress)


def test_a_step_after_which_the_residual_would_not_fall_is_not_taken():
    # At w = 5 the gradient towards 0 is tanh 5 and the curvature 2e-4: every damped step lands beyond -5.
    update = Plateau([0.0, 10.0], [False, True]).update(5.0)
    assert update.residual_before == pytest.approx(math.tanh(5.0), rel=1e-9)
    assert update.steps == ()
    assert update.parameters["w"].tolist() == [[5.0]]
    assert update.residual_after == update.residual_before


def test_where_nothing_is_gained_all_larger_dampings_are_tried():
    said = []
    Plateau([0.0, 10.0], [False, True]).update(5.0, progress=said.append)
    tried = {float(text.split()[-1]) for text in said if " damping " in text}
    assert tried == {0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0}


def test_the_search_stops_by_itself_when_steps_are_no_longer_worthwhile():
    # With a damping far too large each step gains a little less than 5%, which is not worth a second one.
    slow = Plateau([0.0, 0.5], [False, True]).update(0.25, damping=100.0, max_steps=50)
    assert len(slow.steps) == 1
    assert 0.95 < slow.residual_after / slow.residual_before < 1
    # A fifth is: steps go on while that much is gained.
    steady = Plateau([0.0, 0.5], [False, True]).update(0.25, damping=4.0, max_steps=50)
    assert 25 < len(steady.steps) < 40
    assert steady.steps[1].residual > 0.7 * steady.steps[0].residual
    # With a proper one it goes on until nothing but a thousandth is left.
    quick = Plateau([0.0, 0.5], [False, True]).update(0.25, damping=0.5, max_steps=50)
    assert 3 < len(quick.steps) < 50
    assert quick.residual_after <= 1e-3 * quick.residual_before
    assert quick.steps[-2].residual > 1e-3 * quick.residual_before


def test_each_step_is_newtons_at_the_parameters_then_reached():
    wanted = w = 0.25
    # In units of the curvature at the start, the row having all of the interactions.
    damping = 0.5 / math.cosh(w) ** 2
    for _ in range(2):
        wanted -= math.tanh(wanted) / (1 / math.cosh(wanted) ** 2 + damping)
    update = Plateau([0.0, 0.5], [False, True]).update(w, damping=0.5, max_steps=2)
    assert update.stationarity < 1e-12
    assert update.parameters["w"].item() == pytest.approx(wanted, rel=1e-12)


def test_every_accepted_step_lowers_the_residual_and_says_how():
    case, objective, problem = trained()
    update = IFRU().update(objective, {"w": case.trained}, problem)
    sizes = [update.residual_before, *(step.residual for step in update.steps)]
    assert len(sizes) > 2
    assert all(later < earlier for earlier, later in pairwise(sizes))
    for step in update.steps:
        assert step.damping in DAMPINGS
        assert step.status in (Status.CONVERGED, Status.MAX_ITERATIONS)
        assert 1 <= step.cg_iterations <= 20


def test_pruning_and_erasing_solve_the_system_restricted_to_the_rows_kept(monkeypatch):
    world = oracles.planted(12, 10, seed=1)
    forget = world.some(3)
    forget |= world.data.user == 4
    problem, objective = world.problem(forget), oracles.objective(1, "bce", 12, 10, 1e-2)
    assert problem.erased[4]
    w = oracles.rows(22, 2, seed=5)
    solutions = []
    original = newton.NewtonSearch._try
    monkeypatch.setattr(newton.NewtonSearch, "_try", lambda self, p, s: (solutions.append(s), original(self, p, s))[1])
    method = IFRU(
        curvature="gauss-newton",
        damping=0.0,
        keep_ratio=0.4,
        hops=1,
        cg_tolerance=1e-12,
        cg_iterations=200,
        max_steps=1,
    )
    method.update(objective, {"w": w}, problem)
    nodes = important_nodes(objective, problem, 0.4, 1) & ~problem.erased
    kept = nodes.repeat_interleave(2)
    assert 4 < int(kept.sum()) < 40
    matrix = GaussNewton(objective, {"w": w}, problem.after, [method.sides(objective, problem).retained_after])
    dense = torch.stack([matrix(e) for e in torch.eye(44, dtype=torch.float64)])
    assert dense[kept][:, ~kept].norm() > 1e-3, "the rows kept should be coupled to the others"
    b = method.influence(objective, {"w": w}, problem).total
    (solution,) = solutions
    assert not solution.value[~kept].any()
    wanted = torch.linalg.solve(dense[kept][:, kept], b[kept])
    torch.testing.assert_close(solution.value[kept], wanted, rtol=0, atol=1e-8 * float(wanted.norm()))


# ---------------------------------------------------------------- which curvature


def kinds_tried(objective, w, problem):
    said = []
    update = IFRU().update(objective, {"w": w}, problem, progress=said.append)
    return update, {text.split()[0] for text in said if " damping " in text}


def test_auto_leaves_the_hessian_alone_far_from_a_minimum():
    case = oracles.early_stopped(1)
    update, kinds = kinds_tried(case.objective, case.trained, case.problem)
    assert update.stationarity > 1
    assert kinds == {"gauss-newton"}
    assert {step.curvature for step in update.steps} == {"gauss-newton"}


def test_auto_tries_both_near_a_minimum_and_takes_the_one_with_the_smaller_residual():
    case, objective, problem = trained()
    update, kinds = kinds_tried(objective, case.trained, problem)
    assert update.stationarity < 1
    assert kinds == {"gauss-newton", "hessian"}
    first = {
        kind: IFRU(curvature=kind, max_steps=1).update(objective, {"w": case.trained}, problem).residual_after
        for kind in kinds
    }
    better = min(first, key=first.get)
    assert better == "hessian", "near a minimum only the Hessian gets close"
    assert {step.curvature for step in update.steps} == {better}
    assert len(update.steps) > 1
    said = []
    IFRU().update(objective, {"w": case.trained}, problem, progress=said.append)
    turns = [text.split()[0] for text in said if " damping " in text]
    assert turns == sorted(turns), "the worse one is tried once, before the first step"
    assert update.steps[0].residual == first[better] < 0.5 * first["gauss-newton"]


def test_a_forced_curvature_is_the_only_one_tried():
    case = oracles.early_stopped(1)
    said = []
    method = IFRU(curvature="hessian")
    method.update(case.objective, {"w": case.trained}, case.problem, progress=said.append)
    assert any(text.startswith("hessian damping") for text in said)
    assert not any(text.startswith("gauss-newton damping") for text in said)


# ---------------------------------------------------------------- the metric of the damping


def test_the_damping_is_in_units_of_the_root_of_a_rows_share_of_interactions_times_the_mean_curvature():
    """Rademacher probes are exact where the matrix is diagonal: one number per item, users carry 1, MSE."""
    users, items = 30, 4
    world = oracles.planted(users, items, density=0.5)
    objective = Objective(
        encode=lambda p, _: torch.cat([torch.ones(users, 1, dtype=torch.float64), p["w"]]),
        decode=lambda p, s, t: (s * t).sum(-1),
        loss=oracles.objective(0, "mse", 1, 1, 0.0).loss,
        regularization=lambda p: 0.0 * p["w"].sum(),
        num_users=users,
        num_items=items,
        node_parameters={"w": "item"},
    )
    forget = world.some(5)
    problem = replace(world.problem(forget), erased=torch.zeros(users + items, dtype=torch.bool))
    w = oracles.rows(items, 1)
    tau = 0.7
    method = IFRU(curvature="gauss-newton", damping=tau, max_steps=1, cg_tolerance=1e-12, probes=1)
    update = method.update(objective, {"w": w}, problem)
    b = method.influence(objective, {"w": w}, problem).total
    share = torch.bincount(world.data.item[~forget], minlength=items) / int((~forget).sum())
    assert share.unique().numel() > 1
    curvature = 2 * share  # of the mean of (s - y)^2
    mean = (curvature / share.sqrt()).mean()
    wanted = w.flatten() + b / (curvature + tau * mean * share.sqrt())
    torch.testing.assert_close(update.parameters["w"].flatten(), wanted, rtol=1e-7, atol=0)
    assert update.steps[0].damping == tau


def test_the_seed_draws_the_probes():
    case, objective, problem = trained()
    one, other, again = (
        IFRU(seed=seed, probes=1, damping=1.0, max_steps=1)
        .update(objective, {"w": case.trained}, problem)
        .parameters["w"]
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize(("loss", "precision"), [("bce", 1e-3), ("bpr", 0.05)])
def test_steps_end_where_no_more_is_left_than_the_influence_is_off_by(loss, precision):
    world = oracles.planted(30, 25, 0.3, seed=3)
    world = world.positives() if loss == "bpr" else world
    objective = oracles.objective(1, loss, 30, 25, 0.05)
    update = IFRU(max_steps=20).update(objective, {"w": oracles.rows(55, 4, 0, 0.7)}, world.problem(world.some(5)))
    left = [step.residual / update.residual_before for step in update.steps]
    assert 1 < len(left) < 20
    assert left[-1] <= precision < left[-2]
