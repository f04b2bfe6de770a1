"""What a module says about itself: one function for training and unlearning, and refusals where there is a doubt."""

import lightning
import pytest
import torch
import torch_geometric
from torch import nn

from lightning_ifru import IFRU, IFRUMixin, ObjectiveError, UnlearningRequest
from lightning_ifru.examples import Examples
from lightning_ifru.losses import Loss, resolve_loss
from lightning_ifru.models import LightGCN
from lightning_ifru.unlearning import Unlearning

USERS, ITEMS = 40, 30


class Own(IFRUMixin, lightning.LightningModule):
    """A table, and whatever a test puts on top of it."""

    loss = "bce"

    def __init__(self, optimizer=None, users=USERS, items=ITEMS):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.table = nn.Embedding(users + items, 4)
            with torch.no_grad():
                self.table.weight.mul_(0.5)
            self.build()
        self.optimizer = optimizer or (lambda m: torch.optim.Adam(m.parameters(), lr=0.05))

    def build(self):
        pass

    def encode(self, edge_index):
        return self.table.weight

    def configure_optimizers(self):
        return self.optimizer(self)


class Scaled(Own):
    """A decoder with parameters of its own: a weight for each dimension and an offset."""

    def build(self):
        self.scale = nn.Parameter(torch.rand(4))
        self.offset = nn.Parameter(torch.tensor(0.1))

    def decode(self, src, dst):
        return (src * dst * self.scale).sum(-1) + self.offset


class Cosine(Own):
    """A decoder without parameters."""

    def decode(self, src, dst):
        return 4 * torch.cosine_similarity(src, dst, dim=-1)


class Shrunk(Own):
    """A regulariser of its own."""

    def regularization(self):
        return 0.01 * self.table.weight.abs().pow(1.5).sum()


class PyG(IFRUMixin, lightning.LightningModule):
    """The module of the documentation: any PyG stack on a plain edge index."""

    loss = "bpr"

    def __init__(self):
        super().__init__()
        self.net = torch_geometric.nn.LightGCN(USERS + ITEMS, 4, 2)

    def encode(self, edge_index):
        return self.net.get_embedding(edge_index)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05, weight_decay=1e-4)


def everything(data, loss):
    """The whole training set as one batch, with the same negatives whenever it is asked for."""
    some = data.train
    batch = {"user": some.user, "item": some.item}
    if loss != "bpr":
        return batch | {"label": some.label}
    generator = torch.Generator().manual_seed(0)
    return batch | {"negative": torch.randint(ITEMS, (len(some), 3), generator=generator)}


def examples(batch):
    return Examples(
        batch["user"], batch["item"], 1 / len(batch["user"]), batch.get("label"), negative=batch.get("negative")
    )


def attached(model, data, trainer):
    """Let a module see its data, as it does inside of a trainer."""
    data.trainer = trainer
    trainer.datamodule = data
    model.trainer = trainer
    model.log = lambda *_, **__: None
    return model


def l2_by_hand(model, decay):
    return sum(0.5 * decay * float((p.detach().double() ** 2).sum()) for p in model.parameters() if p.requires_grad)


ADAM = {"lr": 0.05, "weight_decay": 0.02}


def adam(model):
    return torch.optim.Adam(model.parameters(), **ADAM)


@pytest.mark.parametrize("loss", ["bce", "mse", "bpr"])
@pytest.mark.parametrize(
    ("build", "decay"),
    [
        pytest.param(lambda: Own(adam), 0.02, id="dot product"),
        pytest.param(lambda: Scaled(adam), 0.02, id="dense decoder"),
        pytest.param(lambda: Cosine(adam), 0.02, id="cosine"),
        pytest.param(lambda: Shrunk(adam), 0.02, id="own regularization beside decay"),
        pytest.param(Shrunk, 0.0, id="own regularization"),
        pytest.param(lambda: LightGCN(USERS, ITEMS, 4, 2, weight_decay=0.02), 0.02, id="lightgcn"),
        pytest.param(PyG, 1e-4, id="pyg"),
    ],
)
def test_objective_on_the_training_set_is_the_training_loss_plus_l2(make_data, make_trainer, build, decay, loss):
    data, model = make_data(loss), build().double()
    model.loss = loss
    attached(model, data, make_trainer())
    batch = everything(data, loss)
    trained = model.training_step(batch, 0)
    gradient = dict(
        zip(
            (name for name, _ in model.named_parameters()),
            torch.autograd.grad(trained, list(model.parameters())),
            strict=True,
        )
    )
    penalty = l2_by_hand(model, decay)
    objective, parameters = model.objective(data.graph(), USERS, ITEMS, chunk_size=50)
    value, found = objective.value_and_gradient(parameters, data.graph(), [examples(batch)])
    assert float(trained) > 0.05
    assert value == pytest.approx(float(trained) + penalty, abs=1e-10)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], gradient[name] + decay * p.detach(), rtol=0, atol=1e-10)
        assert found[name].abs().max() > 1e-6


