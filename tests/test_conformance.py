"""What every model can be promised: a table of models, losses, curvatures and kinds of graphs.

Each case is held to matrices that double backward builds from the module itself and from losses written out by hand:
nothing of the package's chunks, forward derivatives or propagation of tangents takes part in the oracle.
"""

import itertools
from dataclasses import replace

import oracles
import pytest
import torch
import torch.nn.functional as F
from stock_layers import GAT, Bipartite, GraphSAGE
from torch.func import functional_call

from lightning_ifru import Loss
from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.examples import Examples
from lightning_ifru.losses import resolve_loss
from lightning_ifru.models import NGCF, LightGCN, MatrixFactorization, NeuMF
from lightning_ifru.parameters import ravel, unravel

USERS, ITEMS, DIM, K = 6, 5, 2, 2
WORLD = oracles.planted(USERS, ITEMS, density=0.6, seed=2)
DATA, N = WORLD.data, len(WORLD.data)
NEGATIVE = torch.randint(ITEMS, (N, K), generator=torch.Generator().manual_seed(0))
DECAY = 1e-3


@pytest.fixture(autouse=True)
def _double():
    """PyG's layer weights would be rounded to float32 otherwise, before the module becomes float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def features(rows, seed):
    return torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MODELS = {
    "MF": lambda: MatrixFactorization(USERS, ITEMS, DIM),
    **{f"LightGCN-{n}": lambda n=n: LightGCN(USERS, ITEMS, DIM, n) for n in (1, 2, 3, 4)},
    "NGCF": lambda: NGCF(USERS, ITEMS, DIM, 2, dropout=0.5),
    "NeuMF": lambda: NeuMF(USERS, ITEMS, DIM, 1, dropout=0.5),
    "GraphSAGE": lambda: GraphSAGE(USERS, ITEMS, DIM),
    "GAT": lambda: GAT(USERS, ITEMS, DIM),
    "bipartite": lambda: Bipartite(features(USERS, 0), features(ITEMS, 1), DIM),
}

SQUARED_GAP = Loss("squared gap", lambda p, n: (1 - p.unsqueeze(1) + n).square().sum(1), "listwise")
#: Each loss as it comes, and by hand, of the scores ``[N, 1 + K]`` of all examples.
LOSSES = {
    "bce": ("bce", lambda s: -(DATA.label * F.logsigmoid(s[:, 0]) + (1 - DATA.label) * F.logsigmoid(-s[:, 0]))),
    "mse": ("mse", lambda s: (s[:, 0] - DATA.label) ** 2),
    "bpr": ("bpr", lambda s: -F.logsigmoid(s[:, :1] - s[:, 1:]).mean(1)),
    "sampled_bce": ("sampled_bce", lambda s: -F.logsigmoid(s[:, 0]) - F.logsigmoid(-s[:, 1:]).mean(1)),
    "margin": ("margin", lambda s: -F.logsigmoid(s[:, :1] - s[:, 1:] - 1).mean(1)),
    "sampled_softmax": ("sampled_softmax", lambda s: -s.log_softmax(1)[:, 0]),
    "own": (SQUARED_GAP, lambda s: (1 - s[:, :1] + s[:, 1:]).square().sum(1)),
}


def doubled(edge_index):
    """The graph with its first three edges twice, as duplicates that are kept make it."""
    half = edge_index.shape[1] // 2
    again = torch.cat([edge_index[:, :3], edge_index[:, half : half + 3]], dim=1)
    return torch.cat([edge_index, again], dim=1)


GRAPHS = {
    "as it is": WORLD.graph(),
    "with lonely nodes": WORLD.graph((DATA.user != 0) & (DATA.item != 1)),
    "with double edges": doubled(WORLD.graph()),
    "without an edge": torch.empty(2, 0, dtype=torch.long),
}
CURVATURES = {"gauss-newton": GaussNewton, "hessian": Hessian}


def build(model, loss):
    """The module in evaluation mode with weights at which no unit is near its kink, and its objective."""
    torch.manual_seed(3)
    module = MODELS[model]()
    module.loss = LOSSES[loss][0]
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return module.eval()


def examples(loss):
    if resolve_loss(LOSSES[loss][0]).needs_negatives:
        return Examples(DATA.user, DATA.item, 1 / N, negative=NEGATIVE)
    return Examples(DATA.user, DATA.item, 1 / N, target=DATA.label)


def naive_scores(module, graph, parameters):
    """The scores ``[N * (1 + K)]`` of all examples as one function of the parameter vector."""
    user = DATA.user.repeat_interleave(1 + K)
    item = torch.cat([DATA.item.unsqueeze(1), NEGATIVE], dim=1).flatten()

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self):
            h = module.encode(graph)
            return module.decode(h[user], h[USERS + item])

    whole = Whole()

    def scores(vector):
        return functional_call(whole, {f"module.{n}": p for n, p in unravel(vector, parameters).items()}, ())

    return scores


def naive_matrix(curvature, scores, risk, theta):
    if curvature == "hessian":
        return torch.autograd.functional.hessian(lambda v: risk(scores(v)), theta)
    jacobian = torch.autograd.functional.jacobian(scores, theta)
    return jacobian.T @ torch.autograd.functional.hessian(risk, scores(theta)) @ jacobian


def _every_day(loss, graph):
    """Every loss on the graph as it is, and every graph with one loss of each kind."""
    return graph == "as it is" or loss in ("bce", "bpr", "sampled_softmax")


CASES = [
    pytest.param(*case, id="-".join(case), marks=[] if _every_day(*case[1:]) else pytest.mark.slow)
    for case in itertools.product(MODELS, LOSSES, GRAPHS)
]


@pytest.mark.parametrize(("model", "loss", "graph"), CASES)
def test_gradient_and_both_curvatures_are_those_of_dense_double_backward(model, loss, graph):
    module, edge_index = build(model, loss), GRAPHS[graph]
    objective, parameters = module.objective(edge_index, USERS, ITEMS, chunk_size=17)
    objective = replace(objective, regularization=lambda p: DECAY / 2 * ravel(p).square().sum(), weight_decay={})
    theta, scores = ravel(parameters), naive_scores(module, edge_index, parameters)

    def risk(s):
        return LOSSES[loss][1](s.view(N, 1 + K)).mean()

    value, gradient = objective.value_and_gradient(parameters, edge_index, [examples(loss)])
    vector = theta.clone().requires_grad_()
    whole = risk(scores(vector)) + DECAY / 2 * vector.square().sum()
    (wanted,) = torch.autograd.grad(whole, vector)
    assert wanted.norm() > 1e-3
    assert value == pytest.approx(float(whole), rel=1e-12)
    torch.testing.assert_close(ravel(gradient), wanted, rtol=0, atol=1e-11)

    probes = oracles.rows(3, len(theta), seed=5, scale=1.0)
    for name, operator in CURVATURES.items():
        dense = naive_matrix(name, scores, risk, theta) + DECAY * torch.eye(len(theta))
        assert (dense - torch.diag(dense.diag())).norm() > 1e-4
        matrix = operator(objective, parameters, edge_index, [examples(loss)])
        for probe in probes:
            torch.testing.assert_close(matrix(probe), dense @ probe, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_the_table_is_not_vacuous(model):
    """Graphs make a difference to models of graphs, and the dense weights are there that should be."""
    module = build(model, "bce")
    seen = [module.encode(graph).detach() for graph in GRAPHS.values()]
    for a, b in itertools.combinations(seen, 2):
        assert torch.equal(a, b) == (model in ("MF", "NeuMF"))
    objective, parameters = module.objective(GRAPHS["as it is"], USERS, ITEMS)
    assert (parameters.keys() > set(objective.node_parameters)) == (model != "MF" and "LightGCN" not in model)
