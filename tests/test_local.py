"""Local solves against solves over all data, dense matrices, and states made anew."""

import copy
import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule, UnlearningRequest
from lightning_ifru.comparisons import Comparisons
from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.draws import FrozenDraws
from lightning_ifru.errors import ObjectiveError, UnlearningError
from lightning_ifru.examples import Examples
from lightning_ifru.graph import Importance, bipartite_edge_index
from lightning_ifru.importance import important_near
from lightning_ifru.local_graph import LocalGraph
from lightning_ifru.local_problem import Budget, Departure, LocalProblem
from lightning_ifru.locality import Path, WarmStates
from lightning_ifru.models import NGCF, LightGCN, MatrixFactorization
from lightning_ifru.neighbours import Neighbours
from lightning_ifru.problem import Sides
from lightning_ifru.setups import evaluation_mode
from lightning_ifru.unlearning import Unlearning
from lightning_ifru.warm import DRIFT, WarmState

USERS, ITEMS, DIM = 24, 16, 4
#: Budgets that leave nothing out.
EVERYTHING = {"max_rows": 10**6, "examples_per_row": 10**6, "hops": 9}
LAYERS, LOSSES = (0, 1, 2, 3), ("bpr", "bce", "mse")


def source(num_users=USERS, num_items=ITEMS, degree=6, seed=0):
    """Pairs in random order, popular items first; the last item has one interaction alone."""
    rng = np.random.default_rng(seed)
    count = num_users * degree
    pair = np.stack([rng.integers(num_users, size=count), (rng.random(count) ** 2 * (num_items - 1)).astype(int)])
    pair = np.unique(np.concatenate([pair, [[1], [num_items - 1]]], axis=1), axis=1)
    user, item = pair[:, rng.permutation(pair.shape[1])]
    return {"user": user, "item": item, "rating": rng.integers(1, 6, size=len(user)).astype(float)}


def data_of(loss, **how):
    columns = source(**how)
    if loss == "bpr":
        del columns["rating"]
        return InteractionDataModule(columns, val_fraction=0.0)
    return InteractionDataModule(columns, val_fraction=0.0, rating="rating", threshold=None if loss == "mse" else 3.0)


@cache
def _table(loss, layers, num_users, num_items):
    """A table that training has brought some way, in float64, from the risk with one draw of negatives."""
    data = data_of(loss, num_users=num_users, num_items=num_items)
    model = new_model(loss, layers, data, None)
    objective, parameters = model.objective(data.graph(), data.num_users, data.num_items)
    (name,) = parameters
    generator = torch.Generator().manual_seed(1)
    rows = 0.5 * torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64)
    train = data.train
    target = train.label if data.labelled else None
    negative = None if data.labelled else torch.randint(num_items, (len(train), 4), generator=generator)
    examples = Examples(train.user, train.item, 1 / len(train), target=target, negative=negative)
    moment = torch.zeros_like(rows)
    for _ in range(60):
        gradient = objective.gradient({name: rows}, data.graph(), [examples])[name]
        moment = 0.9 * moment + gradient.square()
        rows = rows - 0.05 * gradient / (moment.sqrt() + 1e-4)
    return rows


def new_model(loss, layers, data, rows, decay=1e-3):
    sizes = {"num_users": data.num_users, "num_items": data.num_items, "embedding_dim": DIM}
    kind = MatrixFactorization if layers == 0 else LightGCN
    depth = {"num_layers": layers} if layers else {}
    model = kind(**sizes, **depth, loss=loss, weight_decay=decay).double()
    if rows is not None:
        with torch.no_grad():
            next(model.parameters()).copy_(rows)
    return model


def brought(loss, layers, num_users=USERS, num_items=ITEMS):
    data = data_of(loss, num_users=num_users, num_items=num_items)
    return new_model(loss, layers, data, _table(loss, layers, data.num_users, data.num_items)), data


def name_pair(data, row):
    return data.user_ids[int(data.train.user[row])], data.item_ids[int(data.train.item[row])]


def one_user(data):
    return UnlearningRequest(users=[data.user_ids[3]])


def several(data):
    rarest = data.train.item.bincount(minlength=data.num_items).float()
    rarest = int(rarest.masked_fill(rarest == 0, math.inf).argmin())
    return UnlearningRequest(users=[data.user_ids[5], data.user_ids[8]], items=[data.item_ids[rarest]])


def interactions(data):
    return UnlearningRequest(interactions=[name_pair(data, row) for row in (0, 9)])