class PenalizedNodes(Own):
    def node_regularization(self):
        return 0.3 * self.table.weight.square().sum(1)


class NoPenalty(Own):
    def node_regularization(self):
        return None


class OnePenalty(Own):
    def node_regularization(self):
        return self.table.weight.square().sum()


@pytest.mark.parametrize(("cls", "got"), [(NoPenalty, "NoneType"), (OnePenalty, r"shape \(\)")])
def test_a_penalty_of_nodes_of_another_shape_is_refused(make_data, make_trainer, cls, got):
    data = make_data()
    model = attached(cls(), data, make_trainer())
    message = rf"node_regularization of {cls.__name__} returned {got}; wanted one .* shape \({USERS + ITEMS},\)"
    with pytest.raises(ObjectiveError, match=message):
        model.training_step(everything(data, "bce"), 0)
    objective, parameters = model.objective(data.graph(), USERS, ITEMS)
    with pytest.raises(ObjectiveError, match=message):
        objective.node_regularization(parameters)


class Tempered(Own):
    def build(self):
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def loss(self, scores, targets):
        return nn.functional.binary_cross_entropy_with_logits(scores * self.temperature, targets, reduction="none")


class TemperedModule(Own):
    def build(self):
        self.loss = TemperedLoss()


class TemperedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, scores, targets):
        return (self.temperature * scores - targets).square()


@pytest.mark.parametrize(("cls", "name"), [(Tempered, "temperature"), (TemperedModule, "loss.temperature")])
def test_a_loss_with_weights_of_its_own_is_refused_before_anything_is_unlearned(trained, snapshot, cls, name):
    trainer, model, data = trained(model=cls(), max_epochs=1)
    data.forget(UnlearningRequest(users=[data.user_ids[0]]))
    state = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(ObjectiveError, match=rf"the loss .*{cls.__name__}.*\({name}\).* put them into decode"):
        trainer.unlearn(data)
    state.check()


def test_a_loss_that_is_made_for_four_negatives_is_unlearned_with_four(trained, make_data):
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    model = Own()
    model.loss = Loss("weighted", lambda p, n: nn.functional.softplus(n - p.unsqueeze(1)) @ weights, "listwise")
    trainer, _, data = trained("bpr", data=make_data("bpr", num_negatives=4), model=model, max_epochs=3)
    report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[0]]))
    assert report.direct_norm > 0


@pytest.mark.parametrize("rows", [USERS + 1, USERS + ITEMS + 2])
def test_an_embedding_with_spare_rows_leaves_a_doubt_and_is_refused(make_data, rows):
    data, model = make_data(), Own()
    model.spare = nn.Embedding(rows, 4)
    with pytest.raises(ObjectiveError, match=rf"the embedding 'spare.weight' of Own has {rows} rows.*spare rows"):
        model.objective(data.graph(), USERS, ITEMS)
    model.node_parameters = {"table.weight": "node"}
    objective, _ = model.objective(data.graph(), USERS, ITEMS)
    assert objective.node_parameters == {"table.weight": "node"}


def squared_error(scores, targets):
    return (scores - targets).square()


