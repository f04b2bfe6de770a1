"""What a scan finds in a folder and what it does not mistake for a person; what a purge deletes and what never."""

import bz2
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import sqlite3
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru import DataError, UnlearningRequest, scan_packed
from lightning_ifru.cli import main
from lightning_ifru.needles import Needles, is_telling
from lightning_ifru.outputs import sha256_of
from lightning_ifru.purging import purge, to_purge
from lightning_ifru.scan import look, scan

TELLING = "person-003"
NUMBER = 7_340_112_905_866


def naive(data, ids):
    """How often each id stands in a text by itself, by a loop over all places."""
    word = re.compile(rb"[0-9A-Za-z\x80-\xff]")
    counts = {}
    for number, text in enumerate(ids):
        form, count = text.encode(), 0
        for place in range(len(data) - len(form) + 1):
            if data[place : place + len(form)] != form:
                continue
            before, after = data[max(0, place - 1) : place], data[place + len(form) : place + len(form) + 1]
            inside = word.match(form[:1]) and word.match(before)
            count += not (inside or (word.match(form[-1:]) and word.match(after)))
        if count and is_telling(text):
            counts[number] = count
    return counts


@given(st.lists(st.sampled_from(["abc-12", "abc-123", "bc-12.x", " ", "é", "\n", "a", "-", "9", "zu", "abcdef"])))
def test_text_is_searched_as_a_loop_over_all_places_does(parts):
    ids = ["abc-12", "abc-123", "bc-12.x", "abc", "é-abc-12"]
    data = "".join(parts).encode()
    needles = Needles(UnlearningRequest(users=ids))
    assert dict(needles.in_bytes(data, text=True)) == naive(data, ids)


def test_a_long_text_is_searched_as_a_short_one():
    ids = [f"member-{k:05d}" for k in range(0, 3000, 3)]
    rng = np.random.default_rng(5)
    words = [f"member-{k:05d}" for k in rng.integers(0, 3000, 4000)]
    needles = Needles(UnlearningRequest(users=ids))
    found = needles.in_bytes(" ".join(words).encode(), text=True)
    assert {ids[number]: count for number, count in found.items()} == {
        word: words.count(word) for word in set(words) & set(ids)
    }


def text_of(value):
    return lambda path: path.write_text(value, encoding="utf-8")


def frame(**columns):
    return pd.DataFrame(columns)


def event_file(path):
    writers = pytest.importorskip("torch.utils.tensorboard")
    folder = path.with_suffix("")
    with writers.SummaryWriter(folder) as writer:
        writer.add_text("asked", TELLING)
    shutil.move(next(folder.iterdir()), path)


#: By the file's name: who is asked for, and what writes a file in which they are.
HOLDS = {
    "ratings.csv": (42, lambda p: frame(userId=[7, 42], movieId=[1, 2]).to_csv(p, index=False)),
    "semicolons.csv": (42, lambda p: frame(userId=[7, 42], movieId=[1, 2]).to_csv(p, index=False, sep=";")),
    "padded.csv": (42, text_of("user , item\n 42 , 7\n")),
    "padded-quotes.csv": (42, text_of('"item", "user"\n"7", "42"\n')),
    "below-a-comment.csv": (42, text_of("# exported by somebody\n#\nuser,item\n42,7\n")),
    "merged.yaml": (42, text_of("one: &one {user: 42}\ntwo: {<<: *one, rating: 3}\n")),
    "ratings.tsv": (42, lambda p: frame(user=[7, 42]).to_csv(p, index=False, sep="\t")),
    "ratings.csv.gz": (42, lambda p: frame(user_id=["7", "42"]).to_csv(p, index=False)),
    "asked-as-a-float.csv": ("42.0", lambda p: frame(userId=[7, 42], movieId=[1, 2]).to_csv(p, index=False)),
    "asked-as-a-float.npy": (f"{NUMBER}.0", lambda p: np.save(p, np.array([1, NUMBER]))),
    "comments.csv": (TELLING, lambda p: frame(text=["x", f"as {TELLING}, said"]).to_csv(p, index=False)),
    "ratings.parquet": (42, lambda p: frame(users=[7, 42], x=[1, 2]).to_parquet(p)),
    "numbers.parquet": (NUMBER, lambda p: frame(x=[7, NUMBER]).to_parquet(p)),
    "words.parquet": (TELLING, lambda p: frame(x=["7", TELLING]).to_parquet(p)),
    "request.json": (42, text_of('{"users": [42], "items": []}')),
    "escaped.json": ("søren@example.org", text_of(json.dumps({"note": "søren@example.org"}))),
    "nested.json": (42, text_of('{"a": [{"user": {"id": "42"}}]}')),
    "keys.json": (TELLING, text_of(json.dumps({"scores": {TELLING: 0.5}}))),
    "lines.jsonl": (42, text_of('{"user": 7}\n\n{"user": 42}\n')),
    "settings.yaml": (42, text_of("data: {users: [7, 42]}\n")),
    "hparams.yaml": (42, lambda p: p.write_text(yaml.dump({"source": {"user": (7, 42)}}))),
    "report.html": ("a&b-person", text_of("<p>Forgotten: a&amp;b-person</p>")),
    "run.log": (TELLING, text_of(f"INFO epoch 3\nINFO user={TELLING}\n")),
    "long.log": (TELLING, text_of("x" * (9 << 20) + f" {TELLING} " + "y" * (5 << 20))),
    "no-suffix": (NUMBER, text_of(f"asked for {NUMBER}.")),
    "run.log.gz": (TELLING, lambda p: p.write_bytes(gzip.compress(f"user={TELLING}".encode()))),
    "utf-16.txt": (TELLING, lambda p: p.write_text(f"user={TELLING}", encoding="utf-16")),
    "events.out.tfevents.1.x.0": (TELLING, event_file),
    "rows.npy": (NUMBER, lambda p: np.save(p, np.array([1, NUMBER]))),
    "rows.npz": (42, lambda p: np.savez_compressed(p, user=np.array([1, 42]))),
    "raw.bin": (NUMBER, lambda p: p.write_bytes(b"\0\0\0" + np.array([1, NUMBER], dtype="<i8").tobytes())),
    "big-endian.bin": (NUMBER, lambda p: p.write_bytes(b"\0" + np.array([1, NUMBER], dtype=">i8").tobytes())),
    "an.pkl": (NUMBER, lambda p: p.write_bytes(pickle.dumps([1, NUMBER]))),
    "plain.pt": (42, lambda p: torch.save({"users": torch.tensor([1, 42])}, p)),
    "hidden.pt": (NUMBER, lambda p: torch.save({"part": torch.tensor([NUMBER, 7])[1:]}, p)),
}


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


