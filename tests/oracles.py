"""Slow and independent oracles: dense matrices, plain autograd over all examples, retraining.

Nothing here calls the package's linear algebra, its sampling or its propagation, except where a function says that it
builds the object under test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from lightning_ifru.graph import bipartite_edge_index, propagate
from lightning_ifru.interactions import Interactions
from lightning_ifru.losses import resolve_loss
from lightning_ifru.objective import Objective
from lightning_ifru.problem import Problem

# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class World:
    """Interactions between ``num_users`` and ``num_items``."""

    num_users: int
    num_items: int
    data: Interactions

    def graph(self, keep=None):
        """The edge index of the positive interactions among ``keep``."""
        positive = self.data.label > 0
        positive = positive if keep is None else positive & keep
        return bipartite_edge_index(self.data.user[positive], self.data.item[positive], self.num_users)

    def positives(self):
        """The same world with its positive interactions alone."""
        return replace(self, data=self.data[self.data.label > 0])

    def some(self, count, seed=0):
        """A random mask of ``count`` interactions."""
        mask = torch.zeros(len(self.data), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))[:count]] = True
        return mask

    def problem(self, forget):
        """The problem of forgetting ``forget``, what is left without interactions being erased."""
        nodes = torch.stack([self.data.user, self.data.item + self.num_users])
        before, after = (
            torch.bincount(nodes[:, rows].flatten(), minlength=self.num_users + self.num_items)
            for rows in (slice(None), ~forget)
        )
        erased = (before > 0) & (after == 0)
        items = torch.arange(self.num_items)
        return Problem(
            self.data, forget, self.graph(), self.graph(~forget), erased, items, items[~erased[self.num_users :]]
        )


def planted(num_users=60, num_items=50, density=0.4, seed=0, noise=0.5):
    """Labels from a model of rank 3 with noise, on a random part of all pairs."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(num_users, 3, generator=g), torch.randn(num_items, 3, generator=g)
    user, item = (torch.rand(num_users, num_items, generator=g) < density).nonzero().T
    scores = (z[0][user] * z[1][item]).sum(-1) + noise * torch.randn(len(user), generator=g)
    return World(num_users, num_items, Interactions(user.contiguous(), item.contiguous(), (scores > 0).double()))


