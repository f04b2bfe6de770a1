"""Ways to train a model: those that unlearning works after give what it gives without them, others are refused."""

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import BitsandbytesPrecision, TransformerEnginePrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch_geometric.nn import GCNConv

from lightning_ifru import IFRU, IFRUCallback, IFRUMixin, ObjectiveError, UnlearningRequest
from lightning_ifru.models import LightGCN

REQUEST = UnlearningRequest(users=["person-004"], interactions=[])
SETTINGS = {"num_users": 40, "num_items": 30, "embedding_dim": 4, "num_layers": 1, "lr": 0.05, "weight_decay": 1e-3}


def built(cls, *args, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return cls(*args, **settings)


def weights(model):
    """Copies of all parameters and buffers, by the names that they have uncompiled."""
    return {name.replace("_orig_mod.", ""): t.detach().clone() for name, t in model.state_dict().items()}


def assert_close(left, right, atol):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=atol)


# --- precision


class Watched(LightGCN):
    """Keeps under which circumstances it is asked for scores, and of which type they are."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = set()

    def decode(self, src, dst):
        scores = (src.unsqueeze(-2) @ dst.unsqueeze(-1)).flatten()  # a product that autocast rounds
        self.seen.add((torch.is_autocast_enabled("cpu"), scores.dtype, torch.get_default_dtype()))
        return scores


MIXED = {(True, torch.bfloat16, torch.float32)}
SINGLE = {(False, torch.float32, torch.float32)}
DOUBLE = {(False, torch.float64, torch.float64)}


@pytest.mark.filterwarnings("ignore:You passed .*precision='16-mixed'")
@pytest.mark.parametrize(
    ("precision", "in_training", "in_unlearning"),
    [("16-mixed", MIXED, SINGLE), ("bf16-mixed", MIXED, SINGLE), ("64-true", DOUBLE, DOUBLE)],
)
def test_unlearning_is_in_the_type_of_the_weights_whatever_training_computes_in(
    trained, make_trainer, make_data, precision, in_training, in_unlearning
):
    first, model, data = trained(model=built(Watched, loss="bce", **SETTINGS), precision=precision)
    assert model.seen == in_training
    path = first.checkpoint_callback.best_model_path
    model.seen.clear()
    report = first.unlearn(data, request=REQUEST)
    assert report.steps > 0
    assert report.residual_after < 0.9 * report.residual_before
    assert model.seen == in_unlearning
    assert {p.dtype for p in model.parameters()} == {dtype for _, dtype, _ in in_unlearning}
    # The same from a checkpoint, by a trainer without mixed precision.
    plain = make_trainer(precision="64-true" if precision == "64-true" else "32-true")
    twin = built(LightGCN, loss="bce", **SETTINGS)
    plain.unlearn(make_data(), model=twin, request=REQUEST, ckpt_path=path)
    assert_close(weights(model), weights(twin), 1e-6)
    # And when fitting ends.
    callback = IFRUCallback(IFRU(max_steps=2), request=REQUEST)
    _, other, _ = trained(model=built(Watched, loss="bce", **SETTINGS), precision=precision, callbacks=[callback])
    assert other.seen == in_training | in_unlearning
    assert_close(weights(model), weights(other), 1e-6)


def test_unlearning_leaves_the_callers_autocast(trained):
    trainer, model, data = trained(model=built(Watched, loss="bce", **SETTINGS))
    model.seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trainer.unlearn(data, request=REQUEST)
        assert torch.is_autocast_enabled("cpu")
    assert model.seen == SINGLE


@pytest.mark.parametrize("way", ["dry run", "failure"])
def test_a_module_that_a_trainer_has_made_double_is_single_again_if_nothing_came_of_it(
    trained, make_trainer, snapshot, monkeypatch, way
):
    _, model, data = trained(max_epochs=1)
    state, trainer = snapshot(model=model, data=data), make_trainer(precision="64-true")
    if way == "failure":
        monkeypatch.setattr(IFRU, "update", lambda *_, **__: (_ for _ in ()).throw(ObjectiveError("on purpose")))
        with pytest.raises(ObjectiveError, match="on purpose"):
            trainer.unlearn(data, model=model, request=REQUEST)
    else:
        trainer.unlearn(data, model=model, request=REQUEST, dry_run=True)
    state.check()
    assert model.dtype == torch.float32
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}


def test_half_precision_weights_are_refused_and_unlearned_in_full(
    trained, make_trainer, make_data, make_model, snapshot
):
    trainer, model, data = trained(precision="bf16-true", max_epochs=4)
    path = trainer.checkpoint_callback.best_model_path
    state = snapshot(model=model, data=data, trainer=trainer)
    with pytest.raises(MisconfigurationException, match=r"HalfPrecision.*'bf16-true'.*precision='32-true'"):
        trainer.unlearn(data, request=REQUEST)
    state.check()
    full = make_trainer()
    with pytest.raises(ObjectiveError, match=r"LightGCN has weights of torch\.bfloat16 .* call model\.float\(\)"):
        full.unlearn(data, model=model, request=REQUEST)
    state.check()
    assert full.unlearn(data, model=model.float(), request=REQUEST).steps > 0
    twin = make_model()
    assert make_trainer().unlearn(make_data(), model=twin, request=REQUEST, ckpt_path=path).steps > 0
    assert twin.dtype == torch.float32
    assert_close(weights(model), weights(twin), 1e-6)


def averaging(model):
    model.average = AveragedModel(model.net)


def half(model):
    model.bfloat16()


def partly_double(model):
    model.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))


def shapeless(model):
    model.late = nn.LazyLinear(3)


PARTS = [
    (averaging, r"part 'average' of LightGCN is an AveragedModel.*remember; .*without it"),
    (half, r"LightGCN has weights of torch\.bfloat16 \('net\.embedding\.weight'\); wanted .*model\.float\(\)"),
    (
        partly_double,
        r"weights of (?=.*torch\.float32 \('net\.)(?=.*torch\.float64 \('scale'\)).*wanted one type.*model\.float\(\)",
    ),
    (shapeless, r"'late\.weight' of LightGCN has no shape yet; call model\.encode\(data\.graph\(\)\)"),
]


@pytest.mark.parametrize(("breaks", "message"), PARTS)
def test_modules_that_would_lose_corrections_or_remember_are_refused(
    make_data, make_model, make_trainer, breaks, message
):
    data, model = make_data(), make_model()
    breaks(model)
    before = model.net.embedding.weight.detach().clone()
    trainer = make_trainer()
    with pytest.raises(ObjectiveError, match=message):
        trainer.unlearn(data, model=model, request=REQUEST)
    callback = IFRUCallback(request=REQUEST)
    trainer = make_trainer(callbacks=[callback])
    with pytest.raises(ObjectiveError, match=message):
        trainer.fit(model, datamodule=data)
    assert trainer.global_step == 0
    assert callback.request is REQUEST
    assert data.pending is None
    assert torch.equal(model.net.embedding.weight, before)


def half_precision(name):
    return lambda make_trainer, monkeypatch, callback: make_trainer(precision=name, callbacks=[callback])


def quantizing_trainer(make_trainer, monkeypatch, callback):
    trainer = make_trainer(callbacks=[callback])
    # Made without its library, of which nothing is needed to be refused.
    monkeypatch.setattr(trainer.strategy, "_precision_plugin", object.__new__(BitsandbytesPrecision))
    return trainer


def eight_bit_trainer(make_trainer, monkeypatch, callback):
    trainer = make_trainer(callbacks=[callback])
    monkeypatch.setattr(trainer.strategy, "_precision_plugin", object.__new__(TransformerEnginePrecision))
    return trainer


def other_processes(make_trainer, monkeypatch, callback):
    made = make_trainer(callbacks=[callback])
    monkeypatch.setattr(made.strategy, "world_size", 2, raising=False)
    return made


def spawned_processes(make_trainer, monkeypatch, callback):
    return make_trainer(strategy="ddp_spawn", devices=1, callbacks=[callback])


def sharding(kind):
    def trainer(make_trainer, monkeypatch, callback):
        made = make_trainer(callbacks=[callback])
        strategy = object.__new__(kind)  # there may be no accelerator here, nor the library
        strategy._launcher = None
        monkeypatch.setattr(type(strategy), "launcher", None)
        monkeypatch.setattr(type(strategy), "world_size", 1, raising=False)
        monkeypatch.setattr(made._accelerator_connector, "strategy", strategy)
        return made

    return trainer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        *(
            pytest.param(
                half_precision(name), rf"HalfPrecision plugin .*'{name}'.*Trainer\(precision='32-true'\)", id=name
            )
            for name in ("16-true", "bf16-true")
        ),
        pytest.param(quantizing_trainer, r"BitsandbytesPrecision plugin.*rounding", id="bitsandbytes"),
        pytest.param(eight_bit_trainer, r"TransformerEnginePrecision plugin.*'transformer-engine'", id="8 bit"),
        pytest.param(other_processes, r"DeviceStrategy with 2 processes, of which it knows DDP alone", id="no DDP"),
        pytest.param(spawned_processes, r"spawned processes.*lost.*devices=1", id="spawned"),
        *(
            pytest.param(sharding(kind), rf"{kind.__name__}, which takes the weights.*devices=1", id=kind.__name__)
            for kind in (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
        ),
    ],
)
def test_trainers_that_unlearning_cannot_do_with_are_refused_both_ways(
    make_data, make_model, make_trainer, monkeypatch, build, message
):
    data, model, callback = make_data(), make_model(), IFRUCallback(request=REQUEST)
    before = weights(model)
    trainer = build(make_trainer, monkeypatch, callback)
    trainer.datamodule = data
    with pytest.raises(MisconfigurationException, match=message):
        trainer.unlearn(data, model=model, request=REQUEST)
    with pytest.raises(MisconfigurationException, match=message):
        callback.on_fit_start(trainer, model)  # a fit of some of these would need what is not here
    assert data.pending is None
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert_close(weights(model), before, 0)


# --- torch.compile


class Counting:
    """A backend that runs what it is given as it is, and counts how often it is given something."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(70, 4), GCNConv(4, 4)

    def reset_parameters(self):
        nn.init.normal_(self.table.weight, std=0.3)
        self.conv.reset_parameters()

    def forward(self, edge_index):
        return self.conv(self.table.weight, edge_index)