REQUESTS = (one_user, several, interactions)


class WithDraws(IFRU):
    """The method over all data, with the draws of the local one."""

    def sides(self, objective, problem):
        if not objective.loss.needs_negatives:
            return super().sides(objective, problem)
        data, removal, draws = self.context
        rows = data.table.rows("train").nonzero().flatten()[~problem.forget]
        kept, gone, n = problem.retained, problem.forgotten, len(rows)
        before, after = (
            Examples(kept.user, kept.item, 1 / n, negative=some.items(rows))
            for some in (draws, draws.without(removal.withdrawn))
        )
        forgotten = Examples(gone.user, gone.item, 1 / len(gone), candidates=problem.candidates)
        return Sides(before, after, (forgotten,), len(gone) / (len(gone) + n))


def unlearning(model, data, request, method, states=None):
    data.forget(request)
    with evaluation_mode(model):
        return Unlearning.of(model, data, method, states=states)


def frozen(data, seed=0):
    return None if data.labelled else FrozenDraws(data.candidates, data.num_items, len(data.table), 4, seed)


def in_full(model, data, request, method):
    """The update over all data with the draws of a local solve."""
    draws = frozen(data, method.seed)
    work = unlearning(model, data, request, replace(method, locality="full"))
    full = WithDraws(**vars(work.method))
    object.__setattr__(full, "context", (data, work.removal, draws))
    update = replace(work, method=full).solve()
    data.discard()
    return update


# ---------------------------------------------------------------- against all data