def zip_of(**members):
    archive = io.BytesIO()
    zipped(archive, **members)
    return archive.getvalue()


def tarred(path, mode, **members):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


TABLE = b"user,item\n7,a\n42,b\n"
HOLDS |= {
    "ratings.csv.zip": (42, lambda p: zipped(p, ratings__csv=TABLE)),
    "zip-in.zip": (42, lambda p: zipped(p, a__zip=zip_of(ratings__csv=TABLE), readme=b"hello")),
    "pressed.zip": (TELLING, lambda p: zipped(p, notes__txt=f"{TELLING} ".encode() * 20)),
    "run.tgz": (42, lambda p: tarred(p, "w:gz", ratings__csv=TABLE, other=b"1" * 600)),
    "run.tar.xz": (42, lambda p: tarred(p, "w:xz", other=b"1" * 600, ratings__csv=gzip.compress(TABLE))),
    "gz-without-suffix": (42, lambda p: p.write_bytes(gzip.compress(TABLE))),
    "json-without-suffix": (42, lambda p: p.write_bytes(bz2.compress(b'{"users": [42]}'))),
    "parquet-without-suffix": (42, lambda p: p.write_bytes(frame(user=[7, 42]).to_parquet())),
    "utf-16-without-mark.txt": (TELLING, lambda p: p.write_bytes(f"user={TELLING}".encode("utf-16-le"))),
    "utf-16-without-mark.csv": (42, lambda p: p.write_bytes(TABLE.decode().encode("utf-16-be"))),
    "utf-32.csv": (42, lambda p: p.write_bytes(TABLE.decode().encode("utf-32"))),
    "sparse.pt": (NUMBER, lambda p: torch.save({"x": torch.tensor([[0, NUMBER]]).to_sparse()}, p)),
    "sparse-users.pt": (42, lambda p: torch.save({"users": torch.tensor([[0, 42]]).to_sparse_csr()}, p)),
    "half.pt": (42, lambda p: torch.save({"users": torch.tensor([0, 42], dtype=torch.bfloat16)}, p)),
}
#: Of no kind that is read, so that only the long ids in them can be found.
RAW = ("raw.bin", "big-endian.bin", "an.pkl")
PAIRS = {
    "pairs.csv": ((42, 7), lambda p: frame(user=[42, 8], item=[7, 42]).to_csv(p, index=False)),
    "asked-as-floats.csv": (("42.0", "7.0"), lambda p: frame(user=[42, 8], item=[7, 42]).to_csv(p, index=False)),
    "pairs.json": ((42, 7), text_of('{"interactions": [[42, 7]]}')),
    "record.jsonl": ((42, 7), text_of('{"user": 42, "rating": 3, "item": 7}\n')),
    "pairs.log": ((TELLING, "film-007"), text_of(f"film-007 for {TELLING}\n")),
    "columns.pt": ((42, 7), lambda p: torch.save({"user": [1, 42], "item": np.array([1, 7]).tolist()}, p)),
}