def test_a_checkpoint_of_another_loss_is_refused(trained, make_trainer, make_model, make_data, tmp_path):
    model = make_model()
    model.loss = squared_error
    trainer, _, _ = trained(model=model, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    with pytest.raises(ObjectiveError, match=r"with the loss 'squared_error' and LightGCN has 'bce'; give .* loss="):
        make_trainer().validate(make_model(), datamodule=make_data(), ckpt_path=tmp_path / "mine.ckpt")
    again = make_model()
    again.loss = squared_error
    make_trainer().validate(again, datamodule=make_data(), ckpt_path=tmp_path / "mine.ckpt", verbose=False)


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_a_penalty_of_nodes_counts_those_of_a_batch_once_as_pyg_does(make_data, make_trainer, loss):
    data = make_data(loss)
    whole = everything(data, loss)
    batch = {name: column[:9] for name, column in whole.items()}
    plain, model = (attached(cls().double(), data, make_trainer()) for cls in (Own, PenalizedNodes))
    plain.loss = model.loss = loss
    nodes = {int(u) for u in batch["user"]} | {USERS + int(i) for i in batch["item"]}
    nodes |= {USERS + int(j) for j in batch.get("negative", torch.empty(0)).flatten()}
    assert 9 < len(nodes) < 27
    model.load_state_dict(plain.state_dict())
    penalty = 0.3 * sum(float(model.table.weight[v].square().sum()) for v in nodes) / 9
    assert penalty > 0.01
    found = float(model.training_step(batch, 0) - plain.training_step(batch, 0))
    assert found == pytest.approx(penalty, rel=1e-7)  # the weight 1/9 of a batch is a float32
    # In validation the loss is the mean alone, as without.
    assert float(model._batch_loss(batch)) == float(plain._batch_loss(batch))


def test_the_objective_holds_the_penalty_of_nodes_as_often_as_batches_do(make_data, make_trainer):
    data = make_data("bpr", batch_size=40)
    model = attached(PenalizedNodes().double(), data, make_trainer())
    model.loss = "bpr"
    data.forget(UnlearningRequest(users=[data.user_ids[0]]))
    work = Unlearning.of(model, data, IFRU())
    sides = IFRU().sides(work.objective, work.problem)
    at = work.parameters
    mean = float(work.objective.penalty(at, [sides.retained]) - work.objective.penalty(at, []))
    # Over an epoch's batches, the last of which is smaller; drawn often enough for three digits.
    found = []
    for seed in range(150):
        torch.manual_seed(seed)
        for batch in data.train_dataloader():
            if len(batch["user"]) == 40:
                weights = model.batch_weights(batch, USERS, ITEMS).double()
                found.append(float(model.node_regularization() @ weights))
    assert len(found) > 500
    assert mean == pytest.approx(sum(found) / len(found), rel=5e-3)
    assert mean > 0.01


def test_an_own_regularization_is_part_of_training_and_of_the_objective(make_data, make_trainer):
    data = make_data()
    batch = everything(data, "bce")
    losses = {}
    for cls in (Own, Shrunk):
        model = attached(cls().double(), data, make_trainer())
        losses[cls] = float(model.training_step(batch, 0))
    omega = float(0.01 * model.table.weight.abs().pow(1.5).sum())
    assert omega > 0.1
    assert losses[Shrunk] == pytest.approx(losses[Own] + omega, abs=1e-10)
    objective, parameters = model.objective(data.graph(), USERS, ITEMS)
    assert float(objective.penalty(parameters, [])) == pytest.approx(omega, abs=1e-10)
    doubled = {name: 2 * p for name, p in parameters.items()}
    assert float(objective.penalty(doubled, [])) == pytest.approx(2**1.5 * omega, abs=1e-10)


# --- the optimiser's weight decay


def groups(model):
    return [{"params": [model.scale], "weight_decay": 0.5}, {"params": [model.table.weight, model.offset]}]


def scheduler(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


def with_schedulers(model):
    optimizer = adam(model)
    return [optimizer], [scheduler(optimizer)]


def with_scheduler_dicts(model):
    optimizer = adam(model)
    return [optimizer], [{"scheduler": scheduler(optimizer), "interval": "epoch"}]


def as_dict(model):
    optimizer = adam(model)
    return {"optimizer": optimizer, "lr_scheduler": scheduler(optimizer)}


def two_dicts(model):
    return tuple(
        {"optimizer": torch.optim.SGD(group["params"], lr=0.1, weight_decay=group.get("weight_decay", 0.1))}
        for group in groups(model)
    )


DECAYS = [
    pytest.param(adam, {"table.weight": 0.02, "scale": 0.02, "offset": 0.02}, id="Adam"),
    pytest.param(
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=0.3),
        {"table.weight": 0.3, "scale": 0.3, "offset": 0.3},
        id="SGD",
    ),
    pytest.param(lambda m: torch.optim.Adam(m.parameters()), {}, id="no decay"),
    pytest.param(
        lambda m: torch.optim.Adam(groups(m), weight_decay=0.1),
        {"table.weight": 0.1, "scale": 0.5, "offset": 0.1},
        id="groups",
    ),
    pytest.param(lambda m: torch.optim.Adam(groups(m)), {"scale": 0.5}, id="one group decays"),
    pytest.param(with_schedulers, {"table.weight": 0.02, "scale": 0.02, "offset": 0.02}, id="two lists"),
    pytest.param(with_scheduler_dicts, {"table.weight": 0.02, "scale": 0.02, "offset": 0.02}, id="scheduler dicts"),
    pytest.param(as_dict, {"table.weight": 0.02, "scale": 0.02, "offset": 0.02}, id="dict"),
    pytest.param(two_dicts, {"table.weight": 0.1, "scale": 0.5, "offset": 0.1}, id="tuple of dicts"),
    pytest.param(lambda m: None, {}, id="None"),
    pytest.param(lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.0), {}, id="AdamW without decay"),
]


