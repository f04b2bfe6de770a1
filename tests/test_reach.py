"""How many hops an encoder reaches: found for stock layers, and never guessed."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch_geometric.nn import (
    APPNP,
    GATConv,
    GCNConv,
    GraphNorm,
    JumpingKnowledge,
    LGConv,
    PairNorm,
    SAGEConv,
    SGConv,
    TransformerConv,
)
from torch_geometric.utils import degree

from lightning_ifru.graph import affected_nodes, bipartite_edge_index, propagate
from lightning_ifru.models import LightGCN, MatrixFactorization
from lightning_ifru.reach import infer_hops

USERS, ITEMS, DIM = 70, 65, 6


class Net(nn.Module):
    """A table of rows, and what a test puts on top of it."""

    def __init__(self, *layers, users=USERS, items=ITEMS):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.table = nn.Embedding(users + items, DIM)
            self.layers = nn.ModuleList([layer() for layer in layers])

    def forward(self, edge_index):
        x = self.table.weight
        for layer in self.layers:
            x = layer(x, edge_index) if "edge_index" in layer.forward.__code__.co_varnames else layer(x)
        return x


def conv(kind, *args, **options):
    return lambda: kind(DIM, *(args or (DIM,)), **options)


class Maximum(SAGEConv):
    """The layer that takes the largest value of all neighbours."""

    def __init__(self):
        super().__init__(DIM, DIM, aggr="max")


class Rest(nn.Module):
    """A layer with a way around it, of which hardly anything is left."""

    def __init__(self):
        super().__init__()
        self.conv, self.share = GCNConv(DIM, DIM), nn.Parameter(torch.tensor(1e-6))

    def forward(self, x, edge_index):
        return x + self.share * self.conv(x, edge_index)


class Jumping(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([GCNConv(DIM, DIM) for _ in range(3)])
        self.jump = JumpingKnowledge("max")

    def forward(self, x, edge_index):
        kept = []
        for layer in self.convs:
            x = layer(x, edge_index).relu()
            kept.append(x)
        return self.jump(kept)


class Chain(nn.Module):
    """Propagations without anything of the node itself between."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x, edge_index):
        for _ in range(self.times):
            x = propagate(edge_index, x)
        return x


REACHES = [
    ("a table", [], 0),
    ("a table and a network", [lambda: nn.Linear(DIM, DIM), nn.ReLU, lambda: nn.LayerNorm(DIM)], 0),
    ("GCN", [conv(GCNConv)], 1),
    ("GCN, 2, ReLU", [conv(GCNConv), nn.ReLU, conv(GCNConv)], 2),
    ("GCN, 3, ReLU and LayerNorm", [conv(GCNConv), nn.ReLU, lambda: nn.LayerNorm(DIM)] * 2 + [conv(GCNConv)], 3),
    ("GCN, 4", [conv(GCNConv), nn.ELU] * 4, 4),
    ("GCN and BatchNorm", [conv(GCNConv), lambda: nn.BatchNorm1d(DIM), nn.ReLU, conv(GCNConv)], 2),
    ("GCN and Dropout", [conv(GCNConv), lambda: nn.Dropout(0.5), conv(GCNConv)], 2),
    ("GCN without self-loops", [conv(GCNConv, add_self_loops=False)], 1),
    ("GCN with a small share", [Rest, Rest], 2),
    ("SAGE", [conv(SAGEConv)], 1),
    ("SAGE, 2", [conv(SAGEConv), nn.ReLU, conv(SAGEConv)], 2),
    ("SAGE, 2, maximum", [Maximum, nn.ReLU, Maximum], 2),
    ("SAGE, 2, without the node itself", [conv(SAGEConv, root_weight=False)] * 2, 2),
    ("GAT", [conv(GATConv)], 1),
    ("GAT, 3, ReLU", [conv(GATConv), nn.ReLU, conv(GATConv), nn.ReLU, conv(GATConv)], 3),
    ("transformer", [conv(TransformerConv), nn.ReLU, conv(TransformerConv)], 2),
    ("SGC", [conv(SGConv, DIM, 3)], 3),
    ("APPNP", [lambda: nn.Linear(DIM, DIM), lambda: APPNP(10, 0.1)], 10),
    ("a long chain", [lambda: Chain(21)], 21),
    ("jumping knowledge", [Jumping], 3),
    ("LGConv, 2", [LGConv, LGConv], 2),
]