@pytest.mark.parametrize("request_of", REQUESTS)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_with_budgets_that_cap_nothing_a_local_solve_is_the_full_one(loss, layers, request_of):
    model, data = brought(loss, layers)
    method = IFRU(locality="local", max_steps=2, **EVERYTHING)
    before = next(model.parameters()).detach().clone()
    wanted = in_full(model, data, request_of(data), method)
    work = unlearning(model, data, request_of(data), method)
    (name,) = work.parameters
    found = work.solve()
    assert found.extent.path == "local"
    assert found.extent.left_out == pytest.approx(0, abs=1e-12)
    assert wanted.steps
    assert float((wanted.parameters[name] - before).norm()) > 1e-3 * float(before.norm())
    assert torch.allclose(found.parameters[name], wanted.parameters[name], rtol=0, atol=1e-9)
    for number in ("direct_norm", "spillover_norm", "residual_before", "residual_after"):
        assert getattr(found, number) == pytest.approx(getattr(wanted, number), rel=1e-8, abs=1e-14)
    for hop, size in wanted.by_hop.items():
        assert found.by_hop[hop] == pytest.approx(size, rel=1e-8)
    assert [step.damping for step in found.steps] == [step.damping for step in wanted.steps]
    assert found.unknowns == wanted.unknowns
    assert found.rows_changed == wanted.rows_changed


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_two_requests_one_after_the_other_warm_are_two_cold_ones(loss, layers):
    method, states = IFRU(locality="local", max_steps=2, **EVERYTHING), WarmStates()
    tables = []
    for kept in (states, None):
        model, data = brought(loss, layers)
        for request_of in (one_user, interactions):  # of an item withdrawn before, a new state has never known
            work = unlearning(model, data, request_of(data), method, kept)
            work.commit(work.solve())
        tables.append(next(model.parameters()).detach())
    assert float((tables[0] - next(brought(loss, layers)[0].parameters())).detach().norm()) > 0.01
    assert torch.allclose(*tables, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_after_requests_the_warm_state_is_that_made_anew_and_holds_nothing_of_the_erased(loss, layers):
    model, data = brought(loss, layers)
    states, method = WarmStates(), IFRU(locality="local", max_steps=1, **EVERYTHING)
    for request_of in REQUESTS:
        work = unlearning(model, data, request_of(data), method, states)
        update = work.solve()
        warm = states._state
        work.commit(update)
        assert warm is states._state
        (name,) = work.parameters
        table = dict(model.named_parameters())[name].detach()
        assert warm.holds(table, data.candidates)
        assert torch.equal(warm.embeddings[0], table)
        cold = WarmState(warm.model, table, data.graph(), warm.near, warm.draws)
        for mine, anew in ((warm.embeddings, cold.embeddings), (warm.gradients, cold.gradients)):
            for here, there in zip(mine, anew, strict=True):
                assert torch.allclose(here, there, rtol=0, atol=1e-11)
                assert not bool(here[work.erased].any()) or here is warm.embeddings[0]
        assert torch.equal(warm.degree, cold.degree)
        assert warm.num_examples == cold.num_examples
        assert warm.gradient_norm() == pytest.approx(cold.gradient_norm(), rel=1e-9)


# ---------------------------------------------------------------- the recursion


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=25),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_the_change_of_layers_is_that_of_dense_matrices(edges, layers, seed):
    import pandas as pd

    from lightning_ifru.interactions import InteractionTable
    from lightning_ifru.splits import RandomSplit

    pairs = sorted({(u, i): gone for u, i, gone in edges}.items())
    frame = pd.DataFrame({"user": [u for (u, _), _ in pairs], "item": [i for (_, i), _ in pairs]})
    table = InteractionTable(frame, split=RandomSplit(0, 0), user_ids=range(6), item_ids=range(5))
    gone = torch.tensor([k for k, (_, goes) in enumerate(pairs) if goes], dtype=torch.long)
    ends = torch.tensor([[u, 6 + i] for (u, i), _ in pairs])
    generator = torch.Generator().manual_seed(seed)
    x, first = (torch.randn(11, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def dense(keep):
        a = torch.zeros(11, 11, dtype=torch.float64)
        for u, i in ends[keep].tolist():
            a[u, i] = a[i, u] = 1.0
        root = a.sum(1).rsqrt().nan_to_num(posinf=0.0)
        return root[:, None] * a * root

    keep = torch.ones(len(pairs), dtype=torch.bool)
    before = dense(keep)
    keep[gone] = False
    after = dense(keep)
    old, new = [x], [x + first]
    for _ in range(layers):
        old.append(before @ old[-1])
        new.append(after @ new[-1])
    degree = torch.bincount(ends.flatten(), minlength=11)
    graph = LocalGraph(Neighbours(table), torch.arange(11), degree, gone, x)
    for found, was, now in zip(graph.changes(old, first), old, new, strict=True):
        assert torch.allclose(found, now - was, rtol=0, atol=1e-12)
    weights = [0.5, 0.25, 0.125, 0.0625][: layers + 1]
    encoded = sum(w * layer for w, layer in zip(weights, new, strict=True))
    assert torch.allclose(graph.encode(x + first, weights, after=True), encoded, rtol=0, atol=1e-12)
    # What a change carries on bounds what it does to the next layer.
    reach = torch.linalg.vector_norm(graph.carried(x, first))
    assert torch.linalg.vector_norm((new[1] - old[1])[degree == graph.degree_after]) <= reach + 1e-12


def test_importance_found_from_what_is_forgotten_is_that_of_all_nodes():
    data = data_of("bpr")
    near, train = Neighbours(data.table), data.train
    gone = data.table.rows("train").nonzero().flatten()[:3]
    ends = torch.cat(near.ends(gone))
    edges = bipartite_edge_index(train.user, train.item, data.num_users)
    # Beyond the first round only the best nodes' neighbours are found: exact where all of them are among the best.
    for hops, most in ((1, 0), (1, 5), (1, 11), (2, 40)):
        scores = Importance(hops)(edges, torch.bincount(ends, minlength=near.num_nodes).double())
        nodes, share = important_near(near, gone, most, hops, 10**6, torch.Generator())
        others = scores.clone()
        others[ends] = 0
        best = others.topk(min(most, int((others > 0).sum()))).indices
        assert set(nodes.tolist()) == {*ends.tolist(), *best.tolist()}
        assert share == pytest.approx(float(scores[nodes].sum() / scores.sum()))


# ---------------------------------------------------------------- samples


def sample_of(data, nodes, most, seed, draws):
    near = Neighbours(data.table)
    gone = data.table.rows("train").nonzero().flatten()[:4]
    return near, Comparisons(near, draws, nodes, gone, most, torch.Generator().manual_seed(seed)), gone


@pytest.mark.parametrize("loss", ["bpr", "bce"])
def test_a_sample_of_comparisons_stands_for_all_of_them(loss):
    data = data_of(loss)
    draws, nodes = frozen(data), torch.tensor([0, 2, 3, USERS, USERS + 1, USERS + 4])
    near, every, gone = sample_of(data, nodes, 10**6, 0, draws)
    each = 1 if draws is None else draws.per_row
    # Uncapped: each comparison with a node in it once, found by a loop over all of them.
    rows = sorted(set(data.table.rows("train").nonzero().flatten().tolist()) - set(gone.tolist()))
    wanted = []
    for row in rows:
        user, item = (int(end) for end in near.ends(torch.tensor([row])))
        for slot in range(row * each, (row + 1) * each):
            ends = {user, item} | (set() if draws is None else {int(draws.drawn(torch.tensor([slot]))) + USERS})
            wanted += [slot] if ends & set(nodes.tolist()) else []
    assert sorted(every.slot.tolist()) == wanted
    assert every.capped == 0
    assert bool((every.weight == 1).all())
    # Capped: unbiased for any sum, here of random numbers, by the mean over seeds within four standard errors.
    values = torch.randn(len(data.table) * each, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 1
    sums = []
    for seed in range(400):
        _, some, _ = sample_of(data, nodes, 5, seed, draws)
        assert some.capped > 0
        assert len(some.slot) <= 5 * len(nodes)
        assert len(some.slot.unique()) == len(some.slot)
        sums.append(float((some.weight * values[some.slot]).sum()))
    sums, truth = torch.tensor(sums, dtype=torch.float64), float(values[torch.tensor(wanted)].sum())
    assert float(sums.std()) > 0.01 * abs(truth)
    assert abs(float(sums.mean()) - truth) < 4 * float(sums.std()) / 400**0.5


def test_a_request_reads_its_neighbourhood_however_large_the_data():
    read, looked = [], []
    for size in (1, 8):
        data = data_of("bpr", num_users=size * 300, num_items=size * 200)
        model = new_model("bpr", 2, data, None)
        counted, at = [], Neighbours.at

        def counting(self, nodes, place, counted=counted, at=at):
            counted.append(len(nodes))
            return at(self, nodes, place)

        states, method = WarmStates(), IFRU(locality="local", max_rows=20, examples_per_row=8)
        work = unlearning(model, data, one_user(data), method, states)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Neighbours, "at", counting)
            found = work.nearby
        read.append(sum(counted))
        looked.append(len(found._problem.patch.nodes))
        # What no list leads to is not looked at: with everything else gone, nothing changes.
        warm = states._state
        problem = LocalProblem(warm, departure_of(work), Budget(20, 8, expected=50), 0)
        kept = torch.zeros(data.num_users + data.num_items, dtype=torch.bool)
        kept[problem.patch.nodes] = True
        kept[data.num_users :] = True  # candidates for the expectation can be any item
        for layer in (*warm.embeddings, *warm.gradients):
            layer[~kept] = math.nan
        again = LocalProblem(warm, departure_of(work), Budget(20, 8, expected=50), 0)
        assert bool(torch.isfinite(again.influence()[0]).all())
        assert all(torch.equal(a, b) for a, b in zip(problem.influence(), again.influence(), strict=True))
        if size == 8:
            assert int(kept.sum()) < 0.6 * len(kept)
    ends = 8
    assert max(read) <= (2 * 8 + 8) * (20 + 2 * ends) * 2
    assert max(looked) <= 4 * 8 * (20 + 2 * ends)


def departure_of(work):
    removal, table = work.removal, work.data.table
    rows = removal.positions[table.split[removal.positions] == 0]
    fresh = torch.zeros(len(work.erased), DIM, dtype=torch.float64)
    return Departure(rows, work.erased, removal.withdrawn, fresh)


# ---------------------------------------------------------------- the choice, and what is kept


class Own(LightGCN):
    def decode(self, src, dst):
        return (src * dst).sum(-1) * 2


class Penalised(LightGCN):
    def regularization(self):
        return self.net.embedding.weight.square().sum()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda n, m: NGCF(n, m, 4), "declares no layer_weights"),
        (lambda n, m: Own(n, m, 4), "has a decode of its own"),
        (lambda n, m: Penalised(n, m, 4), "has a penalty of its own"),
        (lambda n, m: LightGCN(n, m, 4, loss="sampled_softmax"), "takes several negatives at once"),
    ],
)
def test_a_model_without_a_linear_encoder_is_solved_over_all_data_and_forcing_it_is_refused(build, says):
    data = data_of("bpr")
    model = build(data.num_users, data.num_items)
    assert says in unlearning(model, data, one_user(data), IFRU()).path.reason
    with pytest.raises(ObjectiveError, match=rf"locality='local'.*{says}.*use locality='auto'"):
        unlearning(model, data, one_user(data), IFRU(locality="local"))
    with pytest.raises(UnlearningError, match=r"IFRU.update got locality='local'"):
        IFRU(locality="local").update(None, {}, None)


