"""``Trainer.unlearn`` from end to end: what changes, what must not, and what must never be seen again."""

import copy
import csv
import gc
import json
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_ifru
from lightning_ifru import (
    IFRU,
    DataError,
    IFRUCallback,
    InteractionDataModule,
    ObjectiveError,
    RequestError,
    UnlearningError,
    UnlearningRequest,
    checkpoints,
)
from lightning_ifru.ledger import entries_in
from lightning_ifru.models import LightGCN

SPLITS = ("train", "val", "test")
KINDS = [
    pytest.param("bce", 1, id="bce-lightgcn"),
    pytest.param("bpr", 2, id="bpr-lightgcn"),
    pytest.param("bce", None, id="bce-mf"),
    pytest.param("bpr", None, id="bpr-mf"),
]


def pairs(interactions):
    return set(zip(interactions.user.tolist(), interactions.item.tolist(), strict=True))


def all_pairs(data):
    return {split: pairs(getattr(data, split)) for split in SPLITS}


def edges(data):
    graph = data.graph()
    forward = graph[:, graph[0] < data.num_users]
    return set(zip(forward[0].tolist(), (forward[1] - data.num_users).tolist(), strict=True))


def request_for(data, *, user=4, item=7, singles=6):
    """Forget a user, an item, and single interactions of others, of every split."""
    chosen = []
    for split in SPLITS:
        rest = sorted((u, i) for u, i in pairs(getattr(data, split)) if u != user and i != item)
        chosen += rest[:: max(1, len(rest) // singles)][:singles]
    return UnlearningRequest(
        users=[data.user_ids[user]],
        items=[data.item_ids[item]],
        interactions=[(data.user_ids[u], data.item_ids[i]) for u, i in chosen],
    )


def named_pairs(request, data, pair):
    user, item = data.user_ids[pair[0]], data.item_ids[pair[1]]
    return user in request.users or item in request.items or (user, item) in request.interactions


def forgotten_by(request, data):
    """The pairs a request names, by split, found one at a time."""
    found = {split: {p for p in pairs(getattr(data, split)) if named_pairs(request, data, p)} for split in SPLITS}
    assert all(found.values())
    return found


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def table_of(model):
    return max(model.parameters(), key=torch.Tensor.numel)


def ledger(trainer):
    return next(c for c in trainer.callbacks if isinstance(c, IFRUCallback)).ledger


# --- the ways in


def after_a_fit(trained, make_trainer, make_model, best, forget):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    forget(data)
    return trainer, model, data, trainer.unlearn(data)


def with_the_datamodule_of_the_fit(trained, make_trainer, make_model, best, forget):
    trainer, model, data = trained()
    forget(data)
    return trainer, model, data, trainer.unlearn()


def by_the_function(trained, make_trainer, make_model, best, forget):
    trainer, model, data = trained()
    forget(data)
    return trainer, model, data, lightning_ifru.unlearn(trainer, data)


def on_another_trainer(trained, make_trainer, make_model, best, forget):
    _, model, data = trained()
    forget(data)
    trainer = make_trainer()
    return trainer, model, data, trainer.unlearn(data, model=model)


def from_a_path(trained, make_trainer, make_model, best, forget):
    first, _, data = trained()
    forget(data)
    trainer, model = make_trainer(), make_model()
    with torch.no_grad():
        table_of(model).zero_()
    return trainer, model, data, trainer.unlearn(data, model=model, ckpt_path=first.checkpoint_callback.best_model_path)


def from_the_best(trained, make_trainer, make_model, best, forget):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    with torch.no_grad():
        table_of(model).zero_()  # only the checkpoint knows the weights now
    forget(data)
    return trainer, model, data, trainer.unlearn(data, ckpt_path="best")


def with_the_request_as_an_argument(trained, make_trainer, make_model, best, forget):
    trainer, model, data = trained()
    return trainer, model, data, trainer.unlearn(data, request=request_for(data))


WAYS = [
    after_a_fit,
    with_the_datamodule_of_the_fit,
    by_the_function,
    on_another_trainer,
    from_a_path,
    from_the_best,
    with_the_request_as_an_argument,
]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_forgets_the_same(trained, make_trainer, make_model, make_data, best, way):
    reference = make_data()
    request = request_for(reference)
    gone = forgotten_by(request, reference)
    before = all_pairs(reference)
    trainer, model, data, report = way(trained, make_trainer, make_model, best, lambda d: d.forget(request))
    assert report.steps > 0
    assert report.residual_after < 0.8 * report.residual_before
    assert all_pairs(data) == {split: before[split] - gone[split] for split in SPLITS}
    assert report.forgotten_by_split == {split: len(gone[split]) for split in SPLITS}
    assert report.num_forgotten == sum(map(len, gone.values()))
    assert (report.num_users_erased, report.num_items_erased) == (1, 1)
    assert data.pending is None
    assert len(ledger(trainer)) == 1
    assert table_of(model).isfinite().all()
    assert table_of(model).abs().sum() > 1


def test_all_ways_in_arrive_at_the_same_weights(trained, make_trainer, make_model, make_data, best):
    request = request_for(make_data())
    arrived = [way(trained, make_trainer, make_model, best, lambda d: d.forget(request))[1] for way in WAYS]
    assert not torch.equal(table_of(arrived[0]), table_of(trained()[1]))
    for way, model in zip(WAYS, arrived, strict=True):
        if way is not from_the_best:  # the best epoch need not be the last
            torch.testing.assert_close(table_of(model), table_of(arrived[0]), rtol=0, atol=1e-6)


# --- what is forgotten is gone


@pytest.mark.parametrize(("loss", "layers"), KINDS)
def test_forgotten_pairs_are_in_neither_graph_nor_loaders(trained, loss, layers):
    trainer, _, data = trained(loss, layers)
    request = request_for(data)
    gone = forgotten_by(request, data)
    positive = {(u, i) for u, i in gone["train"]} & edges(data)
    kept = edges(data) - positive
    assert positive
    trainer.unlearn(data, request=request)
    assert edges(data) == kept
    for split in SPLITS:
        loader = getattr(data, f"{split}_dataloader")()
        seen = {pair for b in loader for pair in zip(b["user"].tolist(), b["item"].tolist(), strict=True)}
        assert seen
        assert not seen & set().union(*gone.values())
        if loss == "bpr":
            negatives = torch.cat([b["negative"].flatten() for b in loader])
            assert 7 not in negatives  # the erased item


@pytest.mark.parametrize("layers", [1, None], ids=["lightgcn", "mf"])
def test_nothing_keeps_the_old_graph_alive(trained, layers):
    trainer, model, data = trained("bce", layers)
    assert model.edge_index is data.graph()
    old = weakref.ref(data.graph())
    trainer.unlearn(data, request=request_for(data))
    gc.collect()
    assert old() is None
    assert model.edge_index is data.graph()


@pytest.mark.parametrize("way", ["by a call", "when fitting ends"])
def test_no_loader_of_the_trainer_holds_what_was_forgotten(make_data, make_trainer, make_model, way):
    data, model, held, shown = make_data(), make_model(), [], {}
    request = request_for(data)

    class Before(lightning.Callback):
        def on_fit_end(self, trainer, module):
            held.extend(map(weakref.ref, (trainer.train_dataloader.dataset, trainer.val_dataloaders.dataset)))

    class After(lightning.Callback):
        def on_fit_end(self, trainer, module):
            shown.update(train=trainer.train_dataloader, val=trainer.val_dataloaders)

    callback = IFRUCallback(IFRU(max_steps=2), request=request if way == "when fitting ends" else None)
    trainer = make_trainer(callbacks=[Before(), callback, After()])
    trainer.fit(model, datamodule=data)
    if way == "by a call":
        assert all(shown.values())
        shown.clear()
        trainer.predict(model, datamodule=data)
        held.append(weakref.ref(trainer.predict_dataloaders.dataset))
        trainer.unlearn(data, request=request)
        loaders = (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders)
        assert [*loaders, trainer.predict_dataloaders] == [None] * 4
    gc.collect()
    assert data.user_ids[4] is None
    assert not any(shown.values())
    assert len(held) >= 2
    assert [ref() for ref in held] == [None] * len(held)
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, datamodule=data)
    assert sum(len(batch["user"]) for batch in trainer.train_dataloader) == len(data.train)
    trainer.validate(model, datamodule=data, verbose=False)
    assert len(trainer.val_dataloaders.dataset) == len(data.val)


def containers(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from containers(key)
            yield from containers(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from containers(part)
    else:
        yield value


@pytest.mark.parametrize("layers", [1, None], ids=["lightgcn", "mf"])
def test_no_id_and_no_edge_of_what_is_forgotten_is_in_the_unlearned_checkpoint(trained, best, tmp_path, layers):
    trainer, model, data = trained("bce", layers, callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    user, item = data.user_ids[4], data.item_ids[7]
    row = table_of(model)[4].detach().clone()
    edges_before = data.graph().shape[1]
    remembers = Path(trainer.checkpoint_callback.best_model_path).read_bytes()
    assert user.encode() in remembers
    assert item.encode() in remembers
    trainer.save_checkpoint(tmp_path / "now.ckpt")
    old = (tmp_path / "now.ckpt").read_bytes()
    assert row.numpy().tobytes() in old
    report = trainer.unlearn(data, request=UnlearningRequest(users=[user], items=[item]))
    unlearned = Path(report.checkpoint).read_bytes()
    assert data.user_ids[5].encode() in unlearned
    for secret in (user.encode(), item.encode(), row.numpy().tobytes()):
        assert secret not in unlearned
    parts = list(containers(torch.load(report.checkpoint, weights_only=True)))
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    assert any(tensor.shape == table_of(model).shape for tensor in tensors)
    for tensor in tensors:
        assert tensor.shape[-1:] not in {(edges_before,), (edges_before // 2,), (data.graph().shape[1],)}
    assert not {user, item} & {part for part in parts if isinstance(part, str)}


def test_the_row_of_an_erased_user_is_drawn_anew_and_the_id_is_gone(trained):
    trainer, model, data = trained()
    before = table_of(model).detach().clone()
    user, neighbours = data.user_ids[4], data.user_ids[[3, 5]].tolist()
    report = trainer.unlearn(data, request=UnlearningRequest(users=[user]))
    after = table_of(model).detach()
    assert report.num_users_erased == 1
    assert bool((after[4] != before[4]).all())
    assert torch.equal(after[4], model.initial_rows("net.embedding.weight", torch.tensor([4]), seed=0)[0])
    assert data.user_ids[4] is None
    assert data.user_ids[[3, 5]].tolist() == neighbours
    assert report.rows_changed == int((after != before).any(1).sum()) > 10


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda data: UnlearningRequest(users=[data.user_ids[4]]), id="users"),
        pytest.param(lambda data: UnlearningRequest(items=[data.item_ids[7]]), id="items"),
        pytest.param(
            lambda data: UnlearningRequest(interactions=[(data.user_ids[u], data.item_ids[i])
                                                         for u, i in sorted(pairs(data.train))[:1]]),
            id="interactions",
        ),
    ],
)  # fmt: skip
def test_forgetting_a_second_time_changes_nothing_and_says_so(trained, snapshot, build):
    trainer, model, data = trained()
    request = build(data)
    trainer.unlearn(data, request=request)
    state = snapshot(model=model, data=data, trainer=trainer)
    report = trainer.unlearn(data, request=request)
    assert (report.num_forgotten, report.already_absent) == (0, 1)
    state.check()
    with pytest.raises(RequestError, match="1 of the request's entries are not in the data and were not forgotten"):
        trainer.unlearn(data, request=request | UnlearningRequest(users=["nobody"]))
    state.check()


def test_what_validation_and_test_alone_hold_is_removed_and_the_weights_stay(trained):
    trainer, model, data = trained()
    users_in_training = set(data.train.user.tolist())
    items_in_training = set(data.train.item.tolist())
    chosen = [p for split in ("val", "test") for p in sorted(pairs(getattr(data, split)))[:5]]
    assert all(u in users_in_training and i in items_in_training for u, i in chosen)
    before, graph, train = weights(model), data.graph().clone(), pairs(data.train)
    interactions = [(data.user_ids[u], data.item_ids[i]) for u, i in chosen]
    report = trainer.unlearn(data, request=UnlearningRequest(interactions=interactions))
    assert same(weights(model), before)
    assert torch.equal(data.graph(), graph)
    assert pairs(data.train) == train
    assert not set(chosen) & (pairs(data.val) | pairs(data.test))
    assert report.forgotten_by_split == {"train": 0, "val": 5, "test": 5}
    assert (report.steps, report.rows_changed) == (0, 0)


def test_several_unlearnings_one_after_the_other_add_up(trained):
    trainer, model, data = trained()
    first = request_for(data)
    gone = forgotten_by(first, data)
    reports = [trainer.unlearn(data, request=first)]
    middle = weights(model)
    second = request_for(data, user=9, item=11, singles=2)
    more = forgotten_by(second, data)
    reports.append(trainer.unlearn(data, request=second))
    assert not same(weights(model), middle)
    assert data.user_ids[4] is None
    assert data.user_ids[9] is None
    for split in SPLITS:
        assert not pairs(getattr(data, split)) & (gone[split] | more[split])
    assert [entry["num_forgotten"] for entry in ledger(trainer)] == [report.num_forgotten for report in reports]
    assert reports[0].checkpoint != reports[1].checkpoint
    assert reports[0].checkpoint in reports[1].older_checkpoints
    assert trainer.checkpoint_callback.best_model_path == reports[1].checkpoint
    assert not torch.equal(table_of(model)[4], table_of(model)[9])  # each erased row has its own numbers


@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_the_order_of_the_ids_does_not_matter_to_the_bit(trained, loss):
    arrived = []
    for step in (1, -1):
        trainer, model, data = trained(loss)
        request = request_for(data)
        assert len(request.interactions) > 10
        trainer.unlearn(
            data,
            request=UnlearningRequest(
                users=[*request.users, data.user_ids[20]][::step],
                items=[*request.items, data.item_ids[20]][::step],
                interactions=request.interactions[::step],
            ),
        )
        arrived.append(weights(model))
    assert same(*arrived)
    assert not same(arrived[0], weights(trained(loss)[1]))


# --- a dry run


@pytest.mark.parametrize("how", ["after a fit", "from a checkpoint"])
@pytest.mark.parametrize("by", ["staged", "argument"])
@pytest.mark.parametrize(("loss", "layers"), KINDS)
def test_a_dry_run_changes_nothing_to_the_bit(trained, make_model, make_trainer, snapshot, how, by, loss, layers):
    trainer, model, data = trained(loss, layers)
    path = None
    if how == "from a checkpoint":
        path = trainer.checkpoint_callback.best_model_path
        trainer, model = make_trainer(), make_model(loss, layers)
    request = request_for(data)
    gone = forgotten_by(request, data)
    if by == "staged":
        data.forget(request)
    state = snapshot(model=model, data=data, trainer=trainer)
    argument = request if by == "argument" else None
    report = trainer.unlearn(data, model=model, request=argument, ckpt_path=path, dry_run=True)
    state.check()
    assert report.dry_run
    assert report.forgotten_by_split == {split: len(gone[split]) for split in SPLITS}
    assert (report.num_users_erased, report.num_items_erased) == (1, 1)
    assert report.expected["products"] >= 1
    assert report.expected["seconds"] > 0
    assert report.checkpoint is None
    endpoints = {u for u, _ in gone["train"] & edges(data)} | {40 + i for _, i in gone["train"] & edges(data)}
    reached = set(endpoints)
    for _ in range(layers or 0):
        neighbours = {(u, 40 + i) for u, i in edges(data)}
        reached |= {b for a, b in neighbours if a in reached} | {a for a, b in neighbours if b in reached}
    assert report.affected_nodes == len(reached)
    real = trainer.unlearn(data, model=model, request=argument, ckpt_path=path)
    assert real.num_forgotten == report.num_forgotten
    assert real.cg_iterations <= report.expected["products"]
    assert real.digest == report.digest


# --- what is left alone


@pytest.mark.parametrize("dry_run", [False, True])
def test_modes_and_gradients_asked_for_are_as_before(trained, make_model, dry_run):
    class Gated(LightGCN):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.gate = torch.nn.Linear(1, 1)
            self.gate.requires_grad_(False)
            self.off = torch.nn.Dropout(0.5)

    model = Gated(num_users=40, num_items=30, embedding_dim=4, num_layers=1, loss="bce", weight_decay=1e-3)
    trainer, model, data = trained(model=model)
    model.train()
    model.off.eval()
    modes = {name: part.training for name, part in model.named_modules()}
    assert set(modes.values()) == {True, False}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    gate = model.gate.weight.clone()
    trainer.unlearn(data, request=request_for(data), dry_run=dry_run)
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert torch.equal(model.gate.weight, gate)
    assert all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())


def test_the_global_random_numbers_go_on_as_if_nothing_had_happened(trained):
    trainer, _, data = trained("bpr", 2)
    state = torch.get_rng_state()
    trainer.unlearn(data, request=request_for(data))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_method_and_the_trainer_are_as_usable_as_before(trained):
    trainer, _, data = trained()
    trainer.unlearn(data, request=request_for(data))
    assert "run" not in vars(trainer.predict_loop)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# --- afterwards


class Watcher(lightning.Callback):
    """Keeps the pairs that every stage has seen."""

    def __init__(self):
        self.seen = {}

    def note(self, stage, batch):
        self.seen.setdefault(stage, set()).update(zip(batch["user"].tolist(), batch["item"].tolist(), strict=True))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.note("fit", batch)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.note("validate", batch)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.note("test", batch)

    def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.note("predict", batch)


def by_hand(model, data, split, table=None):
    """Scores and mean loss of a split from a dense adjacency."""
    table = table_of(model).detach() if table is None else table
    adjacency = torch.zeros(len(table), len(table))
    for u, i in edges(data):
        adjacency[u, 40 + i] = adjacency[40 + i, u] = 1
    scale = adjacency.sum(1).clamp(min=1).rsqrt()
    h = (table + (scale[:, None] * adjacency * scale) @ table) / 2
    some = getattr(data, split)
    scores = (h[some.user] * h[40 + some.item]).sum(-1)
    return scores, F.binary_cross_entropy_with_logits(scores, some.label).item()


@pytest.mark.parametrize("with_model", [True, False], ids=["model given", "model from the best checkpoint"])
def test_all_stages_run_afterwards_with_the_new_weights_and_see_no_forgotten_row(trained, best, with_model):
    watcher = Watcher()
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best(), watcher])
    request = request_for(data)
    gone = set().union(*forgotten_by(request, data).values())
    assert watcher.seen["fit"] & gone
    old_table = table_of(model).detach().clone()
    trainer.unlearn(data, request=request)
    old, new = ({s: by_hand(model, data, s, t)[1] for s in ("val", "test")} for t in (old_table, None))
    watcher.seen.clear()
    module = model if with_model else None
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    (validated,) = trainer.validate(module, datamodule=data, verbose=False)
    predicted = torch.cat(trainer.predict(module, datamodule=data))
    assert tested["test_loss"] == pytest.approx(new["test"], abs=1e-6)
    assert validated["val_loss"] == pytest.approx(new["val"], abs=1e-6)
    assert min(abs(new[s] - old[s]) for s in new) > 1e-4
    torch.testing.assert_close(predicted, by_hand(model, data, "test")[0], rtol=0, atol=1e-6)
    before = table_of(model).detach().clone()
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, datamodule=data)
    assert not torch.equal(table_of(model), before)
    assert watcher.seen.keys() == {"fit", "validate", "test", "predict"}
    assert watcher.seen["fit"] == pairs(data.train)
    assert not set().union(*watcher.seen.values()) & gone