@pytest.mark.parametrize(("optimizer", "decays"), DECAYS)
def test_weight_decay_is_read_from_every_form_of_optimizers(make_data, optimizer, decays):
    model = Scaled(optimizer).double()
    objective, parameters = model.objective(make_data().graph(), USERS, ITEMS)
    named = dict(model.named_parameters())
    wanted = sum(0.5 * decay * float((named[name].detach() ** 2).sum()) for name, decay in decays.items())
    assert float(objective.penalty(parameters, [])) == pytest.approx(wanted, abs=1e-10)
    assert float(model.regularization()) == pytest.approx(wanted, abs=1e-10)
    assert decays == {} or wanted > 0.1


def test_weight_decay_of_a_frozen_parameter_is_no_part_of_the_objective(make_data):
    model = Scaled(adam).double()
    model.scale.requires_grad_(False)
    objective, parameters = model.objective(make_data().graph(), USERS, ITEMS)
    assert "scale" not in parameters
    wanted = l2_by_hand(model, 0.02)
    assert 0.1 < wanted < l2_by_hand(Scaled(adam).double(), 0.02)
    assert float(objective.penalty(parameters, [])) == pytest.approx(wanted, abs=1e-10)


DECOUPLED = [
    pytest.param(lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.01), "AdamW", id="AdamW"),
    pytest.param(lambda m: torch.optim.AdamW(m.parameters()), "AdamW", id="AdamW by default"),
    pytest.param(lambda m: {"optimizer": torch.optim.AdamW(m.parameters())}, "AdamW", id="in a dict"),
    pytest.param(
        lambda m: torch.optim.NAdam(m.parameters(), weight_decay=0.1, decoupled_weight_decay=True), "NAdam", id="NAdam"
    ),
]


class Logging(torch.optim.Adam):
    """A subclass that steps as Adam does."""


class Elsewhere(torch.optim.SGD):
    """A subclass whose step is its own, so that nobody knows what it does with the decay."""

    def step(self, closure=None):
        return super().step(closure)


class Foreign(torch.optim.Optimizer):
    def __init__(self, params, **options):
        super().__init__(params, options)


# Whether the penalty weight_decay / 2 |w|^2 has the optimiser's fixed point; those without a decay are left out.
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}, True),
    "SGD with momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, True),
    "Adam": (torch.optim.Adam, {}, True),
    "Adamax": (torch.optim.Adamax, {}, True),
    "NAdam": (torch.optim.NAdam, {}, True),
    "RAdam": (torch.optim.RAdam, {}, True),
    "Adagrad": (torch.optim.Adagrad, {}, True),
    "Adadelta": (torch.optim.Adadelta, {}, True),
    "RMSprop": (torch.optim.RMSprop, {}, True),
    "ASGD": (torch.optim.ASGD, {"lambd": 0.0}, True),
    "subclass of Adam": (Logging, {}, True),
    "AdamW": (torch.optim.AdamW, {}, False),
    "NAdam, decoupled": (torch.optim.NAdam, {"decoupled_weight_decay": True}, False),
    "RAdam, decoupled": (torch.optim.RAdam, {"decoupled_weight_decay": True}, False),
    "subclass with a step of its own": (Elsewhere, {"lr": 0.1}, False),
    "foreign": (Foreign, {}, False),
} | {name: (getattr(torch.optim, name), {}, False) for name in ("Adafactor", "Muon") if hasattr(torch.optim, name)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_counts_as_a_penalty_only_where_the_optimizer_is_known_to_make_it_one(make_data, name):
    build, options, adds = OPTIMIZERS[name]
    graph = make_data().graph()
    model = Own(lambda m: build(m.parameters(), weight_decay=0.25, **options)).double()
    if adds:
        objective, parameters = model.objective(graph, USERS, ITEMS)
        assert float(objective.penalty(parameters, [])) == pytest.approx(l2_by_hand(model, 0.25), rel=1e-12)
    else:
        with pytest.raises(
            ObjectiveError, match=rf"^{build.__name__} with weight_decay=0\.25 .*Adam\(.*regularization"
        ):
            model.objective(graph, USERS, ITEMS)
    without = Own(lambda m: build(m.parameters(), weight_decay=0.0, **options))
    objective, parameters = without.objective(graph, USERS, ITEMS)
    assert float(objective.penalty(parameters, [])) == 0.0


@pytest.mark.parametrize("name", [name for name, (_, _, adds) in OPTIMIZERS.items() if adds])
def test_the_table_of_optimizers_is_right_about_a_first_step(name):
    # From zero gradient, a decay inside of the gradient steps as the gradient of the penalty itself does.
    build, options, _ = OPTIMIZERS[name]
    steps = []
    for decay, penalty in ((0.25, 0.0), (0.0, 0.25)):
        w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
        optimizer = build([w], weight_decay=decay, **options)
        for _ in range(3):
            optimizer.zero_grad()
            ((w - 0.5).pow(4).sum() + penalty / 2 * w.square().sum()).backward()
            optimizer.step()
        steps.append(w.detach())
    assert not torch.equal(steps[0], torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-12, atol=1e-12)


def test_the_own_decay_of_asgd_counts(make_data):
    model = Own(lambda m: torch.optim.ASGD(m.parameters(), lambd=0.1, weight_decay=0.25)).double()
    objective, parameters = model.objective(make_data().graph(), USERS, ITEMS)
    assert float(objective.penalty(parameters, [])) == pytest.approx(l2_by_hand(model, 0.35), rel=1e-12)


@pytest.mark.parametrize(("optimizer", "name"), DECOUPLED)
def test_decoupled_weight_decay_is_refused_by_name_with_the_remedy(make_data, optimizer, name):
    with pytest.raises(ObjectiveError, match=rf"^{name} with weight_decay=0\..* outside of the objective; .*Adam\("):
        Own(optimizer).objective(make_data().graph(), USERS, ITEMS)


def test_decoupled_weight_decay_beside_an_own_regularization_is_refused(make_data):
    # The own term does not switch the optimiser's off.
    model = Shrunk(lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.01))
    with pytest.raises(ObjectiveError, match=r"AdamW with weight_decay=0\.01"):
        model.objective(make_data().graph(), USERS, ITEMS)


