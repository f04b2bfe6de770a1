from dataclasses import replace

import lightning
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import LightGCN as LightGCNLayer

from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.examples import Examples, chunks
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.models import LightGCN
from lightning_ifru.parameters import ravel, unravel

USERS, ITEMS, DIM, DECAY = 6, 5, 2, 1e-3
WORLD = oracles.planted(USERS, ITEMS, density=0.5, seed=2)
DATA, N = WORLD.data, len(WORLD.data)
NEGATIVE = torch.randint(ITEMS, (N, 2), generator=torch.Generator().manual_seed(0))
GRAPH = WORLD.graph()


class Generic(IFRUMixin, lightning.LightningModule):
    """PyG's own LightGCN, about which the package knows nothing."""

    def __init__(self, loss, layers):
        super().__init__()
        self.loss = loss
        self.net = LightGCNLayer(USERS + ITEMS, DIM, layers)

    def encode(self, edge_index):
        return self.net.get_embedding(edge_index)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), weight_decay=DECAY)


class Bent(Generic):
    """An encoder that is not linear in its parameters, which only the Hessian notices."""

    def encode(self, edge_index):
        return torch.tanh(self.net.get_embedding(edge_index))


class Dense(Generic):
    """The same with a small network as decoder."""

    def __init__(self, loss, layers):
        super().__init__(loss, layers)
        self.mlp = nn.Sequential(nn.Linear(2 * DIM, 3), nn.Tanh(), nn.Linear(3, 1))

    def decode(self, src, dst):
        return self.mlp(torch.cat([src, dst], dim=1)).squeeze(1)


def fast(loss, layers):
    return LightGCN(USERS, ITEMS, DIM, layers, loss, weight_decay=DECAY)


MODULES = {"generic": Generic, "fast": fast, "bent encoder": Bent, "dense decoder": Dense}
KINDS = {"gauss-newton": GaussNewton, "hessian": Hessian}


def examples(loss):
    if loss == "bpr":
        return Examples(DATA.user, DATA.item, 1 / N, negative=NEGATIVE)
    return Examples(DATA.user, DATA.item, 1 / N, target=DATA.label)


@pytest.fixture(autouse=True)
def _double():
    """PyG's layer weights 1/(L+1) would be rounded to float32 otherwise, before the module becomes float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(model, loss, layers, chunk_size=25):
    torch.manual_seed(layers)
    module = MODULES[model](loss, layers)
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    objective, parameters = module.objective(GRAPH, USERS, ITEMS, chunk_size)
    return objective, parameters


def as_matrix(operator, size):
    """The operator's matrix, column by column."""
    return torch.stack([operator(e) for e in torch.eye(size, dtype=torch.float64)], dim=1)


def pairs(loss):
    """All pairs that the loss scores, an example's own first."""
    if loss == "bpr":
        items = torch.cat([DATA.item.unsqueeze(1), NEGATIVE], dim=1)
        return DATA.user.repeat_interleave(3), items.flatten()
    return DATA.user, DATA.item


def dense_scores(model, layers, loss, parameters):
    """The scores of all pairs as a function of the parameter vector: dense matrices, nothing of the package."""
    adjacency = oracles.dense_adjacency(GRAPH, USERS + ITEMS)
    user, item = pairs(loss)

    def scores(vector):
        p = unravel(vector, parameters)
        h = oracles.represent(p["net.embedding.weight"], adjacency, layers)
        h = torch.tanh(h) if model == "bent encoder" else h
        source, destination = h[user], h[USERS + item]
        if model != "dense decoder":
            return (source * destination).sum(-1)
        hidden = torch.cat([source, destination], 1) @ p["mlp.0.weight"].T + p["mlp.0.bias"]
        return (torch.tanh(hidden) @ p["mlp.2.weight"].T + p["mlp.2.bias"]).squeeze(1)

    return scores


def mean_loss(loss):
    def of(scores):
        if loss == "bpr":
            s = scores.view(N, 3)
            return -F.logsigmoid(s[:, :1] - s[:, 1:]).mean()
        if loss == "bce":
            return F.binary_cross_entropy_with_logits(scores, DATA.label)
        return F.mse_loss(scores, DATA.label)

    return of


