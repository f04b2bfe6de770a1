"""The methods that IFRU is compared with: one contract for all, and a reference for what is particular to each."""

import itertools

import pytest
import torch
from methods import METHODS
from methods.finetuning import ControlVariate, FineTuning, SlowFineTuning
from methods.partial import PartialRetraining, mean_of_scores, random_partition
from methods.receraser import Attention, attention, balanced_partition, nearest_with_room
from methods.retraining import Retraining
from methods.staged import Staged
from recipes import Recipe, Trained, train
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from lightning_ifru import IFRU, InteractionDataModule, UnlearningRequest

RECIPES = {
    "MF-bce": Recipe(model="mf", loss="bce", embedding_dim=3, lr=0.05, weight_decay=1e-3, epochs=12),
    "MF-bpr": Recipe(model="mf", loss="bpr", embedding_dim=3, lr=0.05, weight_decay=1e-3, epochs=12),
    "LightGCN-bce": Recipe(num_layers=1, loss="bce", embedding_dim=3, lr=0.05, weight_decay=1e-3, epochs=12),
    "LightGCN-bpr": Recipe(num_layers=1, loss="bpr", embedding_dim=3, lr=0.05, weight_decay=1e-3, epochs=12),
}
# Those after which an erased user's row is not simply a fresh one.
ROWS_OF_THEIR_OWN = {
    *("retraining-paired", "retraining-free", "retraining-jittered", "sisa", "receraser", "graph-swap"),
    *("finetuning-1", "finetuning-5", "finetuning-10", "finetuning-25", "finetuning-25-slow"),
}


@pytest.fixture(scope="module")
def originals(planted):
    """Return the trained model of a recipe, trained once."""

    def original(recipe):
        rated = {} if recipe.loss == "bpr" else {"rating": "rating", "threshold": 3.0}
        return train(recipe, lambda: InteractionDataModule(planted, batch_size=64, seed=3, **rated), seed=5)

    return {name: original(recipe) for name, recipe in RECIPES.items()}


def _pairs(data, rows):
    some = data.train[torch.tensor(rows)]
    pairs = zip(some.user.tolist(), some.item.tolist(), strict=True)
    return UnlearningRequest(interactions=[(data.user_ids[u], data.item_ids[i]) for u, i in pairs])


def _request(data):
    """One user, and five interactions of others."""
    others = (data.train.user != 7).nonzero().flatten()[::70].tolist()
    return UnlearningRequest(users=[data.user_ids[7]]) | _pairs(data, others)


def _scores(scorer):
    return scorer.block(torch.arange(scorer.num_users))


def _codes(interactions, num_items):
    return set((interactions.user * num_items + interactions.item).tolist())


