"""Malformed request, data and config files, and whether each is read or refused in one sentence.

``python tests/fuzz.py --count 10000 --seed 0`` prints what came of them as one JSON object. Every file is a valid one
that was damaged at random, or one of the nasties written by hand below. Whatever is raised but an UnlearningError, and
whatever a config gives but exit code 1 or 2 with one line, is a crash; so is data that was read and contradicts itself.
"""

import argparse
import bz2
import contextlib
import functools
import gzip
import io
import json
import logging
import lzma
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
import yaml

from lightning_ifru import InteractionDataModule, UnlearningError, UnlearningRequest, audit_command
from lightning_ifru.cli import main
from lightning_ifru.keys import throwaway_key

#: What is put into files at random places.
TOKENS = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\x80",
        b"\x1b[31m",
        b"\x1a",
        b"\x7f",
        b"\xe2\x80\xa8",
    ),
    *(
        b'"',
        b"'",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00",
        b'\\"',
        b"\r",
        b"\n",
        b"\r\n",
        b"\t",
        b",",
        b";",
        b",,",
        b" ",
    ),
    *(
        b"1e400",
        b"-1e400",
        b"-0",
        b"-0.0",
        b"9" * 40,
        b"9" * 400,
        b"9" * 5000,
        b"1e-400",
        b"0x10",
        b"1_0",
        b"00",
        b"+1",
    ),
    *(
        b"NaN",
        b"nan",
        b"inf",
        b"-Infinity",
        b"null",
        b"None",
        b"true",
        b"NaT",
        b"1970-13-01",
        b"2262-04-12",
        b"0001-01-01",
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b"[[[[",
        b"}}",
        b":",
        b"{}",
        b"[]",
        b"[" * 3000,
        b'{"a":' * 300,
        b'""',
        b"users",
        b"item",
    ),
    *(
        b"=cmd|' /C calc'!A0",
        b"@SUM(1)",
        b"<script>",
        b"../../etc/passwd",
        b"%s%n",
        b"${HOME}",
        b"!!python/object:os.x",
    ),
    *("İ".encode(), "ß".encode(), "é".encode("latin-1"), "🧟".encode(), "\u202e".encode(), "e\u0301".encode()),
]

JSON_REQUESTS = [
    b'{"users": [1, "2", "u3"], "items": ["a"], "interactions": [[1, "b"], ["7", 2.0]]}',
    b'{\n "users": [\n  "\\u00e9",\n  -3\n ],\n "items": [4.0]\n}\n',
    b'{"interactions": [["u1", "i1"], ["u2", "i2"]]}',
]
CSV_REQUESTS = [b"user,item\n1,a\n2,\n,b\n", b'user\n"4,2"\nx\n', b"item,user\r\n9,8\r\n7,\r\n"]
ROWS = [(f"u{k % 7}", f"i{k % 5}", k % 5 + 0.5, 1_600_000_000 + k, ("train", "val", "test")[k % 3]) for k in range(24)]
DATA = [
    ("user,item\n" + "".join(f"{u},{i}\n" for u, i, *_ in ROWS)).encode(),
    ("user,item,r\n" + "".join(f"{u},{i},{r}\n" for u, i, r, *_ in ROWS)).encode(),
    ("user,item,r,t,split\n" + "".join(f'"{u}",{i},{r},{t},{s}\n' for u, i, r, t, s in ROWS)).encode(),
    (
        "t,user,item\n" + "".join(f"{pd.Timestamp(t, unit='s').isoformat()},{u},{i}\n" for u, i, _, t, _ in ROWS)
    ).encode(),
]
#: How the data modules read those, in the same order, with a split that is the same in every process.
COLUMNS = [
    {},
    {"rating": "r", "threshold": 2.5, "split": "leave_one_out"},
    {"rating": "r", "timestamp": "t", "split": "given"},
    {"timestamp": "t", "split": "temporal"},
]
PACK = {
    "": lambda raw: raw,
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": lambda raw: _zipped({"a.csv": raw}),
}


def _zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in files.items():
            archive.writestr(zipfile.ZipInfo(name), raw)
    return buffer.getvalue()


def _parquet(columns):
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


