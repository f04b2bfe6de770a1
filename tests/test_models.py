"""The built-in models against PyG's own layer and against training loops written by hand."""

import copy
import io
import pickle
import re

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import LightGCN as PyGLightGCN

from conftest import NUM_ITEMS, NUM_USERS
from lightning_ifru import IFRU, IFRUCallback, Loss, ObjectiveError, UnlearningError, UnlearningRequest
from lightning_ifru.models import NGCF, LightGCN, MatrixFactorization, NeuMF

KINDS = {"mf": MatrixFactorization, "lightgcn": LightGCN, "ngcf": NGCF, "neumf": NeuMF}
BOTH = [pytest.param(None, id="mf"), pytest.param(2, id="lightgcn-2")]


def build(kind, loss="bce", **changes):
    """An untrained model of dimension 4, always from the same seed."""
    sizes = {"num_users": NUM_USERS, "num_items": NUM_ITEMS, "embedding_dim": 4, "lr": 0.05, "weight_decay": 1e-3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return KINDS[kind](loss=loss, **sizes | changes)


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("isolated", [False, True], ids=["all linked", "some isolated"])
def test_lightgcn_encodes_as_pyg_does_in_value_and_gradient(make_model, make_data, layers, isolated):
    model = make_model(layers=layers).double()
    edges = make_data().graph()
    if isolated:
        edges = edges[:, (edges != 3).all(0) & (edges != 50).all(0)]
        assert len(edges.unique()) < model.net.num_nodes
    model.net.alpha.copy_(torch.linspace(0.6, 0.1, layers + 1))  # PyG allows other weights than equal ones
    reference = PyGLightGCN(model.net.num_nodes, 4, layers).double()
    reference.load_state_dict(model.net.state_dict())
    weight = torch.randn(model.net.num_nodes, 4, dtype=torch.float64)
    ours, theirs = model.encode(edges), reference.get_embedding(edges)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.net.embedding.weight.grad, reference.embedding.weight.grad, rtol=1e-12, atol=1e-12)
    assert layers == 0 or not torch.allclose(ours, model.net.embedding.weight)


def test_matrix_factorization_encodes_its_table_and_decodes_by_dot_product(make_model):
    model = make_model(layers=None)
    h = model.encode(torch.empty(2, 0, dtype=torch.long))
    assert h is model.embedding.weight
    by_hand = [sum(a * b for a, b in zip(h[k].tolist(), h[k + 1].tolist(), strict=True)) for k in range(5)]
    assert model.decode(h[:5], h[1:6]).tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_which_there_is_no_model_are_refused(kind):
    least = {"num_users": 1, "num_items": 1, "embedding_dim": 1} | ({} if kind == "mf" else {"num_layers": 0})
    h = build(kind, **least).encode(torch.tensor([[0, 1], [1, 0]]))
    assert h.shape[0] == 2
    assert h.isfinite().all()
    for name, low in least.items():
        for size in (low - 1, -3, 2.5, "4", None):
            message = re.escape(f"{KINDS[kind].__name__} got {name}={size!r}; wanted an integer of at least {low}.")
            with pytest.raises(UnlearningError, match=message):
                build(kind, **{name: size})
    assert build(kind, num_users=np.int64(NUM_USERS)).hparams.num_users == NUM_USERS


def leaky(row, slope=0.2):
    return [max(x, slope * x) for x in row]


def times(weight, row):
    """W x, as PyTorch keeps W: outputs by inputs."""
    return [sum(w * x for w, x in zip(line, row, strict=True)) for line in weight.tolist()]