# --- encoder and decoder


class Constant(Own):
    """A decoder with a buffer, which is nothing to solve for."""

    def build(self):
        self.register_buffer("factor", torch.tensor(2.0))

    def decode(self, src, dst):
        return self.factor * (src * dst).sum(-1)


class Sharing(Own):
    """A decoder that uses an encoder's parameter once more."""

    def decode(self, src, dst):
        return (src * dst).sum(-1) + self.table.weight.mean()


class Network(Own):
    """A decoder that is a network."""

    def build(self):
        self.head = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1, bias=False))

    def decode(self, src, dst):
        return self.head(torch.cat([src, dst], dim=-1)).squeeze(-1)


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (Own, set()),
        (Cosine, set()),
        (Constant, set()),
        (Scaled, {"scale", "offset"}),
        (Sharing, {"table.weight"}),
        (Network, {"head.0.weight", "head.0.bias", "head.2.weight"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_parameters_of_the_decoder_are_found(make_data, cls, names):
    objective, parameters = cls().objective(make_data().graph(), USERS, ITEMS)
    assert set(objective.decoder_parameters) == names
    assert "table.weight" in parameters


@pytest.mark.parametrize("cls", [Scaled, Sharing, Network, Constant])
def test_a_decoder_is_a_function_of_the_parameters_it_is_given(make_data, cls):
    data, model = make_data(), cls().double()
    objective, parameters = model.objective(data.graph(), USERS, ITEMS)
    generator = torch.Generator().manual_seed(0)
    other = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in parameters.items()}
    h = objective.encode(other, data.graph())
    src, dst = h[:7], h[50:57]
    got = objective.decode(objective.decoder_part(other), src, dst)
    twin = cls().double()
    twin.load_state_dict(other, strict=False)
    torch.testing.assert_close(h, twin.encode(data.graph()), rtol=0, atol=1e-12)
    torch.testing.assert_close(got, twin.decode(src, dst), rtol=0, atol=1e-12)
    assert not torch.allclose(model.encode(data.graph()), h)


class WrongRows(Own):
    def encode(self, edge_index):
        return self.table.weight[:-1]


class Flat(Own):
    def encode(self, edge_index):
        return self.table.weight.flatten()


class WrongScores(Own):
    def decode(self, src, dst):
        return src * dst


class Unfinished(IFRUMixin, lightning.LightningModule):
    loss = "bce"

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(USERS + ITEMS, 4)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Frozen(Own):
    def build(self):
        self.table.weight.requires_grad_(False)


class Dropout(Own):
    def encode(self, edge_index):
        return torch.nn.functional.dropout(self.table.weight, 0.5, training=True)


def convolving(conv, **options):
    class Convolving(Own):
        def build(self):
            self.node_parameters = {"table.weight": "node"}
            self.net = nn.ModuleDict({"first": conv(4, 4, **options)})

        def encode(self, edge_index):
            return self.net["first"](self.table.weight, edge_index)

    return Convolving


@pytest.mark.parametrize("conv", [torch_geometric.nn.GCNConv, torch_geometric.nn.SGConv], ids=lambda c: c.__name__)
@pytest.mark.parametrize("late", [False, True], ids=["cached", "switched off after training"])
def test_a_layer_that_keeps_the_old_graph_is_refused(conv, late, trained, snapshot):
    trainer, model, data = trained(model=convolving(conv, cached=True)(), max_epochs=1)
    model.net["first"].cached = not late
    state = snapshot(model=model, data=data)
    with pytest.raises(
        ObjectiveError, match=rf"'net.first' of Convolving is a {conv.__name__}\(cached=True\).*cached=F"
    ):
        trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]))
    data.discard()
    state.check()