def test_a_small_request_is_local_by_itself_and_what_would_look_at_a_large_part_is_not():
    model, data = brought("bpr", 2)
    dense = unlearning(model, data, one_user(data), IFRU()).path
    assert dense.model is None
    assert "examples at most around what is forgotten, of" in dense.reason
    small = unlearning(model, data, one_user(data), IFRU(max_rows=0, examples_per_row=1)).path
    assert small.model is not None
    assert unlearning(model, data, one_user(data), IFRU(max_rows=0, examples_per_row=1, locality="full")).path == Path(
        None, "locality='full'"
    )


class Doubled(LightGCN):
    def encode(self, edge_index):
        return 2 * super().encode(edge_index)


def test_a_false_declaration_of_layers_is_refused():
    data = data_of("bpr")
    model = Doubled(data.num_users, data.num_items, DIM)
    work = unlearning(model, data, one_user(data), IFRU(locality="local"))
    with pytest.raises(ObjectiveError, match=r"Doubled declares layer_weights=\(0.33.*returns something else"):
        work.solve()


def test_budgets_bound_the_rows_and_the_examples():
    model, data = brought("bpr", 1)
    found = []
    for budgets in ({"max_rows": 2}, {"max_rows": 9}, {"max_rows": 9, "examples_per_row": 3}):
        found.append(unlearning(model, data, one_user(data), IFRU(locality="local", **budgets)).solve())
    assert found[1].unknowns == found[0].unknowns + 7
    assert found[1].extent.left_out < found[0].extent.left_out
    assert 0 < found[2].extent.examples <= 3 * found[2].unknowns < found[1].extent.examples
    assert found[2].extent.sampled_rows > found[1].extent.sampled_rows
    assert found[2].steps
    assert found[2].residual_after < found[2].residual_before