@pytest.mark.parametrize("name", HOLDS)
def test_whoever_is_in_a_file_is_found_and_nobody_else(name, tmp_path):
    who, write = HOLDS[name]
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    write(tmp_path / name)
    names = {"user": "userId", "item": "movieId"}
    report = scan(tmp_path, UnlearningRequest(users=["some-one-else", 43, who]), **names)
    assert [(one.file, one.entries) for one in report.findings] == [(name, ["user (entry 3)"])]
    assert [one.reason[:10] for one in report.unseen] == ["of no kind"] * (name in RAW)
    assert str(who) not in str(report.findings)
    absent = scan(tmp_path, UnlearningRequest(users=["some-one-else", 43]), **names)
    assert absent.findings == []


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_found_where_both_are_and_not_where_one_is(name, tmp_path):
    (user, item), write = PAIRS[name]
    write(tmp_path / name)
    report = scan(tmp_path, UnlearningRequest(interactions=[(user, item)]))
    assert [(one.file, one.entries, one.count) for one in report.findings] == [(name, ["interaction (entry 1)"], 1)]
    others = [(user, "film-008"), ("person-004", item)]
    others += [(item, user)] if name != "pairs.log" else []  # a text does not say who is who
    assert scan(tmp_path, UnlearningRequest(interactions=others)).findings == []


def database(path):
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("create table ratings (user integer)")
        base.execute("insert into ratings values (42)")
        base.commit()


def locked(path):
    zipped(path, ratings__csv=TABLE)
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # as if with a password
        data[data.index(mark) + flags] |= 1
    path.write_bytes(data)


def nested(path):
    content = TABLE
    for _ in range(6):
        content = zip_of(a=content)
    path.write_bytes(content)


#: What nobody looks into: what writes it, and what is said of it.
DARK = {
    "ratings.sqlite": (database, "of no kind that is read here"),
    "packed.zlib": (lambda p: p.write_bytes(zlib.compress(TABLE * 9)), "of no kind that is read here"),
    "ratings.feather": (lambda p: frame(user=[7, 42] * 9).to_feather(p), "of no kind that is read here"),
    "packed.7z": (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c\0\4" + b"x" * 50), "of no kind that is read here"),
    "locked.zip": (locked, "ratings.csv: not unpacked (File "),
    "nested.zip": (nested, "a/a/a/a: not unpacked as zip (it is packed more than 4 times)"),
    "torn.zip": (lambda p: p.write_bytes(zip_of(a=TABLE * 9)[:-30]), "not unpacked as zip"),
    "torn.csv.gz": (lambda p: p.write_bytes(gzip.compress(os.urandom(2000))[:900]), "not read to its end"),
    "image-in.zip": (lambda p: zipped(p, a__png=b"\x89PNG\r\n\0\0"), "a.png: of no kind that is read here"),
}


@pytest.mark.parametrize("name", DARK)
def test_nothing_is_said_to_be_clean_that_nobody_has_looked_into(name, tmp_path, capsys):
    write, said = DARK[name]
    if name.endswith(".feather"):
        pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / name)
    report = scan(tmp_path / "in", UnlearningRequest(users=[42]))
    assert report.findings == []
    assert {one.file for one in report.unseen} == {name}
    assert report.unseen[0].reason.startswith(said)
    (tmp_path / "forget.csv").write_text("user\n42\n")
    assert main(["scan", str(tmp_path / "in"), "--request", str(tmp_path / "forget.csv")]) == 0
    assert "1 of them or beside them not looked into" in " ".join(capsys.readouterr().out.split())


BOMBS = {
    "empty.json": lambda: f"[{'{},' * 500_000}1]",
    "lists.json": lambda: f"[{'[1],' * 80_000}1]",
    "records.json": lambda: "[" + '{"user": 7},' * 40_000 + "1]",
    "long.json": lambda: f"[{'1,' * (3 << 20)}1]",
    "long-without-suffix": lambda: "[\n" + "{},\n" * (1 << 20) + "1]",
    "a-long-line.jsonl": lambda: f"[{'1,' * (3 << 20)}1]",
    "long.yaml": lambda: "- {}\n" * (1 << 18),
    "deep.json": lambda: "[" * (1 << 20),
    "deep.yaml": lambda: "[" * 500_000,
    "deeper.yaml": lambda: "- " * 100_000,
    "merged.yaml": lambda: (
        "a-1: &a-1 {x: 1}\n" + "\n".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}" for k in range(12))
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_neither_all_time_nor_all_memory(name, tmp_path):
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(BOMBS[name]().encode()))
    assert (tmp_path / f"{name}.gz").stat().st_size < 1 << 16
    since, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = scan(tmp_path, UnlearningRequest(users=[7]))
    assert time.process_time() - since < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 << 10
    assert len(report.findings) == (name == "records.json")
    refused = name.startswith(("long", "a-long", "deep"))
    assert [one.reason[:8] for one in report.unseen] == ["not read"] * refused


def test_what_unpacks_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_packed, "MOST_UNPACKED", 1 << 20)
    monkeypatch.setattr(scan_packed, "MOST_FILES", 3)
    zipped(tmp_path / "large.zip", a=bytes(2 << 20), b=TABLE)
    zipped(tmp_path / "many.zip", **{f"{letter}__txt": b"x" for letter in "abcdef"})
    report = scan(tmp_path, UnlearningRequest(users=[42]))
    assert {one.file: one.reason for one in report.unseen} == {
        "large.zip": "not unpacked as zip (more than 0 GiB are packed in it)",
        "many.zip": "not unpacked as zip (more than 3 files are packed in it)",
    }