class Own(IFRUMixin, lightning.LightningModule):
    loss = "bce"

    def __init__(self):
        super().__init__()
        self.net = Inner()
        self.net.reset_parameters()

    def encode(self, edge_index):
        return self.net(edge_index)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02, weight_decay=1e-3)


def a_part(model, backend):
    model.net = torch.compile(model.net, backend=backend)


def a_part_within(model, backend):
    model.net.conv = torch.compile(model.net.conv, backend=backend)


def a_part_in_place(model, backend):
    model.net.compile(backend=backend)


def a_method(model, backend):
    model.encode = torch.compile(model.encode, backend=backend)


@pytest.fixture
def _compiler():
    yield
    torch._dynamo.reset()  # or else it gives up on functions that many backends have compiled


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("compiles", [a_part, a_part_within, a_part_in_place, a_method])
def test_what_is_compiled_within_a_module_is_unlearned_as_if_it_were_not(trained, compiles):
    trainer, reference, data = trained(model=built(Own), max_epochs=2)
    wanted = trainer.unlearn(data, request=REQUEST)
    backend, model = Counting(), built(Own)
    compiles(model, backend)
    trainer, _, data = trained(model=model, max_epochs=2)
    compiled = backend.graphs
    assert compiled > 0
    report = trainer.unlearn(data, request=REQUEST)
    assert backend.graphs == compiled
    assert report.steps == wanted.steps > 0
    assert report.affected_nodes == wanted.affected_nodes > 0  # GCNConv reaches as far as it does uncompiled
    assert_close(weights(model), weights(reference), 1e-5)