def test_the_first_step_of_a_later_fit_is_that_of_a_fresh_optimizer(trained):
    trainer, model, data = trained()
    assert any(optimizer.state for optimizer in trainer.optimizers)
    report = trainer.unlearn(data, request=request_for(data))
    assert [dict(optimizer.state) for optimizer in trainer.optimizers] == [{}]
    (state,) = torch.load(report.checkpoint, weights_only=True)["optimizer_states"]
    assert state["state"] == {}
    assert state["param_groups"][0]["lr"] == 0.05
    before = table_of(model).detach().clone()
    trainer.fit_loop.max_epochs += 1
    trainer.limit_train_batches = 1
    trainer.fit(model, datamodule=data)
    step = (table_of(model) - before).abs()
    # Adam's first step is the learning rate wherever the gradient is not tiny, whatever came before.
    assert float(step.max()) == pytest.approx(0.05, rel=1e-3)
    assert float(step.median()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("process", ["same", "fresh"])
def test_fit_resumes_from_the_unlearned_checkpoint(trained, make_trainer, make_model, make_data, process):
    trainer, model, data = trained()
    request = request_for(data)
    gone = set().union(*forgotten_by(request, data).values())
    if process == "fresh":
        path = trainer.checkpoint_callback.best_model_path
        trainer, model, data = make_trainer(), make_model(), make_data()
        report = trainer.unlearn(data, model=model, request=request, ckpt_path=path)
    else:
        report = trainer.unlearn(data, request=request)
    state = torch.load(report.checkpoint, weights_only=True)
    watcher = Watcher()
    resumed, twin, again = make_trainer(callbacks=[IFRUCallback(), watcher], max_epochs=12), make_model(), make_data()
    start = {}
    resumed.callbacks.append(Starting(start))
    resumed.fit(twin, datamodule=again, ckpt_path=report.checkpoint)
    assert same(start["weights"], state["state_dict"])
    assert start["optimizer"] == {}
    assert not same(weights(twin), state["state_dict"])
    assert watcher.seen["fit"] == pairs(data.train)
    assert not set().union(*watcher.seen.values()) & gone
    assert resumed.current_epoch == 12
    assert ledger(resumed) == ledger(trainer)


class Starting(lightning.Callback):
    """Keeps the weights and moments with which a fit starts."""

    def __init__(self, into):
        self.into = into

    def on_train_start(self, trainer, module):
        self.into.update(weights=weights(module), optimizer=dict(trainer.optimizers[0].state))


# --- checkpoints


def test_best_and_last_stand_for_the_unlearned_checkpoint(trained, best):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    callback = trainer.checkpoint_callback
    older = {callback.best_model_path, callback.last_model_path}
    assert all(older)
    report = trainer.unlearn(data, request=request_for(data))
    assert callback.best_model_path == callback.last_model_path == report.checkpoint
    assert set(report.older_checkpoints) == older
    assert callback.best_model_score is None  # none was measured since
    state = torch.load(report.checkpoint, weights_only=True)
    assert same(state["state_dict"], weights(model))
    inside = next(s for key, s in state["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert inside["best_model_path"] == inside["last_model_path"] == report.checkpoint
    assert not older & {part for part in containers(inside) if isinstance(part, str)}
    loaded = LightGCN.load_from_checkpoint(report.checkpoint)
    assert torch.equal(loaded.encode(data.graph()), model.encode(data.graph()))


def test_every_file_that_remembers_is_listed_once(trained, make_trainer, make_model, make_data, tmp_path):
    keeper = ModelCheckpoint(monitor="val_loss", save_last="link", save_top_k=2, filename="{epoch}")
    everything = ModelCheckpoint(save_top_k=-1, filename="all-{epoch}", dirpath=tmp_path / "all")
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), keeper, everything], max_epochs=3)

    def files():
        return sorted(map(str, tmp_path.rglob("*.ckpt")))

    for user in (4, 9):
        before = files()
        report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[user]]))
        assert len(before) >= 6
        assert report.older_checkpoints == before
        assert set(files()) - set(before) == {report.checkpoint}
    elsewhere = make_trainer(default_root_dir=tmp_path / "elsewhere")
    loaded = elsewhere.unlearn(
        make_data(), model=model, request=UnlearningRequest(users=["person-011"]), ckpt_path=report.checkpoint
    )
    assert loaded.older_checkpoints == [report.checkpoint]