def test_a_layer_that_keeps_no_graph_has_a_spillover(trained):
    trainer, _, data = trained(model=convolving(torch_geometric.nn.GCNConv, cached=False)(), max_epochs=2)
    report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]))
    assert report.spillover_norm > 0.01 * report.direct_norm > 0


REFUSED = [
    (WrongRows, r"encode of .* returned shape \(69, 4\); wanted one tensor \[70, d\]"),
    (Flat, r"encode of .* returned shape \(280,\); wanted one tensor \[70, d\]"),
    (WrongScores, r"decode of .* returned shape \(\d+, 4\) for \d+ pairs; wanted one score"),
    (Unfinished, r"Unfinished does not implement encode; wanted encode\(edge_index\)"),
    (Frozen, "Frozen is frozen: none of its parameters requires a gradient; unfreeze"),
    (Dropout, r"two different answers to the same input.*model.eval\(\), or switch off dropout"),
]


@pytest.mark.parametrize(("cls", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_module_that_cannot_be_unlearned_is_refused_with_what_was_wanted(make_data, make_trainer, cls, message):
    data, model = make_data(), cls()
    with pytest.raises(ObjectiveError, match=message):
        make_trainer().unlearn(data, model=model, request=UnlearningRequest(users=[data.user_ids[3]]))


def test_without_a_datamodule_of_the_package_training_is_refused(make_trainer):
    loader = torch.utils.data.DataLoader([{"user": 0, "item": 0, "label": 1.0}])
    with pytest.raises(ObjectiveError, match=r"got NoneType as its trainer's datamodule; wanted an InteractionData"):
        make_trainer().fit(Own(), loader)


@pytest.mark.parametrize("threshold", [None, 3.0])
def test_ratings_without_a_threshold_are_refused_for_bce_in_training(make_data, make_trainer, threshold):
    data = make_data(threshold=threshold)
    if threshold is None:
        with pytest.raises(
            ObjectiveError, match=r"'bce' needs labels .* got labels from 1 to 5; .* threshold= .*'mse'"
        ):
            make_trainer(max_epochs=1).fit(Own(), datamodule=data)
    else:
        make_trainer(max_epochs=1).fit(Own(), datamodule=data)


def test_ratings_without_a_threshold_serve_a_squared_loss(make_data, make_trainer):
    model = Own()
    model.loss = "mse"
    make_trainer(max_epochs=1).fit(model, datamodule=make_data(threshold=None))


@pytest.mark.parametrize(("users", "items"), [(USERS, 5), (10, ITEMS), (USERS + 1, ITEMS)])
@pytest.mark.parametrize("run", ["fit", "predict"])
def test_a_model_of_another_size_than_the_data_is_refused_with_both_sizes(make_data, make_trainer, users, items, run):
    message = rf"\({users + items}, 4\); wanted one tensor .* 40 users and then 30 items: .* num_users=40, num_items=30"
    with pytest.raises(ObjectiveError, match=message):
        getattr(make_trainer(), run)(Own(users=users, items=items), datamodule=make_data())


# --- which parameters hold rows of nodes


def tables(**sizes):
    class Tables(Own):
        def build(self):
            del self.table
            for name, size in sizes.items():
                setattr(self, name, nn.Embedding(size, 4))
            self.mix = nn.Linear(4, 4)

        def encode(self, edge_index):
            rows = torch.cat([getattr(self, name).weight for name in sizes])
            return self.mix(rows[: USERS + ITEMS])

    return Tables


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        pytest.param(Own, {"table.weight": "node"}, id="one table of nodes"),
        pytest.param(PyG, {"net.embedding.weight": "node"}, id="inside of a layer of PyG"),
        pytest.param(
            tables(users=USERS, films=ITEMS), {"users.weight": "user", "films.weight": "item"}, id="two tables"
        ),
        pytest.param(
            tables(users=USERS, films=ITEMS, hours=24),
            {"users.weight": "user", "films.weight": "item"},
            id="another table beside",
        ),
        pytest.param(Network, {"table.weight": "node"}, id="dense parameters beside"),
    ],
)
def test_node_parameters_are_inferred_from_the_sizes_of_tables(make_data, cls, kinds):
    objective, parameters = cls().objective(make_data().graph(), USERS, ITEMS)
    assert objective.node_parameters == kinds
    assert set(kinds) <= set(parameters)