def nasties():
    """Return files written by hand: (kind, name, content)."""
    requests = {
        "empty.json": b"",
        "nul.json": b'{"users": ["a\0b"]}',
        "escaped-nul.json": b'{"users": ["a\\u0000b"]}',
        "surrogate.json": b'{"users": ["\\ud800"]}',
        "surrogate-pair.json": b'{"users": ["\\ud83e\\udddf"]}',
        "raw-surrogate.json": b'{"users": ["\xed\xa0\x80"]}',
        "utf16.json": '{"users": ["a"]}'.encode("utf-16"),
        "utf32.json": '{"users": ["a"]}'.encode("utf-32"),
        "bom.json": b"\xef\xbb\xbf" + b'{"users": ["a"]}',
        "two-boms.json": b"\xef\xbb\xbf" * 2 + b'{"users": ["a"]}',
        "latin1.json": '{"users": ["é"]}'.encode("latin-1"),
        "deep-list.json": b'{"users": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep-object.json": b'{"users":' * 100_000 + b"1" + b"}" * 100_000,
        "deep-open.json": b"[" * 1_000_000,
        "digits.json": b'{"users": [' + b"9" * 1_000_000 + b"]}",
        "digits-ok.json": b'{"users": [' + b"9" * 400 + b"]}",
        "exponent.json": b'{"users": [1e400]}',
        "exponent-ok.json": b'{"users": [1e300]}',
        "minus-zero.json": b'{"users": [-0, -0.0, 0]}',
        "nan.json": b'{"users": [NaN, Infinity]}',
        "fraction.json": b'{"users": [1.5]}',
        "truth.json": b'{"users": [true]}',
        "null.json": b'{"users": [null]}',
        "nested-pair.json": b'{"interactions": [[[1], 2]]}',
        "object-id.json": b'{"users": [{"a": 1}]}',
        "three.json": b'{"interactions": [[1, 2, 3]]}',
        "string.json": b'{"users": "abc"}',
        "number.json": b"7",
        "quote.json": b'{"users": ["' + b"x" * 1_000_000,
        "long-id.json": b'{"users": ["' + b"x" * 1_000_000 + b'"]}',
        "escapes.json": b'{"users": ["' + b"\\n" * 1_000_000 + b'"]}',
        "many-keys.json": b"{" + b",".join(b'"k%d": 1' % k for k in range(100_000)) + b"}",
        "same-keys.json": b"{" + b",".join([b'"users": [1]'] * 100_000) + b"}",
        "many-ids.json": json.dumps({"users": list(range(100_000))}).encode(),
        "comment.json": b'{"users": [1]} // and more',
        "script.json": b'{"users": ["<script>alert(1)</script>"]}',
        "empty.csv": b"",
        "blank.csv": b"\n\n\n",
        "header.csv": b"user,item\n",
        "cr.csv": b"user,item\r1,2\r3,4\r",
        "mixed-ends.csv": b"user,item\r1,2\n3,4\r\n5,6",
        "no-end.csv": b"user,item\n1,2",
        "open-quote.csv": b'user,item\n1,"2\n' + b"3,4\n" * 100_000,
        "open-quote-header.csv": b'"user,item\n' + b"1,2\n" * 100_000,
        "quotes.csv": b'user,item\n"""1""","a""b"\n',
        "bare-quote.csv": b'user,item\n1"2,3\n',
        "bom.csv": b"\xef\xbb\xbfuser,item\n1,2\n",
        "utf16.csv": "user,item\n1,2\n".encode("utf-16"),
        "nul.csv": b"user,item\n1\0x,2\n",
        "nul-header.csv": b"us\0er,item\n1,2\n",
        "control-z.csv": b"user,item\n1,2\n\x1a",
        "columns.csv": b",".join(b"c%d" % k for k in range(100_000)) + b"\n1\n",
        "million-columns.csv": b"," * 1_000_000 + b"\n",
        "million-fields.csv": b"user,item\n" + b"," * 1_000_000 + b"\n",
        "fields-below.csv": b"user,item\n1,2\n" + b"," * 1_000_000 + b"\n",
        "long-line.csv": b"user,item\n" + b"1" * 3_000_000 + b",2\n",
        "long-header.csv": b"user,item," + b"x" * 3_000_000 + b"\n1,2,3\n",
        "same-columns.csv": b"user,user\n1,2\n",
        "empty-names.csv": b"user,,\n1,2,3\n",
        "more-fields.csv": b"user,item\n1,2,3\n",
        "fewer-fields.csv": b"user,item\n1\n",
        "spaces.csv": b" user , item \n1,2\n",
        "semicolons.csv": b"user;item\n1;2\n",
        "formula.csv": b"user,item\n=1+1,@a\n",
        "letters.csv": "user,item\nı,İ\nß,ﬀ\ne\u0301,é\n".encode(),
        "zipped-two.csv.zip": _zipped({"a.csv": b"user\n1\n", "b.csv": b"user\n2\n"}),
        "zipped-none.csv.zip": _zipped({}),
        "zipped-up.csv.zip": _zipped({"../../a.csv": b"user\n1\n"}),
        "no.csv.zip": b"PK\x03\x04" + b"\0" * 100,
        "no.csv.gz": b"\x1f\x8b\x08\0" + b"\xff" * 100,
        "no.csv.bz2": b"BZh9" + b"\xff" * 100,
        "no.csv.xz": b"\xfd7zXZ\0" + b"\xff" * 100,
        "no.csv.zst": b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
        "twice.csv.gz": gzip.compress(b"user,item\n1,2\n") * 2,
        "trailing.csv.gz": gzip.compress(b"user,item\n1,2\n") + b"garbage",
        "bomb.csv.gz": gzip.compress(b"u" * 5_000_000),
        "line-bomb.csv.xz": lzma.compress(b"user\n" + b"u" * 5_000_000),
        "magic.parquet": b"PAR1" * 2,
        "length.parquet": b"PAR1" + b"\xff" * 8 + b"PAR1",
    }
    data = {
        "big-rating.csv": b"user,item,r\n1,2,1e400\n",
        "digits-rating.csv": b"user,item,r\n1,2," + b"9" * 400 + b"\n3,4,1\n",
        "many-digits-rating.csv": b"user,item,r\n1,2," + b"9" * 5000 + b"\n3,4,1\n",
        "long-exponent.csv": b"user,item,r\n1,2,0e6901646933\n3,4,1\n",
        "minus-zero.csv": b"user,item,r\n1,2,-0\n2,1,5\n",
        "hex-rating.csv": b"user,item,r\n1,2,0x10\n",
        "complex-rating.csv": b"user,item,r\n1,2,1+2j\n",
        "truth-rating.csv": b"user,item,r\n1,2,True\n2,1,False\n",
        "one-row.csv": b"user,item,r\n1,2,3\n",
        "one-user.csv": b"user,item,r\n" + b"".join(b"1,%d,3\n" % k for k in range(9)),
        "times.csv": b"user,item,r,t\n1,2,3,9999999999999999999999\n1,3,3,-9999999999999999999999\n",
        "far-times.csv": b"user,item,r,t\n1,2,3,9999-12-31\n1,3,3,0001-01-01\n",
        "splits.csv": b"user,item,r,t,split\n1,2,3,4,train\n1,3,3,4,TEST\n",
    }
    configs = {
        "empty.yaml": b"",
        "list.yaml": b"- 1\n",
        "nul.yaml": b"data:\0\n",
        "tab.yaml": b"data:\n\tsource: x\n",
        "python.yaml": b"data: !!python/object/apply:os.system ['touch /tmp/never']\n",
        "deep.yaml": b"[" * 5_000,
        "deep-map.yaml": b"{a: " * 5_000,
        "laughs.yaml": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (k + 1, k + 1, b",".join([b"*%c" % k] * 9)) for k in range(97, 110)),
        "itself.yaml": b"data: &a [*a]\n",
        "alias.yaml": b"data: *nobody\n",
        "two.yaml": b"data: {}\n---\ndata: {}\n",
        "digits.yaml": b"data: {init_args: {batch_size: " + b"9" * 10_000 + b"}}\n",
        "big.yaml": b"# " + b"x" * 3_000_000 + b"\n",
        "many-keys.yaml": b"".join(b"k%d: 1\n" % k for k in range(5_000)),
        "bom.yaml": b"\xef\xbb\xbfdata: {}\n",
        "utf16.yaml": "data: {}\n".encode("utf-16"),
        "latin1.yaml": "data: é\n".encode("latin-1"),
        "control.yaml": b"data: \x1b[31m\n",
        "number.yaml": b"1.5\n",
        "null.yaml": b"null\n",
        "keys.yaml": b"? [1, 2]\n: 3\n",
        "class.yaml": b"data: {class_path: os.system, init_args: {command: 'touch /tmp/never'}}\n",
        "module.yaml": b"model: {class_path: no.such.Module}\n",
        "path.yaml": b"data: {init_args: {source: /dev/zero}}\n",
        "dunder.yaml": b"__path__: /\n__class__: x\n",
    }
    yield from (("request", name, raw) for name, raw in requests.items())
    yield from (("data", name, raw) for name, raw in (requests | data).items() if not name.endswith(".json"))
    yield from (("config", name, raw) for name, raw in configs.items())