def test_older_checkpoints_are_read_once_and_again_when_they_have_changed(trained, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoints, "entries_in", lambda path: read.append(str(path)) or entries_in(path))
    callback = IFRUCallback(IFRU(max_steps=1), evaluate=False)
    trainer, _, data = trained(callbacks=[callback, ModelCheckpoint()], max_epochs=1)
    fitted, written = trainer.checkpoint_callback.best_model_path, []
    for user in (4, 9, 12):
        report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[user]]))
        assert set(report.older_checkpoints) == {fitted, *written}
        written.append(report.checkpoint)
    assert read == [fitted], "once, and none that this process has written"
    shutil.copyfile(written[2], written[0])
    older = checkpoints.older_checkpoints(trainer, Path(written[2]), callback.ledger)
    assert set(older) == {fitted, written[1]}, "what stands there now has forgotten all"
    assert read == [fitted, written[0]]


def test_a_later_fit_chooses_its_best_among_models_that_have_forgotten(trained, best):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    older = trainer.checkpoint_callback.best_model_path
    trainer.checkpoint_callback.best_model_score -= 100.0  # no later epoch could compete with it
    trainer.unlearn(data, request=request_for(data))
    trainer.fit_loop.max_epochs += 2
    trainer.fit(model, datamodule=data)
    chosen = trainer.checkpoint_callback.best_model_path
    assert trainer.checkpoint_callback.best_model_score > 0
    state = torch.load(chosen, weights_only=True)["InteractionDataModule"]
    assert len(state["forgotten"]) > 0
    assert chosen != older