def test_layers_are_kept_while_they_are_true_and_made_anew_when_they_are_not():
    model, data = brought("bpr", 1)
    states, method = WarmStates(), IFRU(locality="local", max_rows=6)

    def state(how=method):
        work = unlearning(model, data, one_user(data), how, states)
        _ = work.nearby
        return states._state

    first = state()
    assert state() is first
    assert state(replace(method, max_rows=3)) is first
    assert state(replace(method, seed=1)) is not first  # other negatives
    first = state()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3  # as training would
    second = state()
    assert second is not first
    second.drift = 1.01 * DRIFT
    third = state()
    assert third is not second
    work = unlearning(model, data, one_user(data), replace(method, locality="full"), states)
    work.commit(work.solve())  # another path
    data.forget(UnlearningRequest(users=[data.user_ids[4]]))
    with evaluation_mode(model):
        _ = Unlearning.of(model, data, method, states=states).nearby
    assert states._state is not third
    assert copy.deepcopy(states)._state is None


def test_what_only_validation_and_test_hold_moves_no_weight_locally():
    model, data = brought("bpr", 2)
    test = data.test
    request = UnlearningRequest(interactions=[(data.user_ids[int(test.user[0])], data.item_ids[int(test.item[0])])])
    update = unlearning(model, data, request, IFRU(locality="local")).solve()
    (found,) = update.parameters.values()
    assert torch.equal(found, next(model.parameters()))
    assert not update.steps


@pytest.mark.parametrize("layers", [None, 2])
def test_the_trainer_solves_locally_one_request_after_another(trained, layers):
    trainer, model, data = trained("bpr", layers, callbacks=[IFRUCallback(IFRU(locality="local", max_rows=5))])
    callback = next(some for some in trainer.callbacks if isinstance(some, IFRUCallback))
    table = [p.detach().clone() for p in model.parameters()]
    dry = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[4]]), dry_run=True)
    assert dry.path == "local"
    assert dry.expected["seconds"] > 0
    assert all(torch.equal(*both) for both in zip(table, model.parameters(), strict=True))
    states = []
    for user in (4, 9):
        report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[user]]))
        assert (report.path, report.path_reason) == ("local", "locality='local'")
        assert report.residual_after < report.residual_before
        assert 0 < report.unknowns < report.rows_changed + 1 <= 40
        assert 0 < report.importance_left_out < 1
        assert report.affected_nodes is None
        assert "around what is forgotten" in str(report)
        states.append(callback._states._state)
        assert states[-1].drift > 0
        # Nobody finds the layers in a file, or in a copy.
        assert set(callback.state_dict()) == {"ledger"}
        kept = torch.load(report.checkpoint, weights_only=False, map_location="cpu")
        assert set(kept["callbacks"][callback.state_key]) == {"ledger"}
    # Of data as small as these a few rows are a large part, and what lies around them soon out of date.
    assert states[0] is states[1] or states[0].drift > DRIFT
    assert copy.deepcopy(callback)._states._state is None