def dense_matrix(kind, model, layers, loss, parameters):
    """The Hessian by double backward, or J^T H J assembled from its factors."""
    scores, of = dense_scores(model, layers, loss, parameters), mean_loss(loss)
    theta = ravel(parameters)
    omega = DECAY * torch.eye(len(theta), dtype=torch.float64)
    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda v: of(scores(v)), theta) + omega
    jacobian = torch.autograd.functional.jacobian(scores, theta)
    return jacobian.T @ torch.autograd.functional.hessian(of, scores(theta)) @ jacobian + omega


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("loss", ["bce", "bpr", "mse"])
@pytest.mark.parametrize("model", MODULES)
@pytest.mark.parametrize("kind", KINDS)
def test_products_equal_the_dense_matrix_and_gauss_newton_alone_is_positive(kind, model, loss, layers):
    objective, parameters = build(model, loss, layers)
    wanted = dense_matrix(kind, model, layers, loss, parameters)
    assert (wanted - torch.diag(wanted.diag())).norm() > 1e-3
    if model == "dense decoder":
        mixed = wanted[: (USERS + ITEMS) * DIM, (USERS + ITEMS) * DIM :]
        assert mixed.norm() > 1e-3, "encoder and decoder should interact"
    operator = KINDS[kind](objective, parameters, GRAPH, [examples(loss)])
    got = as_matrix(operator, len(wanted))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(got, got.T, rtol=0, atol=1e-12)
    lowest = torch.linalg.eigvalsh(got)[0]
    if kind == "hessian":
        assert lowest < -1e-3, "the case should be indefinite"
    else:
        assert lowest >= DECAY * (1 - 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_products_do_not_depend_on_the_chunks(kind, loss):
    vector = oracles.rows(USERS + ITEMS, DIM, seed=3).flatten()
    products, counts = [], []
    for chunk_size in (1, 4, 7, 1000):
        objective, parameters = build("fast", loss, 2, chunk_size)
        counts.append(len(list(chunks(examples(loss), USERS, chunk_size))))
        products.append(KINDS[kind](objective, parameters, GRAPH, [examples(loss)])(vector))
    assert counts[0] == N > counts[2] > counts[3] == 1
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_sets_of_examples_add_up(kind):
    objective, parameters = build("fast", "bce", 1)
    bare = replace(objective, weight_decay={})
    half = torch.arange(N) % 2 == 0
    parts = [Examples(DATA.user[m], DATA.item[m], 1 / N, target=DATA.label[m]) for m in (half, ~half)]
    vector = oracles.rows(USERS + ITEMS, DIM, seed=3).flatten()
    whole, one, two = (
        KINDS[kind](bare, parameters, GRAPH, some)(vector) for some in ([examples("bce")], parts[:1], parts[1:])
    )
    assert min(one.norm(), two.norm()) > 1e-3
    torch.testing.assert_close(one + two, whole, rtol=0, atol=1e-15)
    torch.testing.assert_close(KINDS[kind](bare, parameters, GRAPH, parts)(vector), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_have_the_curvature_of_the_explicit_mean(kind):
    objective, parameters = build("fast", "bpr", 1, chunk_size=3)
    everything = torch.arange(ITEMS)
    explicit = Examples(DATA.user, DATA.item, 1 / N, negative=everything.expand(N, -1))
    exact = Examples(DATA.user, DATA.item, 1 / N, candidates=everything)
    vector = oracles.rows(USERS + ITEMS, DIM, seed=3).flatten()
    products = [KINDS[kind](objective, parameters, GRAPH, [some])(vector) for some in (explicit, exact)]
    assert products[0].norm() > 1e-3
    torch.testing.assert_close(products[1], products[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_the_regularisers_own_curvature_is_part_of_both(kind):
    objective, parameters = build("fast", "bce", 1)
    quartic = replace(objective, regularization=lambda p: p["net.embedding.weight"].pow(4).sum())
    none = replace(objective, regularization=lambda p: 0.0 * p["net.embedding.weight"].sum())
    vector = oracles.rows(USERS + ITEMS, DIM, seed=3).flatten()
    with_it, without = (KINDS[kind](o, parameters, GRAPH, [examples("bce")])(vector) for o in (quartic, none))
    wanted = 12 * ravel(parameters).square() * vector
    torch.testing.assert_close(with_it - without, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_belongs_to_its_parameters_and_graph_and_every_product_is_the_same(kind):
    objective, parameters = build("fast", "bce", 2)
    vector = oracles.rows(USERS + ITEMS, DIM, seed=3).flatten()
    matrix = KINDS[kind](objective, parameters, GRAPH, [examples("bce")])
    first = matrix(vector)
    matrix(-3 * vector)
    assert torch.equal(matrix(vector), first)
    fewer = WORLD.graph(~WORLD.some(2))
    assert fewer.shape[1] < GRAPH.shape[1]
    assert (KINDS[kind](objective, parameters, fewer, [examples("bce")])(vector) - first).norm() > 1e-4