@pytest.mark.usefixtures("_compiler")
def test_rows_in_a_compiled_part_may_be_declared(trained):
    model = built(Own)
    a_part(model, Counting())
    model.node_parameters = {"net._orig_mod.table.weight": "node"}
    trainer, _, data = trained(model=model, max_epochs=2)
    before = model.net.table.weight.detach().clone()
    assert trainer.unlearn(data, request=REQUEST).num_users_erased == 1
    assert (model.net.table.weight[4] != before[4]).all()
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, datamodule=data)
    assert not (model.edge_index == 4).any()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("way", ["by a call with the compiled module", "when fitting ends"])
def test_a_module_that_was_fitted_compiled_is_unlearned_as_if_it_were_not(make_data, make_trainer, trained, way):
    trainer, reference, data = trained(model=built(LightGCN, loss="bce", **SETTINGS), max_epochs=2)
    trainer.unlearn(data, request=REQUEST)
    backend, model, data = Counting(), built(LightGCN, loss="bce", **SETTINGS), make_data()
    compiled = torch.compile(model, backend=backend)
    trainer = make_trainer(
        max_epochs=2, callbacks=[IFRUCallback(IFRU(max_steps=2), request=REQUEST if "ends" in way else None)]
    )
    torch.manual_seed(5)
    trainer.fit(compiled, datamodule=data)
    graphs = backend.graphs
    assert graphs > 0
    if "call" in way:
        trainer.unlearn(data, model=compiled, request=REQUEST)
    assert backend.graphs == graphs
    assert_close(weights(model), weights(reference), 1e-5)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_compiled_module_may_be_given(trained, make_trainer, dry_run):
    trainer, reference, data = trained()
    path = trainer.checkpoint_callback.best_model_path
    trainer.unlearn(data, request=REQUEST)
    other, model, data = trained()
    backend = Counting()
    for source, ckpt_path in ((other, None), (make_trainer(), path)):
        compiled = torch.compile(model, backend=backend)
        report = source.unlearn(data, model=compiled, request=REQUEST, ckpt_path=ckpt_path, dry_run=True)
        assert report.num_users_erased == 1
    if not dry_run:
        other.unlearn(data, model=torch.compile(model, backend=backend), request=REQUEST)
        assert_close(weights(model), weights(reference), 1e-6)
    assert backend.graphs == 0