def ngcf_by_hand(model, neighbours):
    """Equations 3 to 9 of arXiv 1905.08108: a message for every neighbour, and one to oneself."""
    rows = model.embedding.weight.tolist()
    kept = [list(row) for row in rows]
    for first, second in zip(model.sums, model.products, strict=True):
        after = []
        for node, own in enumerate(rows):
            total = times(first.weight, own)
            for other in neighbours[node]:
                product = [a * b for a, b in zip(rows[other], own, strict=True)]
                message = zip(times(first.weight, rows[other]), times(second.weight, product), strict=True)
                scale = (len(neighbours[node]) * len(neighbours[other])) ** -0.5
                total = [t + scale * (a + b) for t, (a, b) in zip(total, message, strict=True)]
            after.append(leaky(total))
        rows = after
        kept = [before + row for before, row in zip(kept, rows, strict=True)]
    return torch.tensor(kept, dtype=torch.float64)


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("isolated", [False, True], ids=["all linked", "some isolated"])
def test_ngcf_encodes_as_the_paper_says_message_by_message(make_data, layers, isolated):
    model = build("ngcf", num_layers=layers).double()
    with torch.no_grad():
        model.embedding.weight.mul_(5)
    edges = make_data().graph()
    if isolated:
        edges = edges[:, (edges != 3).all(0) & (edges != 50).all(0)]
    neighbours = [edges[1, edges[0] == node].tolist() for node in range(NUM_USERS + NUM_ITEMS)]
    assert ([] in neighbours) == isolated
    ours, theirs = model.encode(edges), ngcf_by_hand(model, neighbours)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ours.shape == (NUM_USERS + NUM_ITEMS, 4 * (1 + layers))
    assert layers == 0 or bool((ours[:, 4:] < 0).any())  # the slope mattered
    ours.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(("layers", "sizes"), [(0, []), (1, [4]), (2, [4, 2]), (4, [4, 2, 1, 1])])
def test_neumf_scores_as_the_paper_says_pair_by_pair(layers, sizes):
    model = build("neumf", num_layers=layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))  # biases start as zero
    linear = [part for part in model.perceptron if isinstance(part, torch.nn.Linear)]
    assert [part.out_features for part in linear] == sizes
    h = model.encode(torch.empty(2, 0, dtype=torch.long))
    expected, cut = [], 0
    for user, item in zip(range(20), range(NUM_USERS, NUM_USERS + 20), strict=True):
        hidden = model.inputs.weight[user].tolist() + model.inputs.weight[item].tolist()
        for part in linear:
            sums = [a + b for a, b in zip(times(part.weight, hidden), part.bias.tolist(), strict=True)]
            hidden = [max(x, 0.0) for x in sums]
            cut += sum(x < 0 for x in sums)
        pair = zip(model.factors.weight[user].tolist(), model.factors.weight[item].tolist(), strict=True)
        expected += times(model.output.weight, [a * b for a, b in pair] + hidden)
    scores = model.decode(h[:20], h[NUM_USERS : NUM_USERS + 20])
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert layers == 0 or cut > 0
    assert float(scores.std()) > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["bce", "mse", "bpr"])
def test_one_training_step_moves_every_parameter(trained, kind, loss):
    model = build(kind, loss)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(loss, model=model, max_epochs=1, limit_train_batches=1)
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all()
        assert not torch.equal(p, before[name]), f"{name} stayed"


@pytest.mark.parametrize("kind", ["ngcf", "neumf"])
@pytest.mark.parametrize("loss", ["bce", "mse", "bpr"])
def test_default_settings_correct_dense_weights_and_draw_erased_rows_anew(trained, kind, loss):
    # With 4 dimensions all units of the perceptron die here. With 8 and a decay of 3e-4, or with 16, there are losses
    # for which no damping lowers the residual of weights so far from a minimum: the report then has no step.
    model, recorder = build(kind, loss, lr=0.01, embedding_dim=8), Recorder()
    trainer, _, data = trained(loss, model=model, max_epochs=30, callbacks=[IFRUCallback(IFRU()), recorder])
    assert sum(recorder.losses[-40:]) < sum(recorder.losses[:40])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    single = [
        (data.user_ids[u], data.item_ids[i]) for u, i in zip(data.train.user[:4], data.train.item[:4], strict=True)
    ]
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-011"], interactions=single))
    assert report.steps >= 1
    assert report.residual_after < report.residual_before
    assert (report.spillover_norm > 0) == (kind == "ngcf")
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all()
        assert not torch.equal(p, before[name]), f"{name} was not corrected"
        if name in model.node_parameters:
            bound = (6 / sum(p.shape)) ** 0.5  # of xavier_uniform
            assert bool((p[11] != before[name][11]).all())
            assert float(p[11].abs().max()) <= bound


@pytest.mark.parametrize(("kind", "smooth"), [("ngcf", "elu"), ("neumf", "silu")])
def test_a_smooth_activation_takes_the_place_of_the_papers(make_data, kind, smooth):
    scores = []
    for choice in ({}, {"activation": smooth}):
        model = build(kind, embedding_dim=8, **choice)
        h = model.encode(make_data().graph())
        scores.append(model.decode(h[:NUM_ITEMS], h[NUM_USERS:]))
        assert model.hparams.activation == choice.get("activation", {"ngcf": "leaky_relu", "neumf": "relu"}[kind])
    assert bool((scores[0] != scores[1]).all())
    assert [type(part).__name__.lower() for part in model.modules()].count(smooth) == (1 if kind == "ngcf" else 2)