@pytest.mark.parametrize("changes", [{"enable_checkpointing": False}, {"fast_dev_run": 1}])
def test_no_file_is_written_where_the_trainer_writes_none(trained, tmp_path, changes):
    trainer, model, data = trained(**changes)
    before = weights(model)
    report = trainer.unlearn(data, request=request_for(data))
    assert not same(weights(model), before)
    assert report.checkpoint is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_ledger_has_digest_and_counts_and_no_id_and_survives_checkpoints(trained, make_trainer, make_model):
    trainer, _, data = trained()
    request = request_for(data)
    report = trainer.unlearn(data, request=request)
    (entry,) = ledger(trainer)
    assert entry["digest"] == report.digest
    assert len(entry["digest"]) == 64
    assert entry["num_forgotten"] == report.num_forgotten
    assert entry["method"]["max_steps"] == 2
    assert entry["residual_after"] == report.residual_after
    # The ledger is in the checkpoint, and so is older than the time that the writing took.
    assert entry["seconds"] == pytest.approx(report.seconds["total"] - report.seconds["checkpoint"])
    for name in [*request.users, *request.items]:
        assert name not in repr(trainer.callbacks[0].state_dict())
    path = report.checkpoint
    following = request_for(data, user=9, item=11, singles=2)
    later, fresh = make_trainer(), make_model()
    report = later.unlearn(data, model=fresh, request=following, ckpt_path=path)
    assert ledger(later)[0] == entry
    assert [e["digest"] for e in ledger(later)] == [entry["digest"], report.digest]
    saved = torch.load(report.checkpoint, weights_only=True)["callbacks"]["IFRUCallback"]["ledger"]
    assert saved == ledger(later)
    assert trainer.callbacks[0].state_dict()["ledger"] == [entry]