class Fuzz:
    """Files one after another, written to a folder, read, and judged."""

    def __init__(self, folder, seed):
        self.folder, self.random = folder, random.Random(seed)
        self.outcomes, self.crashes, self.seconds = Counter(), [], Counter()
        (folder / "valid.csv").write_bytes(DATA[1])
        self.configs = [yaml.safe_dump(config(folder), sort_keys=k > 0).encode() for k in range(2)]
        self.tables = {}
        with contextlib.suppress(ImportError):
            names = ("user", "item", "r", "t", "split")
            columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
            self.tables["data"] = [_parquet({name: columns[name] for name in names})]
            self.tables["request"] = [_parquet({"user": ["1", None], "item": ["a", "b"]}), _parquet({"user": [3, 4]})]

    def damaged(self, raw):
        """Return bytes after one to four accidents."""
        rng = self.random
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 4))):
            at = rng.randrange(len(raw) + 1)
            to = min(len(raw), at + rng.choice((1, 1, 2, 5, 20, 200)))
            accident = rng.randrange(9)
            if accident == 0:
                raw = raw[:at]
            elif accident == 1:
                raw = raw[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in raw[at:to]) + raw[to:]
            elif accident == 2:
                raw = raw[:at] + raw[to:]
            elif accident == 3:
                raw = raw[:to] + raw[at:to] * rng.choice((1, 2, 50)) + raw[to:]
            elif accident == 4:
                raw = raw[:at] + rng.randbytes(to - at) + raw[to:]
            elif accident == 5 and rng.random() < 0.2:
                raw = raw.decode("utf-8", "replace").encode(
                    rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")), "replace"
                )
            elif accident == 6 and rng.random() < 0.3:
                raw = raw.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"", b"\x0b")))
            else:
                raw = raw[:at] + rng.choice(TOKENS) + raw[rng.choice((at, to)) :]
        return raw

    def some(self, share_of_configs=0.03):
        """Return one damaged file: (kind, name, content, how to read it)."""
        rng = self.random
        if rng.random() < share_of_configs:
            return "config", "a.yaml", self.damaged(rng.choice(self.configs)), None
        kind = rng.choice(("request", "request", "request", "data"))
        if kind in self.tables and rng.random() < 0.1:
            return kind, "a.parquet", self.damaged(rng.choice(self.tables[kind])), 2
        if kind == "request" and rng.random() < 0.7:
            return kind, "a.json", self.damaged(rng.choice(JSON_REQUESTS)), None
        which = rng.randrange(len(DATA))
        raw = DATA[which] if kind == "data" else rng.choice(CSV_REQUESTS)
        suffix = rng.choice((*[""] * 6, *PACK))
        packed = PACK[suffix](self.damaged(raw))
        return kind, f"a.csv{suffix}", self.damaged(packed) if suffix and rng.random() < 0.5 else packed, which

    def judge(self, kind, name, raw, how=None):
        """Write a file, read it, and note what came of it."""
        path = self.folder / name
        path.write_bytes(raw)
        since = time.perf_counter()
        try:
            outcome = {"request": self.request, "data": self.data, "config": self.config}[kind](path, how)
        except UnlearningError as error:
            outcome = "refused"
            problem = unspeakable(str(error))
            if problem:
                self.crashes.append({"kind": kind, "name": name, "content": repr(raw[:400]), "what": problem})
        except Exception:
            outcome = "crashed"
            said = traceback.format_exc().splitlines()
            self.crashes.append(
                {"kind": kind, "name": name, "content": repr(raw[:400]), "what": said[-1], "at": said[-7:]}
            )
        finally:
            path.unlink()
        self.outcomes[f"{kind} {outcome}"] += 1
        self.seconds[kind] += time.perf_counter() - since
        return time.perf_counter() - since

    def request(self, path, _):
        request = UnlearningRequest.from_file(path)
        assert request.texts, "an empty request"
        assert request == request | request, "a request that differs from itself"
        assert len(request.digest(b"key")) == 64
        places = {**request.lines, **request.rows}
        assert places.keys() == request.texts.keys(), "an entry without a place"
        for key in list(request.texts)[:20]:
            assert not unspeakable(request.named(key)), "an entry that cannot be named"
        return "read"

    def data(self, path, how):
        columns = COLUMNS[how] if how is not None else {}
        if how is None and b",r" in path.read_bytes()[:20]:
            columns = {"rating": "r"}
        check(InteractionDataModule(path, **columns), lambda: InteractionDataModule(path, **columns))
        return "read"

    def config(self, path, _):
        out, err = io.StringIO(), io.StringIO()
        missing = ["--original", str(self.folder / "no.ckpt"), "--unlearned", str(self.folder / "none.ckpt")]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["audit", "--config", str(path), *missing])
            except SystemExit as stop:
                code = stop.code
        said = [line for line in err.getvalue().splitlines() if line.startswith("lightning-ifru")]
        assert code in (1, 2), f"exit code {code}"
        assert len(said) == 1, f"{len(said)} sentences: {err.getvalue()[:400]!r}"
        assert "Traceback" not in err.getvalue()
        assert not unspeakable(said[0], 20_000), f"no sentence: {said[0][:400]!r}"
        return f"exit {code}"