@pytest.mark.parametrize("kind", ["ngcf", "neumf"])
def test_dropout_acts_in_training_and_is_no_obstacle_to_unlearning(trained, kind):
    trainer, model, data = trained("bce", model=build(kind, dropout=0.5, lr=0.01, embedding_dim=8), max_epochs=20)

    def scores():
        h = model.encode(data.graph())
        return model.decode(h[:NUM_ITEMS], h[NUM_USERS:])

    model.train()
    assert not torch.equal(scores(), scores())
    model.eval()
    assert torch.equal(scores(), scores())
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-011"]))
    assert report.residual_after < report.residual_before


class Recorder(lightning.Callback):
    """Keeps the batches, the losses and the tables of a fit."""

    def __init__(self):
        self.batches, self.losses, self.tables = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append({name: column.clone() for name, column in batch.items()})
        self.losses.append(float(outputs["loss"]))
        self.tables.append(next(module.parameters()).detach().clone())


def plain_losses(table, layers, edges, batches, loss, users, lr, decay):
    """Adam with L2 on a dense adjacency, and the losses from their textbook formulas."""
    nodes = len(table)
    adjacency = torch.zeros(nodes, nodes).index_put_(tuple(edges), torch.ones(edges.shape[1]), accumulate=True)
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    table = table.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=lr, weight_decay=decay)
    losses, tables = [], []
    for batch in batches:
        x = h = table
        for _ in range(layers or 0):
            x = adjacency @ x
            h = h + x
        h = h / (1 + (layers or 0))
        scores = h[:users] @ h[users:].T
        positive = scores[batch["user"], batch["item"]]
        if loss == "bce":
            p, y = torch.sigmoid(positive), batch["label"]
            value = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        elif loss == "mse":
            value = (positive - batch["label"]).pow(2).mean()
        else:
            value = -F.logsigmoid(positive[:, None] - scores[batch["user"][:, None], batch["negative"]]).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        tables.append(table.detach().clone())
    return losses, tables


@pytest.mark.parametrize("layers", BOTH)
@pytest.mark.parametrize("loss", ["bce", "mse", "bpr"])
def test_training_equals_a_plain_loop_step_for_step(make_data, make_model, make_trainer, layers, loss):
    data = make_data(loss, num_negatives=2) if loss == "bpr" else make_data(loss)
    model, recorder = make_model(loss, layers, weight_decay=1e-3), Recorder()
    with torch.no_grad():
        start = next(model.parameters()).mul_(5).clone()
    make_trainer(callbacks=[recorder], enable_checkpointing=False, max_epochs=2).fit(model, datamodule=data)
    losses, tables = plain_losses(start, layers, data.graph(), recorder.batches, loss, data.num_users, 0.05, 1e-3)
    assert len(losses) > 8
    assert max(losses) - min(losses) > 0.02
    assert recorder.losses == pytest.approx(losses, abs=1e-5)
    assert recorder.losses[:4] == pytest.approx(losses[:4], abs=1e-6)
    for step, tolerance in ((0, 1e-5), (3, 1e-4), (-1, 1e-3)):  # Adam divides by tiny moments: rounding grows
        torch.testing.assert_close(recorder.tables[step], tables[step], rtol=tolerance, atol=tolerance)
    assert (tables[-1] - start).abs().mean() > 0.05