class Mean(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


class FirstUser(nn.Module):
    """Everybody gets something of one node."""

    def forward(self, x):
        return x + 1e-3 * x[:1]


class OwnGraph(nn.Module):
    """Answers with a graph of its own."""

    def __init__(self):
        super().__init__()
        self.conv = LGConv()
        users, items = torch.arange(60), torch.arange(60).flip(0)
        self.edges = bipartite_edge_index(users, items, USERS)

    def forward(self, x):
        return self.conv(x, self.edges)


class Degrees(nn.Module):
    """Passes on how many neighbours the neighbours have, farther than it passes on rows."""

    def forward(self, x, edge_index):
        count = degree(edge_index[0], len(x)).unsqueeze(-1)
        for _ in range(3):
            count = propagate(edge_index, count)
        return propagate(edge_index, x) * (1 + count)


class Halves(nn.Module):
    """Layers that only the first half of the users, and the items they see, go through."""

    def forward(self, x, edge_index):
        first = (torch.arange(len(x)) % 3 == 0).unsqueeze(-1)
        return torch.where(first, propagate(edge_index, propagate(edge_index, x)), propagate(edge_index, x))


class Picky(nn.Module):
    """Fails on every graph but one."""

    def forward(self, x, edge_index):
        assert edge_index.shape[1] == 1234
        return x


class Silent(nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


class Reciprocal(nn.Module):
    """Divides by the number of neighbours, which nodes without any do not survive."""

    def forward(self, x, edge_index):
        return propagate(edge_index, x) / degree(edge_index[0], len(x)).unsqueeze(-1)


DOUBTS = [
    ("a mean over all nodes", [Mean]),
    ("GraphNorm", [conv(GCNConv), lambda: GraphNorm(DIM)]),
    ("PairNorm", [conv(GCNConv), PairNorm]),
    ("batch statistics", [lambda: nn.BatchNorm1d(DIM, track_running_stats=False)]),
    ("a graph of its own", [OwnGraph]),
    ("degrees from farther away", [Degrees]),
    ("places that differ", [Halves]),
    ("as long as the path", [lambda: Chain(22)]),
    ("longer than the path", [lambda: Chain(40)]),
    ("fails on other graphs", [Picky]),
    ("rows unused", [Silent]),
    ("not a number", [Reciprocal]),
]


def hops_of(net, kinds=None, users=USERS, items=ITEMS, parameters=None):
    net.eval()
    parameters = {n: p.detach() for n, p in net.named_parameters()} if parameters is None else parameters
    calls = []

    def encode(p, edge_index):
        calls.append(edge_index.shape[1])
        return functional_call(net, p, (edge_index,))

    found = infer_hops(encode, parameters, {"table.weight": "node"} if kinds is None else kinds, users, items)
    assert len(calls) <= 5  # each as dear as an encoding of the whole, were it not for the edges ...
    assert sum(calls) <= 5 * 2 * (users + items)  # ... of which there are few
    return found


@pytest.mark.parametrize(("layers", "hops"), [pytest.param(la, h, id=name) for name, la, h in REACHES])
def test_the_reach_of_stock_layers_is_found(layers, hops):
    assert hops_of(Net(*layers)) == hops
    assert hops_of(Net(*layers).double()) == hops


@pytest.mark.parametrize("layers", [pytest.param(la, id=name) for name, la in DOUBTS])
def test_where_a_doubt_is_left_the_reach_is_not_known(layers):
    assert hops_of(Net(*layers)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [None, 1, 2, 3, 4])
def test_the_reach_of_the_built_in_models_is_what_they_declare(layers, dtype):
    model = MatrixFactorization(USERS, ITEMS, 4) if layers is None else LightGCN(USERS, ITEMS, 4, layers)
    model = model.to(dtype)
    objective, parameters = model.objective(torch.empty(2, 0, dtype=torch.long), USERS, ITEMS)
    found = infer_hops(objective.encode, parameters, objective.node_parameters, USERS, ITEMS)
    assert found == model.message_passing_hops == (layers or 0)


class TwoTables(Net):
    """Users and items in tables of their own."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.users, self.items = nn.Parameter(torch.randn(USERS, DIM)), nn.Parameter(torch.randn(ITEMS, DIM))
        del self.table

    def forward(self, edge_index):
        x = torch.cat([self.users, self.items])
        for layer in self.layers:
            x = layer(x, edge_index)
        return x


def test_rows_of_users_and_of_items_may_lie_in_different_parameters():
    net = TwoTables(conv(GCNConv), conv(SAGEConv))
    assert hops_of(net, {"users": "user", "items": "item"}) == 2
    for one in ({"users": "user"}, {"items": "item"}, {}):  # what items reach, where only users can be moved, is open
        assert hops_of(net, one) is None


def test_rows_may_be_scalars_and_the_reach_is_that_of_the_farther():
    class Offsets(Net):
        def __init__(self):
            super().__init__(conv(GCNConv))
            self.offset = nn.Parameter(torch.ones(USERS + ITEMS))

        def forward(self, edge_index):
            offset = propagate(edge_index, propagate(edge_index, self.offset.unsqueeze(-1)))
            return torch.cat([super().forward(edge_index), offset], dim=1)

    net = Offsets()
    assert hops_of(net, {"table.weight": "node"}) is None  # degrees are noticed from farther away
    assert hops_of(net, {"table.weight": "node", "offset": "node"}) == 2


def test_users_and_items_may_reach_unequally_far():
    class OneWay(nn.Module):
        def forward(self, x, edge_index):
            return torch.cat([x[:USERS], propagate(edge_index, x)[USERS:]])

    assert hops_of(Net(OneWay)) == 1


@pytest.mark.parametrize(
    ("users", "items", "hops"), [(40, 30, 2), (20, 20, 2), (19, 30, 2), (14, 14, None), (3, 4, None)]
)
def test_few_nodes_make_short_paths_and_then_doubts(users, items, hops):
    net = Net(conv(GCNConv), nn.ReLU, conv(GCNConv), users=users, items=items)
    assert hops_of(net, users=users, items=items) == hops


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_weights_at_which_nothing_happens_do_not_mislead(value):
    net = Net(conv(GCNConv), nn.ReLU, conv(GCNConv))
    nn.init.constant_(net.table.weight, value)
    assert hops_of(net) == 2


def test_weights_that_are_not_finite_leave_a_doubt():
    net = Net(conv(GCNConv))
    nn.init.constant_(net.layers[0].bias, float("nan"))
    assert hops_of(net) is None


def test_asking_changes_neither_the_parameters_nor_the_random_numbers():
    net = Net(conv(GATConv), nn.ReLU, conv(GATConv))
    before, state = {n: p.detach().clone() for n, p in net.named_parameters()}, torch.get_rng_state()
    assert hops_of(net) == 2
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layers", [pytest.param(la, id=name) for name, la, h in REACHES if 0 < h < 4])
def test_no_node_outside_of_the_reach_notices_that_an_edge_is_lost(layers):
    """What the reach is for: on a random graph, the nodes that an unlearning can affect."""
    net = Net(*layers).double().eval()
    hops = hops_of(net)
    generator = torch.Generator().manual_seed(1)
    pairs = torch.unique(torch.randint(USERS, (90, 2), generator=generator).clamp(max=ITEMS - 1), dim=0)
    before, after = (bipartite_edge_index(p[:, 0], p[:, 1], USERS) for p in (pairs, pairs[1:]))
    ends = torch.tensor([int(pairs[0, 0]), USERS + int(pairs[0, 1])])
    changed = (net(before) - net(after)).abs().amax(1) > 1e-12
    reached = affected_nodes(before, ends, USERS + ITEMS, hops)
    assert changed.any()
    assert not reached.all()
    assert not (changed & ~reached).any()