def config(folder):
    """Return a config that is valid, but for the checkpoints that it is used with."""
    return {
        "seed_everything": 1,
        "trainer": {"accelerator": "cpu", "max_epochs": 3, "logger": False},
        "model": {
            "class_path": "lightning_ifru.models.LightGCN",
            "init_args": {"embedding_dim": 4, "num_layers": 1, "loss": "bce"},
        },
        "data": {"init_args": {"source": str(folder / "valid.csv"), "rating": "r", "threshold": 2.5, "seed": 3}},
    }


def unspeakable(said, most=2_000):
    """Return what is wrong with a message, if it is not one line that can be shown as it stands."""
    if not said or len(said) > most:
        return f"a message of {len(said)} characters"
    if not said.isprintable():
        return f"a message that cannot be printed: {said[:200]!r}"
    return None


def check(data, again):
    """Assert that data which were read do not contradict themselves, and survive a checkpoint."""
    table = data.table
    rows = len(table)
    assert rows > 0
    assert int(table.user.min()) >= 0
    assert int(table.user.max()) < data.num_users == len(data.user_ids)
    assert int(table.item.min()) >= 0
    assert int(table.item.max()) < data.num_items == len(data.item_ids)
    assert torch.isfinite(table.label).all()
    assert None not in data.user_ids.tolist() + data.item_ids.tolist()
    assert len({str(value) for value in data.user_ids}) == data.num_users
    assert len(data.train) + len(data.val) + len(data.test) == rows
    assert len(data.train) > 0
    assert data.graph().shape == (2, 2 * int(table.rows("train", positive=True).sum()))
    buffer = io.BytesIO()
    torch.save(data.state_dict(), buffer)
    buffer.seek(0)
    other = again()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.table.user, table.user)
    assert torch.equal(other.table.split, table.split)