def test_a_failure_after_the_commit_leaves_no_layers_that_are_not_true(trained):
    trainer, model, data = trained("bpr", 1, callbacks=[IFRUCallback(IFRU(locality="local", max_rows=5))])
    request = UnlearningRequest(users=[data.user_ids[4]])
    alone = copy.deepcopy(model), copy.deepcopy(data)
    wanted = unlearning(*alone, request, IFRU(locality="local", max_rows=5)).solve().parameters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.unlearn(data, request=request)
    data.discard()
    trainer.unlearn(data, request=request)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-6)


@pytest.mark.parametrize("loss", ["bpr", "bce"])
@pytest.mark.parametrize("layers", [0, 2])
def test_products_on_a_part_of_the_rows_are_differences_of_gradients(layers, loss):
    model, data = brought(loss, layers)
    system = unlearning(model, data, one_user(data), IFRU(locality="local", max_rows=5)).nearby.system
    (name,) = system.start
    table = system.start[name]
    assert len(table) < USERS + ITEMS
    vector = 0.1 * torch.randn(table.shape, dtype=table.dtype, generator=torch.Generator().manual_seed(0))

    def gradient(step):
        return system.objective.gradient({name: table + step * vector}, system.edge_index, system.examples)[name]

    wanted = ((gradient(1e-5) - gradient(-1e-5)) / 2e-5).flatten()
    at = system.objective, system.start, system.edge_index, system.examples
    operators = [kind(*at) for kind in (Hessian, GaussNewton)]
    assert wanted.norm() > 1e-4
    torch.testing.assert_close(operators[0](vector.flatten()), wanted, rtol=1e-5, atol=1e-9)
    for operator in operators:
        assert not operator(torch.zeros_like(wanted)).any()
        once, twice = (operator(factor * vector.flatten()) for factor in (1, 2))
        torch.testing.assert_close(twice, 2 * once, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("layers", [0, 1])
def test_layers_of_the_gradient_are_made_anew_before_they_have_drifted_far(layers):
    model, data = brought("bpr", layers)
    states, drifts = WarmStates(), []
    for _ in range(12):
        request = UnlearningRequest(users=[next(u for u in data.user_ids if u is not None)])
        work = unlearning(model, data, request, IFRU(locality="local", max_rows=5, max_steps=1), states)
        work.commit(work.solve())
        drifts.append(states._state.drift)
    assert max(drifts) > 0
    assert any(later < earlier for earlier, later in itertools.pairwise(drifts)), "some request has made them anew"


def test_layers_are_let_go_of_by_a_solve_over_all_data_and_follow_the_candidates():
    model, data = brought("bpr", 1)
    states = WarmStates()
    work = unlearning(model, data, one_user(data), IFRU(locality="local", max_rows=5, max_steps=1), states)
    work.commit(work.solve())
    state = states._state
    candidates = data.candidates
    assert state.holds(work.states._state.embeddings[0], candidates)
    assert not state.holds(state.embeddings[0], candidates[1:])
    other = UnlearningRequest(users=[data.user_ids[7]])
    full = unlearning(model, data, other, IFRU(locality="full", max_steps=1), states)
    full.commit(full.solve())
    assert states._state is None


def test_a_local_solve_without_memory_is_refused(monkeypatch):
    model, data = brought("bpr", 1)
    monkeypatch.setattr("lightning_ifru.memory.available", lambda device: 1 << 20)
    with pytest.raises(UnlearningError, match=r"needs about .* of memory"):
        _ = unlearning(model, data, one_user(data), IFRU(locality="local")).nearby


@pytest.mark.parametrize("weights", [0.5, (), ("a",), (math.nan, 1.0), "ab", (True,)])
def test_weights_of_layers_that_are_none_are_refused(weights):
    model, data = brought("bpr", 1)

    class Mistaken(MatrixFactorization):
        layer_weights = weights

    model = Mistaken(data.num_users, data.num_items, DIM)
    with pytest.raises(ObjectiveError, match=r"Mistaken declares layer_weights=.*; wanted a tuple of finite numbers"):
        unlearning(model, data, one_user(data), IFRU())