def test_node_parameters_that_are_declared_are_taken(make_data):
    model = tables(users=USERS, films=ITEMS)()
    model.node_parameters = {"users.weight": "user"}
    objective, _ = model.objective(make_data().graph(), USERS, ITEMS)
    assert objective.node_parameters == {"users.weight": "user"}


class Square(Own):
    """As many users as items, in two tables: which is which cannot be seen from outside."""

    def build(self):
        del self.table
        self.people, self.films = nn.Embedding(6, 4), nn.Embedding(6, 4)

    def encode(self, edge_index):
        return torch.cat([self.people.weight, self.films.weight])


class Coinciding(Own):
    """A dense layer with as many outputs as there are users."""

    def build(self):
        self.layer = nn.Linear(4, USERS, bias=False)


@pytest.mark.parametrize(
    ("cls", "sizes", "message"),
    [
        (Square, (6, 6), r"'people.weight' of Square, shape \(6, 4\), may hold a row for every user or item; say"),
        (Coinciding, (USERS, ITEMS), r"'layer.weight' of Coinciding, shape \(40, 4\), may hold a row for every user;"),
    ],
    ids=["equal sizes", "coinciding size"],
)
def test_ambiguous_node_parameters_are_refused_and_the_remedy_in_the_message_works(cls, sizes, message):
    model = cls()
    graph = torch.tensor([[0, sizes[0]], [sizes[0], 0]])
    with pytest.raises(ObjectiveError, match=message) as caught:
        model.objective(graph, *sizes)
    assert "node_parameters = {" in str(caught.value)
    assert "or {} for none" in str(caught.value)
    model.node_parameters = {}
    assert model.objective(graph, *sizes)[0].node_parameters == {}
    model.node_parameters = {next(n for n, _ in model.named_parameters() if n in str(caught.value)): "user"}
    assert list(model.objective(graph, *sizes)[0].node_parameters.values()) == ["user"]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (
            {"table.weight": "user"},
            r"names 'table.weight' as rows of every user; got shape \(70, 4\), wanted .* 'user': 40",
        ),
        ({"table": "node"}, "names 'table' as rows of every node; got shape None, wanted .*'node': 70"),
        ({"frozen": "node"}, "names 'frozen' as rows of every node; got shape None, wanted .* trainable"),
        ({"offset": "node"}, "names 'offset' as rows of every node; got shape \\(\\), wanted"),
    ],
    ids=["wrong kind", "no such parameter", "not trainable", "a scalar"],
)
def test_wrongly_declared_node_parameters_are_refused(make_data, declared, message):
    model = Scaled()
    model.frozen = nn.Parameter(torch.zeros(70, 1), requires_grad=False)
    model.node_parameters = declared
    with pytest.raises(ObjectiveError, match=message):
        model.objective(make_data().graph(), USERS, ITEMS)


def test_an_unknown_kind_of_rows_is_refused(make_data):
    model = Own()
    model.node_parameters = {"table.weight": "nodes"}
    with pytest.raises(ObjectiveError, match=r"rows of every nodes; .*'node': 70, 'user': 40, 'item': 30"):
        model.objective(make_data().graph(), USERS, ITEMS)


# --- fresh rows


def test_rows_of_erased_users_need_a_way_to_be_drawn(make_data, make_trainer, snapshot):
    class Bare(Own):
        def build(self):
            del self.table
            self.rows = nn.Parameter(torch.randn(USERS + ITEMS, 4))

        def encode(self, edge_index):
            return self.rows

    data, model, trainer = make_data(), Bare(), make_trainer()
    model.node_parameters = {"rows": "node"}
    request = UnlearningRequest(users=[data.user_ids[3]])
    state = snapshot(model=model, data=data)
    with pytest.raises(ObjectiveError, match=r"'rows' of Bare has reset_parameters.*override initial_rows"):
        trainer.unlearn(data, model=model, request=request)
    state.check()
    model.initial_rows = lambda name, rows, seed=0: torch.full((len(rows), 4), 9.0)
    trainer.unlearn(data, model=model, request=request)
    assert (model.rows[3] == 9.0).all()
    assert int((model.rows == 9.0).sum()) == 4


def test_fresh_rows_are_drawn_by_the_outermost_owner_that_knows_how():
    class Nested(Own):
        def reset_parameters(self):
            nn.init.constant_(self.table.weight, 3.0)

    rows = torch.tensor([5, 6])
    assert (Nested().initial_rows("table.weight", rows) == 3.0).all()
    plain = Own().initial_rows("table.weight", rows)
    assert plain.std() > 0.1  # nn.Embedding's own: standard normal
    pyg = PyG().initial_rows("net.embedding.weight", rows)
    assert float(pyg.abs().max()) <= (6 / 74) ** 0.5  # PyG's LightGCN's: Glorot


# --- the module of the documentation