def run(count, seed=0):
    """Read ``count`` files, the nasties first, and return what came of them."""
    since, slowest = time.perf_counter(), (0.0, "")
    logging.disable(logging.WARNING)
    parser = patch.object(audit_command, "_parser", functools.cache(audit_command._parser))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), parser, throwaway_key():
        warnings.simplefilter("ignore")
        fuzz = Fuzz(Path(folder), seed)
        files = list(nasties())
        try:
            for k in range(count):
                case = files[k] if k < len(files) else fuzz.some()
                slowest = max(slowest, (fuzz.judge(*case), f"{case[0]} {case[1]}"))
        finally:
            logging.disable(logging.NOTSET)
    return {
        "files": sum(fuzz.outcomes.values()),
        "by_hand": min(count, len(files)),
        "seed": seed,
        "outcomes": dict(sorted(fuzz.outcomes.items())),
        "crashes": fuzz.crashes,
        "seconds": round(time.perf_counter() - since, 1),
        "seconds_by_kind": {kind: round(spent, 1) for kind, spent in fuzz.seconds.items()},
        "slowest": {"seconds": round(slowest[0], 2), "file": slowest[1]},
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    found = run(**vars(options.parse_args()))
    print(json.dumps(found, indent=1))  # noqa: T201
    sys.exit(1 if found["crashes"] else 0)