def test_the_ledgers_state_is_a_copy(trained):
    trainer, _, data = trained()
    trainer.unlearn(data, request=request_for(data))
    state = trainer.callbacks[0].state_dict()
    held = copy.deepcopy(state)
    state["ledger"][0]["num_forgotten"] = -1
    assert trainer.callbacks[0].state_dict() == held
    callback = IFRUCallback()
    for _ in range(2):
        callback.load_state_dict(held)
    assert callback.state_dict() == held


class WithMore(LightGCN):
    def get_extra_state(self):
        return {"version": 7}

    def set_extra_state(self, state):
        self.found = state


def test_extra_state_of_a_module_is_kept(trained, make_trainer, tmp_path):
    trainer, _, data = trained(model=WithMore(40, 30, 4, 1, loss="bce"))
    trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[3]]), output=tmp_path / "one.ckpt")
    model, later = WithMore(40, 30, 4, 1, loss="bce"), UnlearningRequest(users=[data.user_ids[9]])
    make_trainer().unlearn(
        data, model=model, ckpt_path=tmp_path / "one.ckpt", request=later, output=tmp_path / "b.ckpt"
    )
    assert model.found == {"version": 7}
    assert torch.load(tmp_path / "b.ckpt", weights_only=True)["state_dict"]["_extra_state"] == {"version": 7}