def test_ten_lines_with_a_layer_of_pyg_train_and_unlearn(make_data, trained):
    torch.manual_seed(0)
    trainer, model, data = trained("bpr", model=PyG())
    before = model.net.embedding.weight.detach().clone()
    report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]], items=[data.item_ids[8]]))
    after = model.net.embedding.weight.detach()
    assert report.steps >= 1
    assert report.residual_after < 0.9 * report.residual_before
    assert report.spillover_norm > 0.01 * report.direct_norm > 0
    assert report.affected_nodes == USERS + ITEMS  # two hops, found by experiment, reach everybody here
    assert bool((before[3] != after[3]).all())
    assert after.isfinite().all()
    assert not (data.graph() == 3).any()


def test_any_stack_of_pyg_and_the_built_in_model_arrive_at_the_same(make_data, make_model, trained):
    arrived = []
    for model in (make_model("bpr", 2, weight_decay=1e-4), PyG()):
        net = make_model("bpr", 2, weight_decay=1e-4).net
        model.net.load_state_dict(net.state_dict())
        trainer, _, data = trained("bpr", model=model, max_epochs=8)
        report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]))
        arrived.append((model.net.embedding.weight.detach(), report))
    assert (arrived[0][1].steps, arrived[1][1].steps) >= (1, 1)
    torch.testing.assert_close(arrived[0][0], arrived[1][0], rtol=0, atol=5e-3)


# --- losses


def squared_hinge(scores, target):
    return (1 - (2 * target - 1) * scores).clamp(min=0).square()


def test_an_own_loss_trains_and_unlearns(trained):
    class Margin(Own):
        loss = staticmethod(squared_hinge)

    trainer, _, data = trained(model=Margin(adam))
    report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]))
    assert report.steps >= 1
    assert resolve_loss(Margin.loss).name == "squared_hinge"


class PlainFunction(Own):
    loss = squared_hinge


class Lambda(Own):
    loss = lambda scores, target: (1 - (2 * target - 1) * scores).clamp(min=0).square()  # noqa: E731


class Static(Own):
    loss = staticmethod(squared_hinge)


class Method(Own):
    margin = 1.0

    def loss(self, scores, target):
        return (self.margin - (2 * target - 1) * scores).clamp(min=0).square()


class OnInstance(Own):
    def build(self):
        self.loss = squared_hinge


class OwnMethodOnInstance(Method):
    def build(self):
        self.loss = self.other

    def other(self, scores, target):
        return super().loss(scores, target)


class SquaredHinge(nn.Module):
    def forward(self, scores, target):
        return squared_hinge(scores, target)


class Submodule(Own):
    def build(self):
        self.loss = SquaredHinge()


@pytest.mark.parametrize(
    "cls", [PlainFunction, Lambda, Static, Method, OnInstance, OwnMethodOnInstance, Submodule], ids=lambda c: c.__name__
)
def test_an_own_loss_is_read_wherever_it_is_written(make_data, make_trainer, cls):
    data = make_data()
    model = attached(cls().double(), data, make_trainer())
    batch = everything(data, "bce")
    h = model.table.weight
    scores = (h[batch["user"]] * h[batch["item"] + USERS]).sum(-1)
    wanted = float(squared_hinge(scores, batch["label"].double()).mean())
    assert 0.1 < wanted < 10
    assert float(model.training_step(batch, 0)) == pytest.approx(wanted, abs=1e-12)
    objective, parameters = model.objective(data.graph(), USERS, ITEMS)
    assert objective.value_and_gradient(parameters, data.graph(), [examples(batch)])[0] == pytest.approx(wanted)


class Averaged(Own):
    def build(self):
        self.loss = nn.MSELoss()


def test_a_loss_that_is_a_mean_already_is_refused_in_training(make_data, make_trainer):
    with pytest.raises(
        ObjectiveError, match=r"'MSELoss' returned \(\); wanted one loss per example, shape \(\d+,\): .*none"
    ):
        make_trainer().fit(Averaged(), datamodule=make_data())


def test_the_wrong_order_of_bases_is_refused_when_the_class_is_made():
    with pytest.raises(ObjectiveError, match=r"^Late names LightningModule before IFRUMixin.*Late\(IFRUMixin, Light"):

        class Late(lightning.LightningModule, IFRUMixin):
            pass


class MatrixPenalty(Own):
    def regularization(self):
        return self.table.weight.square()


def test_a_regularization_that_is_no_scalar_is_refused(make_data, make_trainer):
    data = make_data()
    model = attached(MatrixPenalty(), data, make_trainer())
    with pytest.raises(ObjectiveError, match=r"regularization of MatrixPenalty returned shape \(70, 4\); wanted a sca"):
        model.training_step(everything(data, "bce"), 0)
