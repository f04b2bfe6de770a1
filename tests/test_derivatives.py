"""Directional derivatives backwards twice, against forward mode where there is one and against dense matrices."""

import pytest
import torch
import torch.nn.functional as F
from test_conformance import DATA, GRAPHS, ITEMS, MODELS, USERS, N, build, examples, naive_scores
from torch.func import grad, jvp

from lightning_ifru.curvature import GaussNewton, Hessian
from lightning_ifru.derivatives import Derivative
from lightning_ifru.losses import Loss
from lightning_ifru.parameters import ravel


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def backwards():
    derivative = Derivative()
    derivative._forward = False
    return derivative


def test_several_inputs_and_outputs_of_any_shape_have_the_derivative_of_forward_mode():
    def function(p, x):
        return {"sum": p["w"].sin() @ x, "rest": (p["b"].exp() * x.square().sum(), x.cos())}

    g = torch.Generator().manual_seed(0)
    w, b, x = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((3, 4), (2,), (4,)))
    primals, tangents = ({"w": w, "b": b}, x), ({"w": w.flip(0), "b": b + 1}, x * 2)
    (value, found), (same, wanted) = backwards()(function, primals, tangents), jvp(function, primals, tangents)
    for a, c in ((value, same), (found, wanted)):
        torch.testing.assert_close(a["sum"], c["sum"], rtol=1e-13, atol=0)
        for one, other in zip(a["rest"], c["rest"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0)
    assert wanted["sum"].norm() > 0.1


@pytest.mark.parametrize("curvature", [GaussNewton, Hessian])
@pytest.mark.parametrize("model", MODELS)
def test_products_are_the_same_in_either_mode(model, curvature):
    module, graph = build(model, "bpr"), GRAPHS["as it is"]
    objective, parameters = module.objective(graph, USERS, ITEMS, chunk_size=17)
    forwards, back = (curvature(objective, parameters, graph, [examples("bpr")]) for _ in range(2))
    back._derivative = backwards()
    vector = torch.randn(ravel(parameters).shape, generator=torch.Generator().manual_seed(1))
    assert forwards(vector).norm() > 1e-3
    torch.testing.assert_close(back(vector), forwards(vector), rtol=0, atol=1e-11)


def huber(scores, target):
    return F.huber_loss(scores, target, delta=0.5, reduction="none")


@pytest.mark.parametrize("kind", ["gauss-newton", "hessian"])
def test_a_loss_without_forward_mode_has_the_curvature_of_the_dense_matrix(kind):
    with pytest.raises(NotImplementedError):
        jvp(grad(lambda s: huber(s, torch.zeros(2)).sum()), (torch.ones(2),), (torch.ones(2),))
    module, graph = build("LightGCN-2", "mse"), GRAPHS["as it is"]
    module.loss = Loss("huber", huber)
    objective, parameters = module.objective(graph, USERS, ITEMS, chunk_size=7)
    theta, scores = ravel(parameters), naive_scores(module, graph, parameters)

    def risk(s):  # by hand, since autograd has no second derivative of Huber's own in every mode
        gap = (s.view(N, -1)[:, 0] - DATA.label).abs()
        return torch.where(gap < 0.5, gap.square() / 2, 0.5 * (gap - 0.25)).mean()

    if kind == "hessian":
        dense = torch.autograd.functional.hessian(lambda v: risk(scores(v)), theta)
    else:
        jacobian = torch.autograd.functional.jacobian(scores, theta)
        dense = jacobian.T @ torch.autograd.functional.hessian(risk, scores(theta)) @ jacobian
    dense = dense + module.weight_decay * torch.eye(len(theta))
    matrix = {"gauss-newton": GaussNewton, "hessian": Hessian}[kind](objective, parameters, graph, [examples("mse")])
    assert (dense - torch.diag(dense.diag())).norm() > 1e-3
    for probe in torch.eye(len(theta)):
        torch.testing.assert_close(matrix(probe), dense @ probe, rtol=0, atol=1e-11)