@pytest.mark.parametrize("buffers", [False, True])
def test_a_checkpoint_without_finite_weights_is_refused_as_such(trained, buffers):
    trainer, model, data = trained()
    data.forget(UnlearningRequest(users=[data.user_ids[3]]))
    with torch.no_grad():
        for part in [*model.parameters(), *(model.buffers() if buffers else ())]:
            part.fill_(torch.nan)
    said = "its weights are not finite.* checkpoint is broken" if buffers else "check weights .* for NaN"
    with pytest.raises(ObjectiveError, match=said):
        trainer.unlearn(data)
    assert data.pending is not None


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_checkpoint_that_remembers_a_forgotten_person_brings_nobody_back(trained, make_trainer, snapshot, dry_run):
    trainer, model, data = trained()
    old = trainer.checkpoint_callback.best_model_path
    then = table_of(model)[4].detach().clone()
    newer = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[4]])).checkpoint
    data.forget(UnlearningRequest(users=[data.user_ids[9]]))
    for runner in (trainer, make_trainer()):
        state = snapshot(model=model, data=data, trainer=runner)
        with pytest.raises(UnlearningError, match=r"has forgotten 0 interactions and the data \d+"):
            runner.unlearn(data, model=model, ckpt_path=old, dry_run=dry_run)
        state.check()
        assert not torch.equal(table_of(model)[4], then)
    trainer.unlearn(data, ckpt_path=newer)
    assert data.user_ids[[4, 9]].tolist() == [None, None]
    assert not torch.isclose(table_of(model)[4], then).any()


def test_a_checkpoint_fits_a_source_from_which_its_forgotten_rows_were_deleted(trained, make_data, make_model, planted):
    trainer, _, data = trained()
    user = data.user_ids[4]
    path = trainer.unlearn(data, request=UnlearningRequest(users=[user])).checkpoint
    kept = [k for k, name in enumerate(planted["user"]) if name != user]
    deleted = make_data(source={name: [column[k] for k in kept] for name, column in planted.items()})
    twin = make_model()
    report = trainer.unlearn(deleted, model=twin, request=UnlearningRequest(users=["person-009"]), ckpt_path=path)
    assert report.num_users_erased == 1
    trainer.unlearn(deleted, model=twin, request=UnlearningRequest(users=["person-010"]), ckpt_path=report.checkpoint)
    state = weights(twin)
    with pytest.raises(UnlearningError, match="bring back what was forgotten"):
        trainer.unlearn(deleted, model=twin, request=UnlearningRequest(users=["person-011"]), ckpt_path=path)
    assert same(weights(twin), state)