# --- averaged weights


def averages():
    made = [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)]
    kind = getattr(lightning.pytorch.callbacks, "EMAWeightAveraging", None)  # since Lightning 2.6
    return made if kind is None else [*made, kind(decay=0.9)]


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)


@pytest.mark.parametrize("callback", averages(), ids=lambda callback: type(callback).__name__)
def test_a_checkpoint_with_averages_is_unlearned_by_a_trainer_without_them(
    trained, make_trainer, make_model, make_data, callback
):
    first, _, _ = trained(callbacks=[callback])
    path = first.checkpoint_callback.best_model_path
    held = torch.load(path, weights_only=True)
    rows = [t[4] for t in tensors(held) if t.shape == (70, 4)]  # of the user to be erased
    assert len({row.numpy().tobytes() for row in rows}) >= 2  # weights and averages of them, moments, ...
    trainer, model = make_trainer(), make_model()
    report = trainer.unlearn(make_data(), model=model, request=REQUEST, ckpt_path=path)
    assert report.steps > 0
    (start,) = [t for t in held["state_dict"].values() if t.shape == (70, 4)]
    others = [n for n in range(70) if n != 4]
    now = model.net.embedding.weight.detach()
    assert float((now - start)[others].norm()) < 0.5 * float(start[others].norm())  # it is those that were corrected
    unlearned = torch.load(report.checkpoint, weights_only=True)
    assert unlearned.keys() <= held.keys() - {"current_model_state", "averaging_state"}
    assert not any("Averaging" in key for key in unlearned["callbacks"])
    assert len([t for t in tensors(unlearned) if t.shape == (70, 4)]) == 1
    content = Path(report.checkpoint).read_bytes()
    assert now[5].numpy().tobytes() in content
    assert not any(row.numpy().tobytes() in content for row in rows)


# --- what behaves otherwise in training


class Normalized(Own):
    """Dropout and normalisation over the batch, which both are something else in training."""

    def __init__(self):
        super().__init__()
        self.norm, self.off = nn.BatchNorm1d(4), nn.Dropout(0.3)
        self.second = GCNConv(4, 4)

    def encode(self, edge_index):
        return self.second(self.off(self.norm(self.net(edge_index)).relu()), edge_index)


@pytest.mark.parametrize("dry_run", [False, True])
def test_dropout_is_off_and_running_statistics_are_constants(trained, dry_run):
    trainer, model, data = trained(model=built(Normalized), max_epochs=20)
    before, buffers = weights(model), {name: b.clone() for name, b in model.named_buffers()}
    assert float((buffers["norm.running_mean"]).abs().max()) > 0.01
    assert int(buffers["norm.num_batches_tracked"]) > 100
    model.train()
    model.norm.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    report = trainer.unlearn(data, request=REQUEST, dry_run=dry_run)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert report.affected_nodes > 1  # two convolutions with normalisation between: a reach that is known
    if not dry_run:
        assert report.residual_after < report.residual_before
        for name, p in model.named_parameters():
            assert not torch.equal(p, before[name]), f"{name} was not corrected"


def test_one_process_of_a_distributed_strategy_arrives_at_the_same(trained, make_trainer):
    first, reference, data = trained(max_epochs=3)
    path = first.checkpoint_callback.best_model_path
    first.unlearn(data, request=REQUEST)
    trainer = make_trainer(strategy="ddp")
    model = built(LightGCN, loss="bce", **SETTINGS)
    try:
        _, _, other = trained(max_epochs=1)
        trainer.unlearn(other, model=model, request=REQUEST, ckpt_path=path)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert_close(weights(model), weights(reference), 0)