@pytest.mark.parametrize("setting", ["MF-bce", "LightGCN-bpr"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_contract(originals, snapshot, name, setting):
    original = originals[setting]
    data, request = original.data, _request(original.data)
    data_now, removal = original.copy()[1], original.data.table.plan(request)
    known = snapshot(model=original.module, data=data)
    method = METHODS[name]()
    assert method.name == name
    prepared = method.prepare(original)
    first, second = method.forget(original, request), method.forget(original, request)
    known.check(but=("rng", "modes"))

    scores, user, item = _scores(first.scorer), torch.tensor([0, 7, 9]), torch.tensor([3, 0, 29])
    assert scores.shape == (data.num_users, data.num_items)
    assert torch.isfinite(scores).all()
    assert float(scores.std()) > 1e-3
    assert not torch.equal(scores, _scores(prepared)) or (setting, name) == ("MF-bce", "graph-swap")
    assert torch.equal(scores, _scores(second.scorer))
    torch.testing.assert_close(first.scorer.pairs(user, item), scores[user, item])

    gone = _codes(data_now.train, data.num_items) - _codes(first.data.train, data.num_items)
    assert len(gone) == removal.counts["train"] > 5
    assert 7 not in first.data.train.user
    edges = first.data.train[first.data.train.label > 0]
    wanted = torch.stack([edges.user, edges.item + data.num_users])
    assert torch.equal(first.data.graph(), torch.cat([wanted, wanted.flip(0)], dim=1))
    assert first.data.user_ids[7] is None

    phases = dict(first.seconds)
    assert 0 < phases.pop("total") == pytest.approx(sum(phases.values()), abs=1e-3)

    if name not in ROWS_OF_THEIR_OWN:
        ((table, rows),) = first.scorer.parameters.items()
        erased = torch.tensor([7])
        assert torch.equal(rows[erased], original.module.initial_rows(table, erased, seed=0))
        assert not torch.equal(rows[erased], dict(original.module.named_parameters())[table][erased])


def _dense(original, request):
    """The risk before and after as functions of the table ``[N, d]``, by dense matrices in float64 (BCE)."""
    recipe, data = original.recipe, original.data
    removal = data.table.plan(request)
    retained = data.table.select("train", without=removal)

    def risk(interactions):
        adjacency = torch.zeros(data.num_users + data.num_items, data.num_users + data.num_items, dtype=torch.float64)
        edges = interactions[interactions.label > 0]
        adjacency[edges.user, edges.item + data.num_users] = 1
        adjacency += adjacency.T.clone()
        scale = adjacency.sum(1).clamp(min=1).rsqrt()
        identity = torch.eye(len(adjacency), dtype=torch.float64)
        encoder = identity if recipe.model == "mf" else (identity + scale[:, None] * adjacency * scale) / 2

        def scores(table):
            h = encoder @ table
            return (h[interactions.user] * h[interactions.item + data.num_users]).sum(1)

        def value(table):
            penalty = recipe.weight_decay / 2 * table.square().sum()
            return bce(scores(table), interactions.label.double()) + penalty

        return scores, value

    (table,) = (p.detach().double() for p in original.module.parameters())
    return table, risk(data.train), risk(retained)


def _gradient(value, table):
    table = table.clone().requires_grad_()
    return torch.autograd.grad(value(table), table)[0]


@pytest.mark.parametrize("setting", ["MF-bce", "LightGCN-bce"])
def test_the_gradient_step_has_cauchys_length(originals, setting):
    original = originals[setting]
    request = _pairs(original.data, [3, 40, 80, 120])
    table, (_, before), (scores, after) = _dense(original, request)
    b = (_gradient(before, table) - _gradient(after, table)).flatten()
    jacobian = torch.autograd.functional.jacobian(scores, table).flatten(1)
    p = scores(table).sigmoid()
    curvature = jacobian.T @ ((p * (1 - p) / len(p))[:, None] * jacobian)
    curvature += original.recipe.weight_decay * torch.eye(len(b), dtype=torch.float64)
    wanted = (b @ b) / (b @ curvature @ b)
    forgotten = METHODS["gradient-step"]().forget(original, request)
    assert forgotten.details["length"] == pytest.approx(float(wanted), rel=1e-3)
    (moved,) = forgotten.scorer.parameters.values()
    torch.testing.assert_close((moved - table).flatten(), wanted * b, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("setting", ["MF-bce", "LightGCN-bce"])
def test_the_control_variates_gradients_average_to_the_residual(originals, setting):
    """So that they stand still, on average, exactly where unlearning is complete."""
    original = originals[setting]
    request = _pairs(original.data, [3, 40, 80, 120])
    table, (_, before), (_, after) = _dense(original, request)
    staged = Staged(original, request)
    variate = ControlVariate(staged)
    staged.put(staged.start)
    (parameter,) = staged.module.parameters()
    with torch.no_grad():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    theta = parameter.detach().double()
    found = torch.zeros_like(parameter)
    for batch in staged.data.train_dataloader():
        h = staged.module.encode(staged.data.graph())
        parameter.grad = None
        bce((h[batch["user"]] * h[batch["item"] + staged.data.num_users]).sum(1), batch["label"]).backward()
        variate.on_train_batch_start(None, staged.module, batch, 0)
        variate.on_after_backward(None, staged.module)
        found += len(batch["user"]) / len(staged.data.train) * parameter.grad
    nodes = torch.cat([staged.data.train.user, staged.data.train.item + staged.data.num_users])
    share = torch.bincount(nodes, minlength=len(table)).clamp(min=1) / len(staged.data.train)
    residual = _gradient(after, theta) - _gradient(before, table)
    assert float(residual.norm()) > 1e-3
    torch.testing.assert_close((found * share[:, None]).double(), residual, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FineTuning("f", epochs=1), FineTuning("f", epochs=2)),
        (SlowFineTuning("f", epochs=1), FineTuning("f", epochs=1)),
        (Retraining("r", jitter=1e-6), Retraining("r")),
    ],
    ids=["epochs", "rate", "jitter"],
)
def test_what_a_method_is_set_to_matters(originals, one, other):
    original = originals["MF-bce"]
    request = _pairs(original.data, [3, 40, 80, 120])
    found, without = (_scores(method.forget(original, request).scorer) for method in (one, other))
    before = _scores(original.scorer)
    moved = [float((scores - before).abs().mean()) for scores in (found, without)]
    if isinstance(one, Retraining):
        assert 0 < float((found - without).abs().max()) < 1e-2 < moved[0]
    else:
        assert moved[0] < moved[1]  # one epoch, or smaller steps, carry less far


def test_scif_moves_the_endpoints_and_nothing_else(originals):
    original = originals["LightGCN-bce"]
    request = _pairs(original.data, [3, 40, 80, 120])
    some = original.data.train[torch.tensor([3, 40, 80, 120])]
    endpoints = torch.zeros(original.data.num_users + original.data.num_items, dtype=torch.bool)
    endpoints[some.user] = endpoints[some.item + original.data.num_users] = True
    forgotten = METHODS["scif"]().forget(original, request)
    (table,), (moved,) = original.module.parameters(), forgotten.scorer.parameters.values()
    assert torch.equal((table != moved).any(1), endpoints)
    assert forgotten.details["residual_after"] < forgotten.details["residual_before"]


def test_without_message_passing_there_is_no_spillover_to_leave_out(originals):
    for setting, same in (("MF-bce", True), ("LightGCN-bce", False)):
        request = _pairs(originals[setting].data, [3, 40, 80, 120])
        ours, without = (METHODS[n]().forget(originals[setting], request) for n in ("ifru", "ifru-no-spillover"))
        assert torch.equal(_scores(ours.scorer), _scores(without.scorer)) is same
        assert ours.details["steps"] > 0 < without.details["steps"]


@pytest.mark.parametrize("setting", RECIPES)
def test_ours_is_what_the_trainer_does(originals, make_trainer, setting):
    original = originals[setting]
    module, data = original.copy()
    report = make_trainer(IFRU()).unlearn(data, model=module, request=_request(data))
    forgotten = METHODS["ifru"]().forget(original, _request(original.data))
    assert torch.equal(
        *(torch.cat([p.flatten() for p in m]) for m in (module.parameters(), forgotten.scorer.parameters.values()))
    )
    assert forgotten.details["residual_after"] == report.residual_after < report.residual_before


@pytest.mark.parametrize("setting", ["MF-bpr", "LightGCN-bce"])
def test_paired_retraining_is_training_without_all_that_was_ever_forgotten(originals, setting):
    original = originals[setting]
    first, second = _request(original.data), _pairs(original.data, [1, 2])
    once = METHODS["retraining-paired"]().forget(original, first)
    later = Trained(original.recipe, original.seed, original.source, original.module, once.data, 0.0)
    found = METHODS["retraining-paired"]().forget(later, second)

    # By hand: the recipe's loss and optimiser over the batches of data that never had them.
    data = original.source()
    data.forget(first | second)
    data.commit(data.removal())
    module = original.recipe.module(data, original.seed)
    optimizer, (table,) = module.configure_optimizers(), list(module.parameters())
    loader = data.train_dataloader()
    for epoch in range(original.recipe.epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            h = module.encode(data.graph())
            user, item = h[batch["user"]], h[batch["item"] + data.num_users]
            logits, labels = (user * item).sum(1), batch.get("label")
            if labels is None:
                logits = logits - (user * h[batch["negative"][:, 0] + data.num_users]).sum(1)
                labels = torch.ones_like(logits)
            optimizer.zero_grad()
            bce(logits, labels).backward()
            optimizer.step()
    torch.testing.assert_close(next(iter(found.scorer.parameters.values())), table.detach(), rtol=1e-4, atol=1e-5)
    free = METHODS["retraining-free"]().forget(original, first)
    assert float((_scores(free.scorer) - _scores(once.scorer)).abs().mean()) > 1e-2


@pytest.mark.parametrize("aggregate", [mean_of_scores, attention])
@pytest.mark.parametrize(
    ("setting", "kind", "touched"),
    [("MF-bce", "interactions", 2), ("LightGCN-bpr", "interactions", 2), ("LightGCN-bpr", "item", 3)],
)
def test_retraining_the_touched_shards_is_training_without_the_forgotten(originals, setting, kind, touched, aggregate):
    original = originals[setting]
    shard = random_partition(original, 3)
    rows = shard[original.data.table.rows("train")]
    inside = (rows < 2).nonzero().flatten()[::60].tolist()
    request = _pairs(original.data, inside) if kind == "interactions" else UnlearningRequest(items=["film-003"])
    without = train(original.recipe, original.source, original.seed, without=request)
    partial, never = (PartialRetraining("partial", lambda *_: shard, aggregate, shards=3) for _ in range(2))
    before = partial.prepare(original)
    found = partial.forget(original, request)
    assert torch.equal(_scores(found.scorer), _scores(never.prepare(without)))
    assert not torch.equal(_scores(found.scorer), _scores(before))
    assert found.details["shards_retrained"] == touched
    # Its own retraining, which is what it promises to equal.
    assert torch.equal(_scores(partial.again(original, request)), _scores(found.scorer))
    assert torch.equal(random_partition(without, 3), shard)


def test_a_shard_without_interactions_is_no_obstacle(originals):
    original = originals["LightGCN-bce"]
    everything = original.data.table.rows("train").long() - 1
    method = PartialRetraining("partial", lambda *_: everything, mean_of_scores, shards=2)
    assert torch.isfinite(_scores(method.prepare(original))).all()


@pytest.mark.parametrize("room", [13, 14])
def test_the_balanced_assignment_is_the_greedy_one(room):
    generator = torch.Generator().manual_seed(room)
    distance = torch.rand(50, 4, generator=generator)
    wanted, free = [-1] * 50, [room] * 4
    for _, point, anchor in sorted((float(distance[p, a]), p, a) for p, a in itertools.product(range(50), range(4))):
        if wanted[point] < 0 and free[anchor]:
            wanted[point] = anchor
            free[anchor] -= 1
    assert nearest_with_room(distance, room).tolist() == wanted
    assert 0 in free


def test_the_balanced_partition_keeps_the_alike_together(originals):
    original = originals["LightGCN-bpr"]
    table, h = original.data.table, original.scorer.h
    shards = {name: f(original, 4) for name, f in (("alike", balanced_partition), ("random", random_partition))}
    spread = {}
    for name, shard in shards.items():
        assert torch.equal(shard >= 0, table.rows("train"))
        sizes = shard[shard >= 0].bincount(minlength=4)
        assert int(sizes.max()) <= -(-1.2 * len(original.data.train) // 4)
        users = [h[table.user[shard == k]] for k in range(4)]
        spread[name] = float(torch.cat([u - u.mean(0) for u in users]).square().sum())
    assert spread["alike"] < 0.8 * spread["random"]


def test_attention_mixes_every_row_by_its_own_weights():
    torch.manual_seed(0)
    tables = torch.randn(3, 5, 4)
    mix = Attention(tables, num_users=2)
    torch.nn.init.normal_(mix.offset)
    found = mix(torch.empty(0))
    for node in range(5):
        moved = [mix.transfer[k].T @ tables[k, node] + mix.offset[k, 0] for k in range(3)]
        linear, _, last = mix.weights[int(node >= 2)]
        weights = torch.stack([last.weight[0] @ (linear.weight @ m + linear.bias).relu() for m in moved]).exp()
        wanted = sum(w / weights.sum() * m for w, m in zip(weights, moved, strict=True))
        torch.testing.assert_close(found[node], wanted)