# --- a request that is applied when fitting ends


@pytest.mark.parametrize("form", ["object", "path", "string"])
def test_a_callbacks_request_is_applied_when_fitting_ends_and_only_once(make_data, trained, tmp_path, form):
    reference = make_data()
    request = request_for(reference)
    gone, kept = forgotten_by(request, reference), all_pairs(reference)
    folder = tmp_path / "requests"
    folder.mkdir()
    path = folder / "forget.csv"
    rows = [f"{u}," for u in request.users] + [f",{i}" for i in request.items]
    path.write_text("\n".join(["user,item", *rows, *(f"{u},{i}" for u, i in request.interactions)]))
    given = {"object": request, "path": path, "string": str(path)}[form]
    callback = IFRUCallback(IFRU(max_steps=2), request=given)
    trainer, model, data = trained(callbacks=[callback])
    assert all_pairs(data) == {split: kept[split] - gone[split] for split in SPLITS}
    assert len(callback.ledger) == 1
    assert data.pending is None
    state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert same(state["state_dict"], weights(model))
    assert len(state["InteractionDataModule"]["forgotten"]) == sum(map(len, gone.values()))
    by_call_trainer, by_call, other = trained()
    by_call_trainer.unlearn(other, request=request)
    torch.testing.assert_close(table_of(model), table_of(by_call), rtol=0, atol=1e-6)
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, datamodule=data)
    assert len(callback.ledger) == 1


# --- loggers


def test_a_request_that_fails_at_fit_end_leaves_nothing_staged_and_can_be_made_by_hand(make_data, trained, monkeypatch):
    data = make_data()
    request = request_for(data)
    callback = IFRUCallback(IFRU(max_steps=2), request=request)
    with monkeypatch.context() as patch:
        patch.setattr(IFRU, "update", lambda *_, **__: (_ for _ in ()).throw(ObjectiveError("on purpose")))
        with pytest.raises(ObjectiveError, match="on purpose"):
            trained(data=data, callbacks=[callback])
    assert data.pending is None
    assert callback.request is request
    trained(data=data, callbacks=[callback])
    assert callback.request is None
    assert len(callback.ledger) == 1


def test_a_solve_that_finds_no_step_says_so(trained):
    trainer, model, data = trained(method=IFRU(curvature="hessian", damping=0.0))
    before = weights(model)
    pair = data.user_ids[data.train.user[0]], data.item_ids[data.train.item[0]]
    data.forget(UnlearningRequest(interactions=[pair]))
    with pytest.warns(UserWarning, match="No step brought the model nearer"):
        report = trainer.unlearn(data)
    assert report.steps == 0
    assert same(weights(model), before)


def test_a_solve_that_finds_no_step_says_that_erased_rows_are_new(trained):
    trainer, model, data = trained(method=IFRU(curvature="hessian", damping=0.0))
    before = table_of(model).detach().clone()
    with pytest.warns(UserWarning, match="as they were, apart from rows of the erased, which are drawn anew"):
        report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[4]]))
    assert report.steps == 0
    assert (table_of(model) != before).any(1).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_no_stage_loads_a_checkpoint_that_remembers_more_than_the_data(trained, best, stage):
    trainer, model, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=2)), best()])
    old = trainer.checkpoint_callback.best_model_path
    new = trainer.unlearn(data, request=request_for(data)).checkpoint
    before = weights(model)
    run = getattr(trainer, stage)
    with pytest.raises(DataError, match=r"has forgotten 0 interactions and the data \d+"):
        run(model, datamodule=data, ckpt_path=old)
    assert same(weights(model), before)
    run(model, datamodule=data, ckpt_path=new)


def test_the_reports_numbers_reach_the_logger(trained, tmp_path):
    logger = CSVLogger(tmp_path, name="log")
    trainer, _, data = trained(logger=logger)
    report = trainer.unlearn(data, request=request_for(data))
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if row["unlearn/residual_after"]]
    assert float(row["unlearn/residual_after"]) == pytest.approx(report.residual_after)
    assert float(row["unlearn/num_forgotten"]) == report.num_forgotten
    assert float(row["unlearn/metrics_after/auroc"]) == pytest.approx(report.metrics_after["auroc"])
    assert int(row["step"]) == trainer.global_step > 0
    assert any(row["val_loss"] for row in rows)


def test_the_metrics_of_the_report_are_taken_on_the_surviving_test_pairs(trained):
    trainer, model, data = trained()
    table = table_of(model).detach().clone()
    request, old_edges = request_for(data), data.graph().clone()
    report = trainer.unlearn(data, request=request)
    some = data.test
    new_scores, _ = by_hand(model, data, "test")
    with torch.no_grad():
        model_then = copy.deepcopy(model)
        table_of(model_then).copy_(table)
        h = model_then.encode(old_edges)
        old_scores = (h[some.user] * h[40 + some.item]).sum(-1)
    for scores, found in ((old_scores, report.metrics_before), (new_scores, report.metrics_after)):
        good, bad = scores[some.label > 0], scores[some.label == 0]
        wins = (good[:, None] > bad).float().mean()
        assert found["auroc"] == pytest.approx(float(wins), abs=1e-6)
        assert 0 < found["recall@20"] <= 1
    assert report.metrics_before != report.metrics_after


