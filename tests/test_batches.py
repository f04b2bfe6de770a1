"""The order of training: everything once an epoch, by seed and epoch alone, and paired with that of the original."""

import json
import subprocess
import sys

import lightning
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru import InteractionDataModule, UnlearningRequest
from lightning_ifru.batches import TrainingBatches
from lightning_ifru.interactions import InteractionTable
from lightning_ifru.splits import RandomSplit


def table_of(rows, users=9, items=7, held_out=0.2):
    generator = torch.Generator().manual_seed(1)
    pair = torch.randperm(users * items, generator=generator)[:rows]
    frame = pd.DataFrame({"user": (pair // items).tolist(), "item": (pair % items).tolist()})
    return InteractionTable(frame, split=RandomSplit(held_out, 0.0))


def forget(table, **what):
    table.remove(table.plan(UnlearningRequest(**what)))


def train_pairs(table):
    some = table.select("train")
    return list(zip(some.user.tolist(), some.item.tolist(), strict=True))


def epochs(table, batch_size, negatives, seed, count=2):
    batches = TrainingBatches(table, batch_size, negatives, seed)
    for epoch in range(count):
        batches.set_epoch(epoch)
        yield [batches[k] for k in range(len(batches))]


def rows_of(batch):
    columns = [batch["user"].tolist(), batch["item"].tolist(), batch["negative"].tolist()]
    return list(zip(*columns, strict=True))


@given(rows=st.integers(5, 40), batch_size=st.integers(1, 50), share=st.floats(0, 0.9), seed=st.integers(-5, 2**63))
def test_what_is_left_is_seen_once_an_epoch_in_as_many_batches_every_time(rows, batch_size, share, seed):
    table = table_of(rows)
    pairs = train_pairs(table)
    gone = pairs[: min(int(share * len(pairs)), len(pairs) - 1)]
    if gone:
        ids = [(table.users.ids[u], table.items.ids[i]) for u, i in gone]
        forget(table, interactions=ids)
    kept = train_pairs(table)
    for batches in epochs(table, batch_size, 2, seed):
        seen = [row[:2] for batch in batches for row in rows_of(batch)]
        assert sorted(seen) == sorted(kept)
        assert all(len(batch["user"]) for batch in batches)
        assert len(batches) == min(-(-len(pairs) // batch_size), len(kept))


def test_the_forgotten_leave_gaps_and_everything_else_stays_where_it_was():
    whole, part = table_of(60), table_of(60)
    user = whole.users.ids[3]
    forget(part, users=[user])
    dropped = 0
    for before, after in zip(epochs(whole, 8, 3, seed=4), epochs(part, 8, 3, seed=4), strict=True):
        assert len(before) == len(after)
        for original, retrained in zip(before, after, strict=True):
            wanted = [row for row in rows_of(original) if row[0] != 3]
            assert rows_of(retrained) == wanted
            dropped += len(rows_of(original)) - len(wanted)
    assert dropped == 2 * sum(u == 3 for u, _ in train_pairs(whole)) > 0


def test_only_negatives_that_fall_on_a_withdrawn_item_are_drawn_anew():
    whole, part = table_of(60), table_of(60)
    forget(part, items=[whole.items.ids[2]])
    redrawn = 0
    for before, after in zip(epochs(whole, 8, 3, seed=4), epochs(part, 8, 3, seed=4), strict=True):
        for original, retrained in zip(before, after, strict=True):
            wanted = [row for row in rows_of(original) if row[1] != 2]
            for old, new in zip(wanted, rows_of(retrained), strict=True):
                assert old[:2] == new[:2]
                for was, now in zip(old[2], new[2], strict=True):
                    assert now != 2
                    assert was in (2, now)
                    redrawn += was == 2
    assert redrawn > 0


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_order_and_negatives_change_with_seed_and_epoch(seed):
    one, two = epochs(table_of(60), 8, 1, seed)
    other, _ = epochs(table_of(60), 8, 1, 7)
    again, _ = epochs(table_of(60), 8, 1, seed)
    assert [rows_of(b) for b in one] == [rows_of(b) for b in again]
    assert [rows_of(b) for b in one] != [rows_of(b) for b in two]
    assert [rows_of(b) for b in one] != [rows_of(b) for b in other]


def test_what_is_forgotten_while_a_loader_lives_does_not_turn_into_blanks():
    table = table_of(60)
    batches = TrainingBatches(table, 8, 1, 0)
    forget(table, users=[table.users.ids[3]])
    assert all((batches[k]["user"] >= 0).all() for k in range(len(batches)))


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("loss", ["bce", "bpr"])
def test_a_fit_from_the_same_seed_without_the_forgotten_is_paired_retraining(
    planted, make_data, make_model, make_trainer, loss, layers
):
    """Against training by hand on the original's recorded batches, with the forgotten struck out of them."""
    request = UnlearningRequest(users=["person-004"])
    data, recorded = make_data(loss), []

    class Record(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            recorded.append({name: column.clone() for name, column in batch.items()})

    def fit(data, callbacks):
        lightning.seed_everything(11, verbose=False)
        model = make_model(loss, layers).double()
        make_trainer(callbacks=callbacks, max_epochs=3, enable_checkpointing=False).fit(model, datamodule=data)
        return model

    original = fit(data, [Record()])
    person = data.user_ids.tolist().index("person-004")
    data.forget(request)
    data.commit(data.removal())
    retrained = fit(data, [])

    by_hand = make_model(loss, layers).double()
    optimizer = by_hand.configure_optimizers()
    struck = 0
    for batch in recorded:
        kept = batch["user"] != person
        struck += int((~kept).sum())
        user, item = batch["user"][kept], batch["item"][kept] + data.num_users
        h = by_hand.encode(data.graph())
        scores = (h[user] * h[item]).sum(-1)
        if loss == "bpr":
            against = (h[user][:, None] * h[batch["negative"][kept] + data.num_users]).sum(-1)
            risk = torch.nn.functional.softplus(against - scores[:, None]).mean()
        else:
            risk = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["label"][kept].double())
        optimizer.zero_grad()
        risk.backward()
        optimizer.step()
    assert struck > 0
    for name, wanted in by_hand.named_parameters():
        found = retrained.get_parameter(name)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert float((found - original.get_parameter(name)).norm()) > 1e-3


@pytest.mark.parametrize("split", ["random", "leave_one_out", "temporal", "given"])
@pytest.mark.parametrize("duplicates", ["latest", "keep"])
def test_a_checkpoint_that_has_forgotten_leaves_the_same_gaps(planted, split, duplicates):
    """In a new process, on the source as it was: which rows training had is known again."""
    rows = len(planted["user"])
    more = {
        "when": [k * 7 % 50 for k in range(rows)],
        "split": [("train", "val", "test")[k % 7 % 3] for k in range(rows)],
    }
    # Every twentieth pair occurs twice.
    source = {name: [*column, *column[::20]] for name, column in (planted | more).items()}
    settings = {"rating": "rating", "threshold": 3.0, "timestamp": "when", "duplicates": duplicates}
    first, whole, second = (
        InteractionDataModule(source, **settings, split=name, seed=seed)
        for name, seed in ((split, 3), (split, 3), ("random", 9))
    )
    assert len(whole.table) - len(set(zip(planted["user"], planted["item"], strict=True))) == (
        len(planted["user"][::20]) if duplicates == "keep" else 0
    )
    first.forget(UnlearningRequest(users=["person-004"]))
    first.commit(first.removal())
    second.load_state_dict(first.state_dict())
    assert not torch.equal(first.table.trained, first.table.split == 0)
    assert torch.equal(first.table.trained, whole.table.trained)
    assert torch.equal(first.table.trained, second.table.trained)
    columns = ("user", "item", "label")
    for original, one, other in zip(*(labelled_rows(d, columns) for d in (whole, first, second)), strict=True):
        assert one == other == [row for row in original if row[0] != 4]


def labelled_rows(data, columns):
    batches = TrainingBatches(data.table, 16, 0, seed=2)
    for k in range(len(batches)):
        yield list(zip(*(batches[k][name].tolist() for name in columns), strict=True))


def test_a_fit_that_resumes_goes_on_with_the_epoch_it_had_come_to(make_data, make_model, make_trainer, tmp_path):
    seen = {}

    class Record(lightning.Callback):
        def __init__(self, name):
            self.batches = seen.setdefault(name, {})

        def on_train_batch_start(self, trainer, module, batch, index):
            self.batches.setdefault(trainer.current_epoch, []).append(rows_of(batch))

    def fit(name, epochs, ckpt_path=None):
        lightning.seed_everything(11, verbose=False)
        trainer = make_trainer(callbacks=[Record(name)], max_epochs=epochs, enable_checkpointing=False)
        trainer.fit(make_model("bpr"), datamodule=make_data("bpr"), ckpt_path=ckpt_path)
        return trainer

    fit("half", 2).save_checkpoint(tmp_path / "half.ckpt")
    fit("resumed", 4, tmp_path / "half.ckpt")
    fit("whole", 4)
    assert seen["resumed"].keys() == {2, 3}
    assert all(seen["resumed"][epoch] == seen["whole"][epoch] for epoch in (2, 3))
    assert seen["whole"][0] != seen["whole"][2]


_TWO_PROCESSES = """
import json, os, sys, lightning, torch
from lightning_ifru import InteractionDataModule
from lightning_ifru.models import MatrixFactorization

class Recorded(MatrixFactorization):
    seen = []
    def training_step(self, batch, index):
        self.seen.extend(zip(batch["user"].tolist(), batch["item"].tolist()))
        return super().training_step(batch, index)

torch.manual_seed(int(os.environ["RANK"]))  # as if nobody had seeded: every process has a seed of its own
pairs = [(u, i) for u in range(12) for i in range(10) if (u * i) % 3]
data = InteractionDataModule({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}, batch_size=8,
                             val_fraction=0, test_fraction=0)
model = Recorded(data.num_users, data.num_items, embedding_dim=4)
trainer = lightning.Trainer(max_epochs=1, devices=2, strategy="ddp", accelerator="cpu", logger=False,
                            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, datamodule=data)
with open(sys.argv[1] + os.environ["RANK"], "w") as file:
    json.dump(model.seen, file)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo")
def test_two_processes_that_nobody_has_seeded_share_one_order(tmp_path):
    """Each row of the data once in an epoch, in one process or the other, but for the batch that evens them out."""
    script = tmp_path / "fit.py"
    script.write_text(_TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*launch, script, tmp_path / "seen"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [tuple(pair) for rank in "01" for pair in json.loads((tmp_path / f"seen{rank}").read_text())]
    wanted = {(u, i) for u in range(12) for i in range(10) if (u * i) % 3}
    assert len(set(rows)) == len(wanted)
    assert len(rows) - len(wanted) in range(9)