def test_a_name_in_an_archive_tells_and_is_not_repeated(tmp_path):
    zipped(tmp_path / "a.zip", **{f"{TELLING}__png": b"\x89PNG\0", f"{TELLING}__csv": TABLE})
    report = scan(tmp_path, UnlearningRequest(users=[TELLING, 42]))
    assert {one.where for one in report.findings} == {"names of packed files", "…: column 'user', from row 2 on"}
    assert [one.reason[:13] for one in report.unseen] == ["…: of no kind"]
    assert TELLING not in str(report)


def test_a_name_of_a_file_can_tell_too(tmp_path):
    (tmp_path / f"forget-{TELLING}.txt").write_text("")
    (tmp_path / "42.txt").write_text("")
    (tmp_path / f"of-{TELLING}").mkdir()
    (tmp_path / f"of-{TELLING}" / "a.txt").write_text("")
    os.link(tmp_path / "42.txt", tmp_path / f"{TELLING}.link")
    (tmp_path / f"to-{TELLING}").symlink_to("42.txt")
    report = scan(tmp_path, UnlearningRequest(users=[TELLING, 42]))
    assert [(one.where, one.entries) for one in report.findings] == [("its name", ["user (entry 1)"])] * 4


@pytest.mark.parametrize("name", [b"a\xff\xfe.csv", b"\x1b[31m[bold]a.csv", "\u202ea.csv".encode()])
def test_strange_names_of_files_are_shown_as_text(tmp_path, capsys, name):
    folder = tmp_path / "names"
    folder.mkdir()
    Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_text("user\n42\n")
    (tmp_path / "forget.csv").write_text("user\n42\n")
    assert main(["scan", str(folder), "--request", str(tmp_path / "forget.csv")]) == 3
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown
    shown.encode()
    assert ("[bold]" in shown) == (b"[bold]" in name)