def rows(num_nodes, dim, seed=0, scale=0.5):
    """Random rows, float64."""
    return scale * torch.randn(num_nodes, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the model, naively


def dense_adjacency(edge_index, num_nodes):
    """D^-1/2 A D^-1/2 as a dense matrix, by a loop over edges."""
    a = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    for s, t in edge_index.T.tolist():
        a[s, t] += 1.0
    scale = [d**-0.5 if d else 0.0 for d in a.sum(1).tolist()]
    scale = torch.tensor(scale, dtype=torch.float64)
    return scale[:, None] * a * scale[None, :]


def represent(w, adjacency, layers):
    """LightGCN's mean over ``layers`` dense propagations; MF with none."""
    out = x = w
    for _ in range(layers):
        x = adjacency @ x
        out = out + x
    return out / (layers + 1)


def all_scores(w, edge_index, layers, num_users):
    """The sigmoid scores of all pairs ``[num_users, num_items]``."""
    h = represent(w, dense_adjacency(edge_index, len(w)), layers)
    return torch.sigmoid(h[:num_users] @ h[num_users:].T)


def example_losses(h, data, num_users, loss, negative=None):
    """The loss of every example; ``negative [n, K]`` for BPR."""
    s = (h[data.user] * h[num_users + data.item]).sum(-1)
    if loss == "bpr":
        n = (h[data.user].unsqueeze(1) * h[num_users + negative]).sum(-1)
        return -F.logsigmoid(s.unsqueeze(1) - n).mean(1)
    if loss == "mse":
        return (s - data.label) ** 2
    return -(data.label * F.logsigmoid(s) + (1 - data.label) * F.logsigmoid(-s))


def risk(w, adjacency, layers, data, num_users, loss, decay, negative=None):
    """J, as one autograd graph over everything."""
    h = represent(w, adjacency, layers)
    return example_losses(h, data, num_users, loss, negative).mean() + decay / 2 * (w * w).sum()


def full_gradient(w, *args, **kwargs):
    """The gradient of :func:`risk`, flattened."""
    w = w.clone().requires_grad_()
    return torch.autograd.grad(risk(w, *args, **kwargs), w)[0].flatten()


def train(w, edge_index, layers, data, num_users, loss, decay, negative=None):
    """Minimise :func:`risk` from ``w`` by full-batch LBFGS until the gradient is tiny."""
    w = w.clone().requires_grad_()
    adjacency = dense_adjacency(edge_index, len(w))
    optimizer = torch.optim.LBFGS(
        [w],
        max_iter=3000,
        max_eval=6000,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = risk(w, adjacency, layers, data, num_users, loss, decay, negative)
        value.backward()
        return value

    optimizer.step(closure)
    closure()
    assert w.grad.norm() < 1e-7, f"the oracle is not converged: {w.grad.norm():.1e}"
    return w.detach()


def train_paired(w, world, keep, layers, decay, epochs=15, batch_size=64, lr=1e-2, seed=0):
    """Adam on BPR minibatches; two calls that differ in ``keep`` share order, negatives and start.

    Examples not in ``keep`` are dropped from the batches that hold them, and from the graph.
    """
    g = torch.Generator().manual_seed(seed)
    w = w.clone().requires_grad_()
    adjacency = dense_adjacency(world.graph(keep), len(w))
    optimizer = torch.optim.Adam([w], lr=lr, weight_decay=decay)
    n = len(world.data)
    for _ in range(epochs):
        order = torch.randperm(n, generator=g)
        negative = torch.randint(world.num_items, (n, 1), generator=g)
        for part in order.split(batch_size):
            part = part[keep[part]]
            h = represent(w, adjacency, layers)
            loss = example_losses(h, world.data[part], world.num_users, "bpr", negative[part]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return w.detach()


# ---------------------------------------------------------------- under test


def objective(layers, loss, num_users, num_items, decay, chunk_size=1 << 16):
    """The same model as the package's objective, with the package's propagation."""

    def encode(p, edge_index):
        out = x = p["w"]
        for _ in range(layers):
            x = propagate(edge_index, x)
            out = out + x
        return out / (layers + 1)

    return Objective(
        encode=encode,
        decode=lambda p, s, t: (s * t).sum(-1),
        loss=resolve_loss(loss),
        regularization=lambda p: decay / 2 * p["w"].square().sum(),
        num_users=num_users,
        num_items=num_items,
        node_parameters={"w": "node"},
        chunk_size=chunk_size,
    )


# ---------------------------------------------------------------- trained cases


@dataclass(frozen=True)
class Case:
    """A trained model, what it is to forget, and the retrained one."""

    world: World
    layers: int
    forget: torch.Tensor
    trained: torch.Tensor
    retrained: torch.Tensor
    decay: float
    loss: str

    @property
    def problem(self):
        return self.world.problem(self.forget)

    @property
    def objective(self):
        return objective(self.layers, self.loss, self.world.num_users, self.world.num_items, self.decay)

    def scores(self, w, forgotten_graph=True):
        """Sigmoid scores of all pairs, on the graph after or before."""
        graph = self.problem.after if forgotten_graph else self.problem.before
        return all_scores(w, graph, self.layers, self.world.num_users)


@functools.cache
def at_minimum(layers, seed=0, decay=2e-3, dim=8):
    """BCE, trained to a regularised minimum; 1% forgotten; retrained from the trained weights."""
    world = planted(seed=seed)
    forget = world.some(len(world.data) // 100, seed=seed + 1)
    problem = world.problem(forget)
    start = rows(world.num_users + world.num_items, dim, seed)
    common = {"layers": layers, "num_users": world.num_users, "loss": "bce", "decay": decay}
    trained = train(start, problem.before, data=world.data, **common)
    retrained = train(trained, problem.after, data=world.data[~forget], **common)
    return Case(world, layers, forget, trained, retrained, decay, "bce")


@functools.cache
def early_stopped(layers, seed=0, decay=1e-4, dim=8):
    """BPR, some epochs of Adam; 1% forgotten; retrained in pair."""
    world = planted(density=0.8, seed=seed).positives()
    forget = world.some(max(1, len(world.data) // 100), seed=seed + 1)
    start = rows(world.num_users + world.num_items, dim, seed, scale=0.1)
    trained = train_paired(start, world, torch.ones_like(forget), layers, decay, seed=seed)
    retrained = train_paired(start, world, ~forget, layers, decay, seed=seed)
    return Case(world, layers, forget, trained, retrained, decay, "bpr")