# --- a new process

SCRIPT = """
import sys
import lightning, torch
from lightning_ifru import (
    IFRU,
    DataError,
    IFRUCallback,
    InteractionDataModule,
    ObjectiveError,
    RequestError,
    UnlearningRequest,
)
from lightning_ifru.models import LightGCN

ratings, checkpoint, folder, user, other = sys.argv[1:]
data = InteractionDataModule(ratings, rating="rating", threshold=3.0, batch_size=64, seed=3)
assert user in data.user_ids.tolist()
model = LightGCN.load_from_checkpoint(checkpoint)
trainer = lightning.Trainer(
    accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
    default_root_dir=folder, callbacks=[IFRUCallback(IFRU(max_steps=2))],
)
report = trainer.unlearn(data, model=model, request=UnlearningRequest(users=[other]), ckpt_path=checkpoint)
data.forget(UnlearningRequest(users=[user]))
again = data.removal()
data.discard()
batches = [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()]
torch.save(
    {
        "again": (len(again.positions), again.absent),
        "graph": data.graph(),
        "users": torch.cat([batch["user"] for batch in batches]),
        "ids": data.user_ids.tolist(),
        "table": model.net.embedding.weight.detach(),
        "ledger": len(trainer.callbacks[0].ledger),
        "checkpoint": report.checkpoint,
        "report": report.to_json(),
    },
    folder + "/result.pt",
)
"""


def test_in_a_new_process_what_the_checkpoint_has_forgotten_stays_forgotten(trained, planted, tmp_path):
    ratings = tmp_path / "ratings.csv"
    rows = zip(planted["user"], planted["item"], planted["rating"], strict=True)
    ratings.write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r in rows))
    settings = {"rating": "rating", "threshold": 3.0, "batch_size": 64, "seed": 3}
    trainer, _, data = trained(data=InteractionDataModule(ratings, **settings))
    user, other = data.user_ids[4], data.user_ids[12]
    first = trainer.unlearn(data, request=UnlearningRequest(users=[user]))
    folder = tmp_path / "new"
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(ratings), first.checkpoint, str(folder), user, other]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = torch.load(folder / "result.pt", weights_only=True)
    assert result["ids"][4] is None
    assert result["ids"][12] is None
    assert result["ids"][5] == data.user_ids[5]
    assert result["again"] == (0, 1)
    for erased in (4, 12):
        assert not (result["users"] == erased).any()
        assert not (result["graph"] == erased).any()
    assert (result["graph"] == 5).any()
    assert result["ledger"] == 2
    # The same second request in this process arrives at the same weights.
    trainer.unlearn(data, request=UnlearningRequest(users=[other]))
    model = trainer.lightning_module
    torch.testing.assert_close(result["table"], table_of(model).detach(), rtol=0, atol=1e-5)
    assert torch.equal(result["graph"], data.graph())
    unlearned = Path(result["checkpoint"]).read_bytes()
    assert user.encode() not in unlearned
    assert other.encode() not in unlearned


def test_every_second_is_of_a_phase(trained):
    trainer, _, data = trained()
    began = time.perf_counter()
    report = trainer.unlearn(data, request=request_for(data))
    seconds = dict(report.seconds)
    passed = time.perf_counter() - began
    assert list(seconds) == ["prepare", "influence", "solve", "check", "evaluate", "apply", "checkpoint", "total"]
    assert 0 < seconds.pop("total") < passed
    assert report.seconds["total"] == pytest.approx(sum(seconds.values()))
    assert min(seconds.values()) >= 0


def test_without_evaluation_the_model_is_the_same_and_the_report_says_what_it_lacks(
    trained, make_trainer, make_model, tmp_path
):
    reports, models = [], []
    for evaluate in (True, False):
        trainer, model, data = trained()
        trainer.loggers = [CSVLogger(tmp_path / str(evaluate))]
        (callback,) = (c for c in trainer.callbacks if isinstance(c, IFRUCallback))
        callback.evaluate = evaluate
        reports.append(trainer.unlearn(data, request=request_for(data)))
        models.append(model)
    measured, bare = reports
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))
    assert measured.evaluated
    assert not bare.evaluated
    assert bare.metrics_before == bare.metrics_after == bare.top_changes == bare.score_shift == {}
    assert "evaluate" not in bare.seconds
    assert bare.residual_after == measured.residual_after
    assert set(measured.scalars()) > set(bare.scalars()) > {"unlearn/residual_after", "unlearn/seconds/total"}
    assert "not evaluated" in str(bare)
    assert "not evaluated" not in str(measured)
    assert json.loads(bare.to_json())["metrics_after"] == {}


def test_a_checkpoint_that_was_refused_is_not_loaded_by_the_next_call(trained):
    trainer, model, data = trained("bpr")
    old = trainer.checkpoint_callback.best_model_path
    trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[0]]))
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DataError, match="would bring back"):
        trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[1]]), ckpt_path=old)
    assert all(torch.equal(*both) for both in zip(weights, model.parameters(), strict=True))
    report = trainer.unlearn(data, request=UnlearningRequest(users=[data.user_ids[1]]))
    assert report.num_users_erased == 1