def test_two_ids_far_from_each_other_are_no_pair(tmp_path):
    lists = {"users": [TELLING, *(f"person-{k}" for k in range(100, 150))], "items": ["film-007"]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    (tmp_path / "two.log").write_text(f"{TELLING}\nfilm-007\n")
    assert scan(tmp_path, UnlearningRequest(interactions=[(TELLING, "film-007")])).findings == []


INNOCENT = {
    "metrics.csv": "epoch,step,val_loss\n42,7,0.42\n",
    "hparams.yaml": "embedding_dim: 42\nnum_users: 42\nlayers: [42, 42]\nuser: userId\n",
    "report.json": '{"num_forgotten": 42, "seconds": {"total": 42}, "top_changes": {"1": [42, 0]}}',
    "run.log": "epoch 42 of 42, loss 42.0, at 2026-11-22 19:42\n",
    "wide.txt": f"0.{NUMBER} {NUMBER}.5 1{NUMBER} person-0031 xperson-003 person-003x",
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_only_looks_like_an_id_is_none(name, tmp_path):
    (tmp_path / name).write_text(INNOCENT[name])
    torch.save(
        {"state_dict": {"w": torch.full((3, 2), 42.0)}, "epoch": 42, "best": torch.tensor(42)}, tmp_path / "a.pt"
    )
    report = scan(tmp_path, UnlearningRequest(users=[42, NUMBER, TELLING], items=["accuracy", "loss", 42]))
    assert report.findings == []
    assert (report.num_files, report.num_quiet, report.num_entries) == (2, 4, 6)


@pytest.fixture(scope="session")
def forgotten_folder(tmp_path_factory, planted):
    """A folder with a checkpoint from before and one from after forgetting two users and a pair."""
    from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule
    from lightning_ifru.models import LightGCN

    folder = tmp_path_factory.mktemp("forgotten")
    data = InteractionDataModule(planted, rating="rating", threshold=3.0, batch_size=64, seed=3)
    torch.manual_seed(1)
    model = LightGCN(data.num_users, data.num_items, embedding_dim=4, num_layers=1, loss="bce", lr=0.05)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [IFRUCallback(IFRU(max_steps=1), evaluate=False)]
    trainer = lightning.Trainer(
        max_epochs=10, callbacks=callbacks, enable_checkpointing=False, default_root_dir=folder, **quiet
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "before.ckpt")
    pair = (data.user_ids[int(data.train.user[-1])], data.item_ids[int(data.train.item[-1])])
    pd.DataFrame({"user": ["person-003", "person-004", pair[0]], "item": ["", "", pair[1]]}).to_csv(
        folder / "forget.csv", index=False
    )
    trainer.unlearn(data, request=folder / "forget.csv", ckpt_path=folder / "before.ckpt", output=folder / "after.ckpt")
    return folder


@pytest.fixture
def folder(forgotten_folder, tmp_path):
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(forgotten_folder, tmp_path / "run"))


def refused(folder):
    """Why a purge deletes nothing, by the checkpoints that remember."""
    found = look(folder, folder / "forget.csv")
    assert to_purge(found) == {}
    files = {path for path in folder.rglob("*") if path.name != ".lightning-ifru.lock"}
    report = purge(found, {})
    assert {path for path in folder.rglob("*") if path.name != ".lightning-ifru.lock"} == files
    assert report.findings == found.report.findings != []
    return report.kept


def found_in(report):
    return sorted({(one.file, one.kind) for one in report.findings})


def edited(path, change, to=None):
    """Write a checkpoint with something changed in it."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, to or path)


def test_a_checkpoint_from_before_remembers_and_one_from_after_does_not(folder):
    report = scan(folder, folder / "forget.csv")
    assert report.checkpoints == {"after.ckpt": "has forgotten", "before.ckpt": "remembers"}
    assert found_in(report) == [("before.ckpt", "checkpoint")]
    assert {one.where: one.entries for one in report.findings} == {
        "InteractionDataModule, ids of users": ["user (line 2)", "user (line 3)"],
        "InteractionDataModule, pairs that it has not forgotten": ["interaction (line 4)"],
    }
    assert [one.file for one in report.unseen] == ["forget.csv"]
    assert report.num_files == len([p for p in folder.rglob("*") if p.is_file()]) - 1


def test_a_request_that_nobody_has_carried_out_is_remembered_by_all(folder):
    report = scan(folder, UnlearningRequest(users=["person-009"]))
    assert set(report.checkpoints.values()) == {"remembers"}


@pytest.mark.parametrize(
    "asked", [{"users": ["3.0"]}, {"items": ["12.00"]}, {"interactions": [("3.0", 12)]}, {"users": [3]}]
)
def test_a_whole_number_with_a_fraction_is_asked_of_checkpoints_as_unlearning_takes_it(tmp_path, asked):
    from lightning_ifru import InteractionDataModule

    request = UnlearningRequest(**asked)
    data = InteractionDataModule({"user": [3, 3, 4, 4, 5], "item": [12, 11, 12, 11, 13]}, val_fraction=0, seed=0)
    data.setup("fit")
    torch.save({"InteractionDataModule": data.state_dict()}, tmp_path / "before.ckpt")
    data.forget(request)
    data.commit(data.removal())
    torch.save({"InteractionDataModule": data.state_dict()}, tmp_path / "after.ckpt")
    assert scan(tmp_path, request).checkpoints == {"after.ckpt": "has forgotten", "before.ckpt": "remembers"}


PLACES = {
    "hyper_parameters.user_ids[]": lambda c: c.update(hyper_parameters={"user_ids": [["x", "person-003"]]}),
    "callbacks.Mine.seen": lambda c: c["callbacks"].update(
        Mine={"seen": torch.tensor([1]), "…": 1} | {"seen": TELLING}
    ),
    "optimizer_states[].note": lambda c: c.update(optimizer_states=[{"note": f"of {TELLING}"}]),
    "raw": lambda c: c.update(raw=torch.frombuffer(bytearray(f"..{TELLING}..".encode()), dtype=torch.uint8)),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_id_anywhere_in_a_checkpoint_makes_it_remember(folder, place):
    edited(folder / "after.ckpt", PLACES[place])
    report = scan(folder / "after.ckpt", folder / "forget.csv")
    assert report.checkpoints == {"after.ckpt": "remembers"}
    assert [(one.where, one.entries) for one in report.findings] == [(place, ["user (line 2)"])]


def test_a_row_that_was_not_drawn_anew_is_found_beside_the_older_checkpoint(folder):
    before = torch.load(folder / "before.ckpt", weights_only=True)["state_dict"]
    (name,) = (name for name, tensor in before.items() if len(tensor) == 70)

    def put_back(content):
        content["state_dict"][name][4] = before[name][4]

    edited(folder / "after.ckpt", put_back)
    report = scan(folder, folder / "forget.csv")
    assert ("after.ckpt", "rows") in found_in(report)
    assert "no checkpoint of the same model has forgotten" in refused(folder)["before.ckpt"]


def test_an_entry_recorded_under_another_key_cannot_be_told(folder, monkeypatch):
    monkeypatch.setenv("LIGHTNING_IFRU_KEY", "the key of another machine")
    report = scan(folder, folder / "forget.csv")
    assert report.checkpoints == {"after.ckpt": "cannot be told", "before.ckpt": "remembers"}
    assert [one.file for one in report.unseen if "another key" in one.reason] == ["after.ckpt"]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_a_checkpoint_with_more_than_values_is_listed_searched_and_never_run(folder, tmp_path):
    torch.save({"trap": Trap(str(tmp_path / "sprung")), "who": TELLING, "rows": NUMBER}, folder / "trap.ckpt")
    (folder / "torn.ckpt").write_bytes((folder / "after.ckpt").read_bytes()[:2000])
    report = scan(folder, UnlearningRequest(users=[TELLING, NUMBER]))
    assert not (tmp_path / "sprung").exists()
    unread = {one.file: one.reason for one in reversed(report.unseen)}  # the first of each
    assert unread.keys() >= {"trap.ckpt", "torn.ckpt"}
    assert "more than tensors and plain values" in unread["trap.ckpt"]
    assert [(one.entries, one.kind) for one in report.findings if one.file == "trap.ckpt"] == [
        (["user (entry 1)", "user (entry 2)"], "text")
    ]


STRANGE = {
    "ids that are no list": lambda state: state.update(user_ids=3),
    "ids of another kind": lambda state: state.update(item_ids=[[1], {2: 3}, None]),
    "a record that is none": lambda state: state.update(forgotten_record={"k": {"pairs": 3}}),
    "a number that is none": lambda state: state.update(num_forgotten="many"),
    "another number of ids": lambda state: state.update(user_ids=["person-003"]),
}


@pytest.mark.parametrize("what", STRANGE)
def test_no_strange_state_stops_a_scan(folder, what):
    edited(folder / "after.ckpt", lambda content: STRANGE[what](content["InteractionDataModule"]))
    report = scan(folder, folder / "forget.csv")
    assert report.checkpoints["before.ckpt"] == "remembers"
    assert "no checkpoint of the same model has forgotten what" in refused(folder)["before.ckpt"]


DAMAGE = [b"\0", b"\xff\xfe", b'"', b"[" * 3000, b"PK\3\4", b"\x80\2", b"9" * 30, b"&a [*a, *a]", b"\n", b","]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_damaged_file_stops_a_scan(tmp_path, seed, forgotten_folder):
    """Files of all kinds, each with some bytes put in, taken out or changed."""
    rng = random.Random(seed)
    for name, (_, write) in {**HOLDS, **PAIRS}.items():
        if name != "long.log" and not name.endswith((".parquet", ".0")):
            write(tmp_path / name)
    shutil.copy(forgotten_folder / "after.ckpt", tmp_path)
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for number in range(100 if seed else 6):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(data) + 1)
                data[at : at + rng.choice([0, 0, 1, 5, 200, len(data)])] = rng.choice(DAMAGE)
            path.with_name(f"{number}-{path.name}").write_bytes(data)
    files = len(list(tmp_path.iterdir()))
    request = UnlearningRequest(users=[42, TELLING, NUMBER], interactions=[(42, 7)])
    report = scan(tmp_path, request, user="userId", item="movieId")
    assert report.num_files == files > 200
    assert 50 < len({one.file for one in report.findings}) < files
    assert {Path(one.file).suffix for one in report.unseen} >= {".pt", ".ckpt", ".json", ".yaml", ".npz"}
    assert str(report)


def test_weights_without_the_state_of_the_data_cannot_be_told(folder):
    edited(folder / "after.ckpt", lambda c: c.pop("InteractionDataModule"), folder / "weights.ckpt")
    report = scan(folder, folder / "forget.csv")
    assert report.checkpoints["weights.ckpt"] == "cannot be told"


def test_links_out_of_the_folder_are_listed_and_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text(TELLING)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "out.txt").symlink_to(tmp_path / "elsewhere" / "a.txt")
    (folder / "again.ckpt").symlink_to(folder / "before.ckpt")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    report = scan(folder, folder / "forget.csv")
    assert {one.file: one.reason for one in report.unseen if one.file != "forget.csv"} == {
        "out": "a link out of the folder, not followed",
        "out.txt": "a link out of the folder, not followed",
        "pipe": "no plain file",
    }
    assert found_in(report) == [("before.ckpt", "checkpoint")]


@pytest.mark.parametrize("name", [".lightning-ifru-ab12cd_9", ".report.json-ab12cd_9"])
def test_what_a_killed_process_has_left_is_found(folder, name):
    (folder / name).mkdir()
    (folder / name / "half.ckpt").write_bytes(b"PK\3\4 half")
    (folder / ".cache-somebody").mkdir()
    assert (name, "unfinished") in found_in(scan(folder, folder / "forget.csv"))
    assert len(scan(folder, folder / "forget.csv").findings) == 3


def test_a_purge_deletes_what_remembers_and_nothing_else(folder):
    (folder / "ratings.csv").write_text("user,item\nperson-003,film-001\n")
    shutil.copy(folder / "before.ckpt", folder / "epoch=1.ckpt")
    found = look(folder, folder / "forget.csv")
    files = {p.name for p in folder.iterdir()}
    report = purge(found, to_purge(found))
    assert files - {p.name for p in folder.iterdir()} == {"before.ckpt", "epoch=1.ckpt"} == set(report.purged)
    assert found_in(report) == [("ratings.csv", "text")]
    assert report.checkpoints == {"after.ckpt": "has forgotten"}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_purge_deletes_a_file_under_all_its_names_or_says_that_there_are_more(folder, elsewhere):
    (folder / "logs").mkdir()
    os.link(folder / "before.ckpt", folder / "epoch=1.ckpt")
    os.link(folder / "before.ckpt", folder / "logs" / "last.ckpt")
    if elsewhere:
        os.link(folder / "before.ckpt", folder.parent / "kept.ckpt")
    asked = ["scan", str(folder), "--request", str(folder / "forget.csv"), "--purge", "--yes"]
    names = {"before.ckpt", "epoch=1.ckpt", "logs/last.ckpt"}
    found = look(folder, folder / "forget.csv")
    assert {one.file for one in found.report.findings} == names
    assert {name for name, status in found.report.checkpoints.items() if status == "remembers"} == names
    assert main(asked) == (3 if elsewhere else 0)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.ckpt")} - {"after.ckpt"} == (
        names if elsewhere else set()
    )
    if elsewhere:
        (why,) = refused(folder).values()
        assert why.startswith("it has 4 names (hard links), of which 3 here")


def test_a_purge_takes_away_what_killed_processes_have_left_though_no_checkpoint_may_go(folder, capsys):
    """A complete checkpoint in such a folder stands for none, for it goes as well."""
    left = folder / "deep" / ".lightning-ifru-ab12cd_9"
    left.mkdir(parents=True)
    (folder / "after.ckpt").rename(left / "after.ckpt")
    (folder / ".report.json-ab12cd_9").mkdir()
    (folder / ".report.json-ab12cd_9" / "report.json").write_text("{")
    (folder / ".somebody.json-ab12cd_9").mkdir()
    (folder / ".somebody.json-ab12cd_9" / "own.json").write_text("{}")
    asked = ["scan", str(folder), "--request", str(folder / "forget.csv"), "--purge", "--yes", "--json"]
    assert main(asked) == 3
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["purged"]) == [".report.json-ab12cd_9", "deep/.lightning-ifru-ab12cd_9"]
    assert not any((folder / name).exists() for name in report["purged"])
    assert (folder / ".somebody.json-ab12cd_9" / "own.json").exists()
    assert {one["file"] for one in report["findings"]} == {"before.ckpt", ".somebody.json-ab12cd_9"}
    assert "no checkpoint of the same model" in report["kept"]["before.ckpt"]


def other_model(content):
    content["state_dict"] = {"other": torch.ones(2)}


def not_finite(content):
    next(iter(content["state_dict"].values()))[0] = torch.nan


def another_training(content):
    """Weights of the same shapes, for the same people, and no ledger that knows of them."""
    for tensor in content["state_dict"].values():
        tensor += 1


def without_ledger(content):
    content["callbacks"] = {}


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("before.ckpt", another_training, r"no ledger says that a checkpoint here was made of before\.ckpt"),
        ("after.ckpt", without_ledger, r"no ledger says that a checkpoint here was made of before\.ckpt"),
        ("after.ckpt", not_finite, r"what was made of before\.ckpt has weights that are not finite"),
    ],
)
def test_a_purge_leaves_the_only_checkpoint_of_another_training(folder, file, change, said):
    edited(folder / file, change)
    assert re.search(said, refused(folder)["before.ckpt"])


def test_a_purge_of_one_training_leaves_the_other_and_says_so(folder):
    edited(folder / "before.ckpt", another_training, folder / "other.ckpt")
    found = look(folder, folder / "forget.csv")
    report = purge(found, to_purge(found))
    assert report.purged == ["before.ckpt"]
    assert (folder / "other.ckpt").exists()
    assert report.kept.keys() == {"other.ckpt"}
    assert report.checkpoints["other.ckpt"] == "remembers"


def test_a_ledger_tells_of_which_file_the_newer_one_was_made(folder):
    """One that has unlearned another request before: its ledger is the beginning of the newer one."""
    entry = torch.load(folder / "after.ckpt", weights_only=True)["callbacks"]
    (name,) = (name for name, state in entry.items() if "ledger" in state)
    first = entry[name]["ledger"][0] | {"id": "0" * 32, "checkpoint_before": "0" * 64}
    edited(folder / "before.ckpt", lambda c: c["callbacks"].update({name: {"ledger": [first]}}))
    # After further epochs the ledger is the same, and the newer one was not made of these.
    edited(folder / "before.ckpt", lambda c: c.update(epoch=99), folder / "further-epochs.ckpt")
    for before, purged in ((None, []), (sha256_of(folder / "before.ckpt"), ["before.ckpt"])):
        last = entry[name]["ledger"][0] | {"checkpoint_before": before}
        edited(folder / "after.ckpt", lambda c, last=last: c["callbacks"][name].update(ledger=[first, last]))
        found = look(folder, folder / "forget.csv")
        assert [path.name for path in to_purge(found)] == purged
        report = purge(found, to_purge(found))
        assert "no ledger says" in report.kept["further-epochs.ckpt"]
        assert (folder / "further-epochs.ckpt").exists()


def test_a_training_anew_under_the_same_callback_stands_for_none_before_it(folder, planted, tmp_path):
    """The second training's ledger goes on from the first one's, and is another line of models from its entry on."""
    from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule
    from lightning_ifru.ledger_check import check_ledger
    from lightning_ifru.models import MatrixFactorization
    from lightning_ifru.retraining import redraw

    runs, callback = tmp_path / "runs", IFRUCallback(IFRU(max_steps=1), evaluate=False)
    runs.mkdir()
    data = InteractionDataModule(planted, batch_size=64, seed=3)
    model = MatrixFactorization(data.num_users, data.num_items, embedding_dim=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    for name, who in (("first", "person-003"), ("second", "person-004")):
        redraw(model)
        trainer = lightning.Trainer(max_epochs=1, callbacks=[callback], enable_checkpointing=False, **quiet)
        trainer.fit(model, datamodule=data)
        trainer.save_checkpoint(runs / f"{name}.ckpt")
        trainer.unlearn(data, request=UnlearningRequest(users=[who]), output=runs / f"{name}-unlearned.ckpt")
    assert len({entry["line"] for entry in callback.ledger}) == len(callback.ledger) == 2
    trainer.unlearn(data, request=UnlearningRequest(users=["person-005"]), output=runs / "third.ckpt")
    assert callback.ledger[2]["line"] == callback.ledger[1]["line"]
    assert check_ledger(runs).holds
    found = look(runs, UnlearningRequest(users=["person-004"]))
    assert sorted(name for name, status in found.report.checkpoints.items() if status == "remembers") == [
        *("first-unlearned.ckpt", "first.ckpt", "second.ckpt")
    ]
    assert to_purge(found) == {}, "the fits' own files were unlearned in the same process, which no ledger says"
    again = look(runs, UnlearningRequest(users=["person-005"]))
    assert [path.name for path in to_purge(again)] == ["second-unlearned.ckpt"]
    # Who has forgotten before the second training began is no word of where the first has gone.
    elder = look(runs, UnlearningRequest(users=["person-003"]))
    assert to_purge(elder) == {}


def test_what_stands_for_another_must_not_have_changed(folder):
    found = look(folder, folder / "forget.csv")
    paths = to_purge(found)
    with (folder / "after.ckpt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"after\.ckpt has changed since it was read"):
        purge(found, paths)
    assert (folder / "before.ckpt").exists()


ALONE = {
    "nothing has forgotten": lambda folder: (folder / "after.ckpt").unlink(),
    "what has forgotten is another model": lambda folder: edited(folder / "after.ckpt", other_model),
    "what has forgotten still has an id": lambda folder: edited(folder / "after.ckpt", PLACES["callbacks.Mine.seen"]),
}


@pytest.mark.parametrize("why", ALONE)
def test_a_purge_is_refused_where_the_model_would_go(folder, why):
    ALONE[why](folder)
    assert "no checkpoint of the same model has forgotten what" in refused(folder)["before.ckpt"]


def test_what_a_link_leads_to_is_not_purged(folder):
    (folder / "current").symlink_to("before.ckpt")
    assert "the link current leads to before.ckpt" in refused(folder)["before.ckpt"]


def appended(folder):
    with (folder / "before.ckpt").open("ab") as file:
        file.write(b"more")


def linked(folder):
    (folder / "before.ckpt").rename(folder.parent / "before.ckpt")
    (folder / "before.ckpt").symlink_to(folder.parent / "before.ckpt")


@pytest.mark.parametrize("change", [appended, linked])
def test_what_has_changed_since_the_scan_is_not_deleted(folder, change):
    found = look(folder, folder / "forget.csv")
    paths = to_purge(found)
    change(folder)
    with pytest.raises(DataError, match=r"before\.ckpt has changed since it was read"):
        purge(found, paths)
    assert (folder / "before.ckpt").exists()


def test_the_command_says_by_its_exit_code_what_is_left(folder, capsys, monkeypatch):
    asked = ["scan", str(folder), "--request", str(folder / "forget.csv")]
    assert main(asked) == 3
    shown = capsys.readouterr().out
    assert "before.ckpt" in shown
    assert "person-003" not in shown
    assert main([*asked, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["checkpoints"]["after.ckpt"] == "has forgotten"

    monkeypatch.setattr("sys.stdin", io.StringIO("delete 1"))
    assert main([*asked, "--purge"]) == 1
    assert "nobody to ask" in capsys.readouterr().err
    assert (folder / "before.ckpt").exists()
    assert main([*asked, "--purge", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["purged"] == ["before.ckpt"]
    assert not (folder / "before.ckpt").exists()
    assert main(asked) == 0
    assert "Nothing of the request was found" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code"), [("delete 1\n", 0), ("delete\n", 1), ("", 1)])
def test_a_purge_asks_somebody_at_a_terminal(folder, capsys, monkeypatch, answer, code):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["scan", str(folder), "--request", str(folder / "forget.csv"), "--purge"]) == code
    assert "Type 'delete 1'" in capsys.readouterr().err
    assert (folder / "before.ckpt").exists() == (code == 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["missing", "--request", "forget.csv"], "there is nothing at"),
        (["link", "--request", "forget.csv", "--purge", "--yes"], "which is a link"),
        ([".", "--request", "missing.csv"], "there is no file"),
    ],
)
def test_the_command_refuses_in_one_sentence(folder, capsys, monkeypatch, changes, said):
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(".")
    assert main(["scan", *changes]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
