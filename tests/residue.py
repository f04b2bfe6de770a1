"""What is left of planted people, byte by byte, in everything that is written after they were forgotten.

    python tests/residue.py --count 50 --seed 0

COUNT people with ids, ratings, times and features found nowhere else are planted among others; a model is trained with
all that writes: loggers, checkpoints of the best and the last, early stopping, a schedule, features in buffers and in
hyper-parameters, a data module that saves its own. Then they are forgotten, and what is written from then on is
searched, with what lies packed in it: a report, a figure, further training, a test, another checkpoint, the ledger.
The search knows nothing of the package. That it finds them in what was written before is part of the result.
"""

import argparse
import base64
import bz2
import contextlib
import gzip
import hashlib
import io
import json
import logging
import lzma
import re
import sys
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_ifru import IFRU, IFRUCallback, IFRUMixin, InteractionDataModule, UnlearningRequest
from lightning_ifru.cli import main
from lightning_ifru.keys import throwaway_key

USERS, ITEMS, WIDTH = 60, 40, 6


class Model(IFRUMixin, lightning.LightningModule):
    """A linear encoder of features beside the embeddings, one layer of messages, and dot products."""

    loss = "mse"

    def __init__(self, features, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.register_buffer("features", features)
        self.register_buffer("same", features.double(), persistent=False)
        self.frozen = nn.Embedding.from_pretrained(features[:, :2].clone(), freeze=True)
        self.embedding = nn.Embedding(len(features) + ITEMS, 4)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.encoder = nn.Linear(features.shape[1], 4)

    def encode(self, edge_index):
        own = self.embedding.weight.clone()
        own[: len(self.features)] += self.encoder(self.features) + self.same.float().mean() * 0
        beside = torch.zeros_like(own).index_add(0, edge_index[1], own[edge_index[0]])
        return own + beside / torch.bincount(edge_index[1], minlength=len(own)).clamp(min=1).unsqueeze(1)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class Data(InteractionDataModule):
    """Saves its hyper-parameters, as modules of one's own do."""

    def __init__(self, source, note=None, **settings):
        super().__init__(source, **settings)
        self.save_hyperparameters()


class Planted:
    """A table of interactions with people in it who are found nowhere else.

    Ids are texts or numbers of 64 bits. Ratings are numbers near zero of which every bit was drawn, so that no weight
    looks like one; so are features and times.
    """

    def __init__(self, count, seed, kind):
        rng = np.random.default_rng([seed, count, kind == "numbers"])
        people = USERS + count
        if kind != "numbers":
            self.ids = [f"planted-{rng.bytes(9).hex()}-é" for _ in range(count)]
            others = [f"other-{k}" for k in range(USERS)]
            films = [f"film-{k}" for k in range(ITEMS)]
        else:
            self.ids = [int(rng.integers(1 << 61, 1 << 62)) for _ in range(count)]
            others, films = list(range(1000, 1000 + USERS)), list(range(ITEMS))
        users = np.array([*others, *self.ids], dtype=object)[rng.permutation(people)]
        seen = rng.random((people, ITEMS)) < 0.35
        seen[:, :3] = True
        user, item = np.nonzero(seen)
        order = rng.permutation(len(user))
        user, item = user[order], item[order]
        planted = np.isin(users[user].astype(str), [str(one) for one in self.ids])
        rating = np.where(planted, 0, rng.normal(size=len(user)).round(1))
        rating[planted] = rng.uniform(1, 9, planted.sum()) * 10.0 ** rng.integers(-29, -25, planted.sum())
        time = 1_700_000_000 + np.arange(len(user))
        time[planted] = rng.integers(1 << 59, 1 << 60, planted.sum())
        self.rating, self.time = rating[planted], time[planted]
        self.source = {
            "user": [users[u] for u in user],
            "item": [films[i] for i in item],
            "rating": rating.tolist(),
            "time": time.tolist(),
        }
        first = pd.unique(pd.Series(self.source["user"], dtype=object).astype(str))
        mine = np.isin(first, [str(one) for one in self.ids])
        features = rng.normal(size=(people, WIDTH)).astype(np.float32)
        features[mine] = (rng.uniform(1, 9, (count, WIDTH)) * 1e-12).astype(np.float32)
        self.features, self.rows = torch.from_numpy(features), features[mine]

    def needles(self):
        """All the bytes that would give somebody away, by what they are."""
        found = {}

        def add(what, *forms):
            for form in forms:
                found[bytes(form)] = what

        for one in self.ids:
            text = str(one).removesuffix("-é")
            add("id", *(text.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")))
            if isinstance(one, int):
                add("id", *(np.array(one, dtype=f"{order}i8").tobytes() for order in "<>"))
                add("id", one.to_bytes(8, "little"))
            for name in ("md5", "sha1", "sha256"):
                digest = hashlib.new(name, str(one).encode())
                add("hash of an id", digest.digest(), digest.hexdigest().encode())
            plain = pd.util.hash_array(np.array([str(one)], dtype=object), categorize=False)
            add("hash of an id", plain.tobytes(), plain.byteswap().tobytes(), str(int(plain[0])).encode())
        for value in self.rating.tolist():
            add("rating", *(np.array(value, dtype=f"{o}f{size}").tobytes() for o in "<>" for size in (4, 8)))
            add("rating", repr(value).partition("e")[0][:12].encode(), str(np.float32(value)).encode())
        for value in self.time.tolist():
            add("time", *(np.array(value, dtype=f"{o}{form}8").tobytes() for o in "<>" for form in "if"))
            add("time", str(value).encode())
        for row in self.rows:
            for a, b in zip(row[:-1].tolist(), row[1:].tolist(), strict=True):
                add("feature", *(np.array([a, b], dtype=f"{o}f{size}").tobytes() for o in "<>" for size in (4, 8)))
            add("feature", *(str(np.float32(value)).encode() for value in row))
        return found


class Search:
    """Looks for many strings of bytes, at every place, also in what is packed."""

    def __init__(self, needles):
        self.needles, self.num_bytes = needles, 0
        self.by_length = {}
        for needle in needles:
            self.by_length.setdefault(len(needle), {})[needle] = needles[needle]
        # By the first four bytes, since each needle has as many.
        self.heads = np.unique([int.from_bytes(needle[:4], "little") for needle in needles]).astype(np.uint32)

    def look(self, data, found):
        """Count the bytes of what is found in ``data``, by what it is."""
        self.num_bytes += len(data)
        padded = data + bytes(8)
        for shift in range(4):
            words = np.frombuffer(padded, dtype="<u4", offset=shift, count=len(data) // 4 + 1)
            for place in (np.flatnonzero(np.isin(words, self.heads)) * 4 + shift).tolist():
                for length, some in self.by_length.items():
                    what = some.get(data[place : place + length])
                    if what is not None:
                        found[what] = found.get(what, 0) + length
        for inner in unpacked(data):
            self.look(inner, found)


def unpacked(data):
    """Yield what lies packed in some bytes."""
    for magic, unpack in ((b"\x1f\x8b", gzip.decompress), (b"BZh", bz2.decompress), (b"\xfd7zXZ", lzma.decompress)):
        if data.startswith(magic):
            yield unpack(data)
    for inner in re.findall(rb"(?:base64,|!!binary \|)((?:\s*[A-Za-z0-9+/=]+)+)", data):  # in pages and YAML
        with contextlib.suppress(ValueError):
            yield base64.b64decode(b"".join(inner.split()) + b"==")
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            for member in members.infolist():
                if member.compress_type != zipfile.ZIP_STORED:  # else it was there to be seen
                    yield members.read(member)
    elif tarfile.is_tarfile(io.BytesIO(data)):
        with tarfile.open(fileobj=io.BytesIO(data)) as members:
            yield from (members.extractfile(member).read() for member in members if member.isfile())


class Folder:
    """What is in a folder, and what of it is written from now on."""

    def __init__(self, path):
        self.path, self.before = Path(path), {}

    def files(self):
        return sorted(path for path in self.path.rglob("*") if path.is_file() and not path.is_symlink())

    def remember(self):
        self.before = {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in self.files()}

    def written(self):
        """Yield every file written since, as a whole where it is not only longer than it was."""
        for path in self.files():
            data = path.read_bytes()
            time, inode, known = self.before.get(path, (0, 0, b""))
            if (path.stat().st_mtime_ns, path.stat().st_ino) == (time, inode):
                continue
            longer = path.stat().st_ino == inode and len(data) > len(known) and data.startswith(known)
            yield path, data[len(known) :] if longer else data


def loggers(folder):
    found = [CSVLogger(folder, name="csv")]
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        found.append(TensorBoardLogger(folder, name="board"))
    except ModuleNotFoundError:
        pass
    return found


def train_and_forget(folder, planted):
    """Train, take note of all files, forget, and write whatever can be written; return the folder."""
    seen = Folder(folder)
    lightning.seed_everything(0, verbose=False)
    settings = {"rating": "rating", "timestamp": "time", "split": "leave_one_out", "batch_size": 256}
    pd.DataFrame(planted.source).to_csv(folder / "source.csv.gz", index=False)
    data = Data(planted.source, note={"of": np.array([str(one) for one in planted.ids])}, **settings)
    model = Model(planted.features)
    callbacks = [
        IFRUCallback(IFRU(max_steps=1)),
        ModelCheckpoint(folder / "models", monitor="val_loss", save_top_k=2, save_last=True),
        EarlyStopping("val_loss", patience=50),
        LearningRateMonitor(),
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = lightning.Trainer(
        max_epochs=4, callbacks=callbacks, logger=loggers(folder), log_every_n_steps=1, default_root_dir=folder, **quiet
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    (folder / "forget.json").write_text(json.dumps({"users": planted.ids}))
    (folder / "seen.pkl").write_bytes(np.array(planted.source["time"]).tobytes())
    seen.remember()

    # The loggers will write them again; older versions of Lightning have them do so before the run begins.
    for path in folder.rglob("hparams.yaml") if hasattr(trainer, "enable_autolog_hparams") else ():
        path.unlink()
    report = trainer.unlearn(data, request=folder / "forget.json")
    assert report.num_forgotten == len(planted.rating)
    assert report.checkpoint is not None
    (folder / "report.json").write_text(report.to_json())
    (folder / "report.html").write_text(report._repr_html_())
    (folder / "report.txt").write_text(str(report))
    (folder / "shown.txt").write_text(repr((report, data, model, model.hparams, data.hparams, callbacks[0].ledger)))
    trainer.save_checkpoint(folder / "again.ckpt")
    trainer.test(model, datamodule=data, verbose=False)
    # As in another process: from the checkpoint, beside the source that still has them.
    fresh = Data(planted.source, **settings)
    copy = lightning.Trainer(
        callbacks=[IFRUCallback(IFRU(max_steps=1))], logger=False, default_root_dir=folder, **quiet
    )
    other = UnlearningRequest(users=[next(one for one in fresh.user_ids if one not in planted.ids)])
    blank = torch.zeros_like(planted.features)
    copy.unlearn(fresh, model=Model(blank), ckpt_path=report.checkpoint, request=other, output=folder / "next.ckpt")
    trainer.fit_loop.max_epochs = 6
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "later.ckpt")
    torch.save(
        {"data": data.state_dict(), "model": model.state_dict(), "hparams": dict(model.hparams)}, folder / "s.pt"
    )
    return seen


def by_command_line(folder, planted):
    """Fit, forget and audit by commands; their output is kept as a job's log would be."""
    seen, runs = Folder(folder), folder / "run.yaml"
    pd.DataFrame(planted.source).to_csv(folder / "ratings.csv", index=False)
    pd.DataFrame({"user": planted.ids}).to_csv(folder / "forget.csv", index=False)
    settings = {"rating": "rating", "timestamp": "time", "seed": 3}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "lightning_ifru.models.MatrixFactorization", "init_args": {"loss": "mse"}},
        "data": {"init_args": {"source": str(folder / "ratings.csv")} | settings},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "default_root_dir": str(folder),
            "enable_progress_bar": False,
        },
    }
    config["model"]["init_args"] |= {"embedding_dim": 4, "lr": 0.05, "weight_decay": 1e-3}
    runs.write_text(yaml.safe_dump(config))
    answer(folder / "fit.log", "fit", "--config", runs, "--json")
    (original,) = folder.rglob("epoch*.ckpt")
    seen.remember()
    asked = ["--config", runs, "--ckpt_path", original, "--request", folder / "forget.csv", "--report"]
    answer(folder / "try.log", "unlearn", *asked, folder / "try.json", "--dry_run")
    files = [folder / "report.json", "--output", folder / "unlearned.ckpt", "--figure", folder / "report.png"]
    answer(folder / "unlearn.log", "unlearn", *asked, *files)
    both = ["--original", original, "--unlearned", folder / "unlearned.ckpt", "--output", folder / "audit"]
    answer(folder / "audit.log", "audit", "--config", runs, *both)
    answer(folder / "scan.log", "scan", folder, "--request", folder / "forget.csv", "--json", expected=3)
    again = folder / "again.ckpt"
    asked[3] = folder / "unlearned.ckpt"
    answer(folder / "again.log", "unlearn", *asked, folder / "again.json", "--output", again)
    assert not again.exists()  # there was nothing left to do
    return seen


def answer(log, *arguments, expected=0):
    """Run a command and keep what it says."""
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = main([str(argument) for argument in arguments])
    assert code == expected, log.read_text()


def run(count, seed):
    """Plant ``count`` people, forget them, and look for them.

    Returns:
        The bytes of residue, by what they are and in which file; the files and bytes looked at; and the bytes that the
        same search found in what was written before.
    """
    answer = {"planted": count, "seed": seed, "needles": 0, "files": 0, "bytes": 0, "residue_bytes": 0}
    answer |= {"residue": {}, "before": {}, "before_files": 0}
    ways = {"texts": train_and_forget, "numbers": train_and_forget, "command": by_command_line}
    for kind, way in ways.items():
        planted = Planted(count, seed, kind)
        with tempfile.TemporaryDirectory() as name, throwaway_key(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            seen = way(Path(name), planted)
            search = Search(planted.needles())
            answer["needles"] += len(search.needles)
            for path, data in seen.written():
                found = {}
                search.look(data, found)
                answer["files"] += 1
                answer["residue_bytes"] += sum(found.values())
                if found:
                    answer["residue"][f"{kind}: {path.relative_to(name)}"] = found
            answer["bytes"] += search.num_bytes
            for _, _, data in seen.before.values():
                found = {}
                search.look(data, found)
                answer["before_files"] += bool(found)
                for what, number in found.items():
                    answer["before"][f"{kind}: {what}"] = answer["before"].get(f"{kind}: {what}", 0) + number
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(run(given.count, given.seed)) + "\n")