@pytest.mark.parametrize("layers", BOTH)
@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_as_float32_does_up_to_its_rounding(
    make_data, make_model, make_trainer, layers, loss, precision
):
    tables, losses = [], []
    for one in ("32-true", precision):
        data, model, recorder = make_data(loss), make_model(loss, layers, lr=0.01), Recorder()
        with torch.no_grad():
            next(model.parameters()).mul_(5)
        torch.manual_seed(5)
        trainer = make_trainer(callbacks=[recorder], enable_checkpointing=False, max_epochs=2, precision=one)
        trainer.fit(model, datamodule=data)
        tables.append(recorder.tables[-1].float())
        losses.append(torch.tensor(recorder.losses))
    assert float(losses[0].std()) > 0.005
    # bfloat16 has eight bits: scores of about 1 are off by 1%, and Adam's steps of .01 by as much as they are long.
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.01)
    assert float((tables[1] - tables[0]).abs().mean()) < 0.02


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def holds_edges(value, edges, num_users):
    """Whether a tensor anywhere has an edge in it as two columns or two rows, or is as long as the edge list."""
    for tensor in tensors_in(value):
        if tensor.dim() and tensor.shape[-1] in (edges.shape[1], edges.shape[1] // 2):
            return True
        if tensor.layout != torch.strided:
            return True
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_state_dict_and_checkpoint_hold_no_edges(trained, tmp_path, kind, loss):
    trainer, model, data = trained(loss, model=build(kind, loss))
    edges = data.graph()
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    checkpoint = torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert holds_edges({"a": [edges]}, edges, data.num_users)
    assert model.edge_index.shape == edges.shape  # it was used, and might have been kept
    assert not holds_edges(checkpoint, edges, data.num_users)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()} | (
        {"net.alpha"} if kind == "lightgcn" else set()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_load_from_checkpoint_needs_no_arguments(trained, kind):
    trainer, model, data = trained("bce", model=build(kind), max_epochs=1)
    loaded = KINDS[kind].load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert loaded.hparams == model.hparams
    assert torch.equal(loaded.encode(data.graph()), model.encode(data.graph()))


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
def test_a_trained_model_can_be_copied_and_the_copy_lives_by_itself(trained, kind, way):
    _, model, data = trained("bce", model=build(kind), max_epochs=1)
    twin = way(model)
    before = model.encode(data.graph()).detach().clone()
    assert torch.equal(twin.encode(data.graph()), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin.encode(data.graph()).any()
    assert torch.equal(model.encode(data.graph()), before)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_rows_are_what_a_new_model_would_have(kind):
    # xavier_uniform on [5000, 64] is U(-a, a) with a = sqrt(6 / 5064): mean 0, variance a^2 / 3.
    model = build(kind, num_users=3000, num_items=2000, embedding_dim=64)
    (name, table), *_ = model.named_parameters()
    with torch.no_grad():
        table.fill_(7.0)
    bound = (6 / 5064) ** 0.5
    state = torch.get_rng_state()
    rows = model.initial_rows(name, torch.arange(0, 5000, 2), seed=4)
    assert rows.shape == (2500, 64)
    assert 0.999 * bound < float(rows.abs().max()) <= bound
    # 160,000 draws: five standard errors of the mean and of the variance.
    assert abs(float(rows.mean())) < 5 * bound / (3 * 160_000) ** 0.5
    assert float(rows.var()) == pytest.approx(bound**2 / 3, rel=0.02)
    assert len(rows.unique(dim=0)) == 2500
    assert not rows.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((table == 7.0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_initial_rows_depend_on_the_seed_and_are_not_the_trained_ones(trained, kind):
    _, model, _ = trained("bce", model=build(kind), max_epochs=1)
    (name, table), *_ = model.named_parameters()
    some = torch.tensor([3, 41])
    one = model.initial_rows(name, some, seed=1)
    assert torch.equal(one, model.initial_rows(name, some, seed=1))
    assert torch.equal(one[1:], model.initial_rows(name, some[1:], seed=1))
    for other in (model.initial_rows(name, some, seed=2), table[some]):
        assert bool((one != other).all())


def own(scores, targets):
    return (scores - targets).square()


@pytest.mark.parametrize("model", [LightGCN, MatrixFactorization, NGCF, NeuMF])
@pytest.mark.parametrize(
    "loss", ["mse", "test_models.own", own, Loss("mine", own)], ids=["name", "path", "function", "Loss"]
)
def test_every_kind_of_loss_can_be_given_saved_and_loaded(model, loss, trained, make_trainer, make_data, tmp_path):
    sizes = {"num_users": NUM_USERS, "num_items": NUM_ITEMS, "embedding_dim": 4}
    trainer, fitted, _ = trained("mse", data=make_data("mse"), model=model(**sizes, loss=loss), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert ("loss" in fitted.hparams) == isinstance(loss, str)
    given = {} if isinstance(loss, str) else {"loss": loss}
    loaded = model.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True, **given)
    assert loaded.resolved_loss() == fitted.resolved_loss()
    if given:
        with pytest.raises(ObjectiveError, match=f"was trained with the loss '{fitted.resolved_loss().name}'"):
            model.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
