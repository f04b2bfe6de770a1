"""Files made to exhaust a machine are refused early, by the bound that they pass, and honest ones are not."""

import bz2
import gzip
import io
import json
import lzma
import re
import sys
import time
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pandas as pd
import pytest

from lightning_ifru import DataError, InteractionDataModule, RequestError, UnlearningRequest, bounded, sources
from lightning_ifru.cli import main


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_sentence(seed):
    found = fuzz.run(10_000 if seed else 1_000, seed)
    assert found["crashes"] == []
    assert found["files"] == (10_000 if seed else 1_000)
    for outcome in ("request read", "request refused", "data read", "data refused", "config exit 1", "config exit 2"):
        assert found["outcomes"][outcome] > 0, outcome
    assert found["slowest"]["seconds"] < 30


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", content)
    return buffer.getvalue()


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}


@pytest.fixture
def small(monkeypatch):
    """Bounds that a test can pass in no time."""
    monkeypatch.setattr(bounded, "FREE_BYTES", 1 << 16)
    monkeypatch.setattr(sources, "FREE_BYTES", 1 << 16)


@pytest.mark.parametrize("kind", PACKED)
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, small, kind):
    bomb = written(tmp_path, f"bomb.csv.{kind}", PACKED[kind](b"user,item\n" + b"u,i\n" * 400_000))
    since = time.process_time()
    with pytest.raises(
        DataError, match=r"'bomb.csv.\w+' holds more than [\d,]+ bytes, .* 200 times its size; unpack it"
    ):
        _ = InteractionDataModule(bomb).num_users
    assert time.process_time() - since < 2


@pytest.mark.parametrize("kind", PACKED)
def test_honest_data_pack_less_and_are_read(tmp_path, small, kind):
    rng = np.random.default_rng(0)
    rows = b"".join(
        b"%d,%d\n" % pair for pair in zip(rng.integers(0, 500, 30_000), rng.integers(0, 900, 30_000), strict=True)
    )
    assert len(rows) > bounded.FREE_BYTES * 3
    assert (
        InteractionDataModule(written(tmp_path, f"data.csv.{kind}", PACKED[kind](b"user,item\n" + rows))).num_users
        == 500
    )


def test_a_parquet_bomb_is_refused_by_what_it_says_of_itself(tmp_path, small, monkeypatch):
    table = pd.DataFrame({"user": np.zeros(3_000_000, dtype=np.int64), "item": np.zeros(3_000_000, dtype=np.int64)})
    table.to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 48_000_000 / 1_000
    with pytest.raises(
        DataError, match=r"'bomb.parquet' holds 6,000,000 values .* 200 times its size; write it as CSV"
    ):
        _ = InteractionDataModule(tmp_path / "bomb.parquet").num_users
    monkeypatch.setattr("lightning_ifru.request.MAX_REQUEST", 1_000)
    with pytest.raises(RequestError, match="holds 6,000,000 values and so more than 1,000 bytes; split it"):
        UnlearningRequest.from_file(tmp_path / "bomb.parquet")


def test_a_parquet_file_of_many_columns_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_COLUMNS", 100)
    pd.DataFrame(np.zeros((1, 110)), columns=[f"c{k}" for k in range(110)]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'a.parquet' has 110 columns; wanted at most 100"):
        _ = InteractionDataModule(tmp_path / "a.parquet").num_users


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.csv.gz"])
def test_a_request_has_a_size(tmp_path, monkeypatch, name):
    monkeypatch.setattr("lightning_ifru.request.MAX_REQUEST", 1_000)
    users = [f"user-{k}" for k in range(200)]
    content = json.dumps({"users": users}) if name == "a.json" else "user\n" + "\n".join(users)
    raw = content.encode() if not name.endswith("gz") else gzip.compress(content.encode())
    with pytest.raises(RequestError, match=f"'{name}' holds more than 1,000 bytes, split it into several"):
        UnlearningRequest.from_file(written(tmp_path, name, raw))


FIFTY = 50 << 20
LONG = {
    "one string": b'{"users": ["' + b"x" * FIFTY + b'"]}',
    "one string of escapes": b'{"users": ["' + b"\\n" * (FIFTY // 2) + b'"]}',
    "a string without an end": b'{"users": ["' + b"x" * FIFTY,
    "a number": b'{"users": [' + b"7" * FIFTY + b"]}",
    "lists in lists": b"[" * FIFTY,
    "spaces": b" " * FIFTY,
    "commas": b"," * FIFTY + b"\n",
    "one field": b"user\n" + b"x" * FIFTY + b"\n",
    "a quote without an end": b'user\n"' + b"x,\n" * (FIFTY // 3),
    "a quote in the header without an end": b'"user\n' + b"x,\n" * (FIFTY // 3),
    "quotes": b"user\n" + b'"' * FIFTY,
    "carriage returns": b"user,item\r" + b"\r" * FIFTY,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LONG)
def test_fifty_megabytes_take_seconds(tmp_path, what):
    """A tenth of them takes a tenth of the time: nothing here is quadratic."""
    name = "long.json" if LONG[what].lstrip()[:1] in (b"{", b"[") else "long.csv"
    path = written(tmp_path, name, LONG[what])
    since = time.process_time()
    with pytest.raises(RequestError) as refusal:
        UnlearningRequest.from_file(path)
    assert time.process_time() - since < 60
    assert len(str(refusal.value)) < 1_000


def test_a_long_line_of_json_is_read_in_linear_time(tmp_path):
    def seconds(count):
        path = written(tmp_path, "a.json", json.dumps({"users": [f"user {k}" for k in range(count)]}).encode())
        since = time.process_time()
        assert len(UnlearningRequest.from_file(path).users) == count
        return time.process_time() - since

    seconds(1_000)
    assert seconds(80_000) < 40 * max(seconds(8_000), 0.01)  # ten times where it is linear, a hundred where not


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"users": ["a\0b"]}', "holds a NUL byte"),
        ("a.csv", b"user\na\0b\n", "holds a NUL byte"),  # which pandas would take for user a
        ("a.json", b'{"users": ["\\ud800"]}', "half of a surrogate pair"),
        ("a.json", b'{"users": ["' + b"x" * 10_001 + b'"]}', r"longer than 10,000 characters"),
        ("a.json", b'{"users": [' + b"9" * 4_301 + b"]}", "a number of 4,301 digits"),
        ("a.json", b'{"users": [1e400]}', r"missing id \(inf\)"),
        ("a.json", b'{"users": [[[1]]]}', "nested 4 levels deep; wanted at most 3"),
        ("a.json", b'{"users": [' * 2_000, "nested 4 levels deep"),
        ("a.csv", b"," * 100_000 + b"\n", "field|columns"),
        ("a.csv", b"user\n" + b"," * 20_000 + b"\n", "20,001 columns; wanted at most 10,000"),
        ("a.csv", b"user\n" + b"x" * 2_000_000 + b"\n", "a line of more than 1,048,576 bytes|field larger than"),
        ("a.csv", b"user\n1\n2\n" + b"x" * 2_000_000 + b"\n", "a line of more than 1,048,576 bytes"),
        ("a.csv.zst", b"(\xb5/\xfd", "cannot be read"),
        ("a.csv.zip", zipped(b"user\n1\n")[:-4], "cannot be read as CSV"),
    ],
)
def test_what_passes_a_bound_is_told_which(tmp_path, name, content, said):
    with pytest.raises(RequestError, match=said) as refusal:
        UnlearningRequest.from_file(written(tmp_path, name, content))
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 1_000


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
@pytest.mark.skipif(sys.platform == "win32", reason="devices")
def test_a_device_is_no_file(tmp_path, path):
    for suffix in (".json", ".csv"):
        (tmp_path / f"link{suffix}").symlink_to(path)
        with pytest.raises(RequestError, match="there is no file"):
            UnlearningRequest.from_file(tmp_path / f"link{suffix}")


@pytest.mark.parametrize("flaw", ["x" * 10_001, "\ud800"])
def test_ids_in_data_are_held_to_what_requests_can_name(flaw):
    with pytest.raises(DataError, match="the item at position 1 "):
        _ = InteractionDataModule({"user": [1, 2, 3], "item": ["a", flaw, "b"]}).num_users


@pytest.mark.parametrize("column", ["r", "t"])
@pytest.mark.parametrize("number", ["0e6901646933", "1e-2147483649", "9" * 50 + "E+99999999999", "7e00001"])
def test_an_exponent_that_would_end_the_process_is_no_number(tmp_path, column, number):
    """Pandas 2.3 looks beyond the end of its table of powers for it, and the process dies of a segmentation fault."""
    path = written(tmp_path, "a.csv", f"user,item,r,t\n1,2,3,4\n2,3,4,5\n3,4,{number},{number}\n".encode())
    columns = {"rating": "r"} if column == "r" else {"timestamp": "t"}
    with pytest.raises(DataError, match=f"column '{column}' .* has 1 values that are not finite numbers, .* line 4"):
        _ = InteractionDataModule(path, **columns).num_users


CONFIGS = {
    "nested": (b"{a: " * 60, "nested deeper than 50 levels"),
    "laughs": ({name: raw for _, name, raw in fuzz.nasties()}["laughs.yaml"], "more than 20,000 values"),
    "itself": (b"a: &a [*a]\n", "a value that holds itself"),
    "long": (b"# " + b"x" * 1_050_000, "more than 1,048,576 bytes"),
    "python": (b"data: !!python/object/apply:os.mkdir [never]\n", "could not determine a constructor"),
    "number": (b"data: " + b"9" * 5_000 + b"\n", "config cannot be read"),
}


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("fit", []),
        ("test", ["--ckpt_path", "a.ckpt"]),
        ("audit", ["--original", "a.ckpt", "--unlearned", "b.ckpt"]),
    ],
)
@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"seed_everything: 1\ntrainer:\n", "got a trainer without settings"),
        (b"data: {init_args: {\xef\xbb\xbfseed: 1}}\n", "not accepted|required"),
    ],
)
def test_a_config_with_empty_or_odd_keys_is_one_sentence(tmp_path, monkeypatch, capsys, command, more, raw, said):
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("user,item\n1,2\n2,3\n")
    Path("run.yaml").write_text(
        "model: {class_path: lightning_ifru.models.LightGCN}\ndata: {init_args: {source: data.csv}}\n"
    )
    Path("odd.yaml").write_bytes(raw)
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", "run.yaml", "--config", "odd.yaml", *more])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.search(said, error)
    assert error.rstrip("\n").isprintable()


@pytest.mark.parametrize("command", ["fit", "audit", "demo"])
@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_stands_for_too_much_is_one_sentence(tmp_path, monkeypatch, capsys, command, what):
    monkeypatch.chdir(tmp_path)
    content, said = CONFIGS[what]
    path = written(tmp_path, "a.yaml", content)
    with pytest.raises(SystemExit) as stop:
        main([command, "--config", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path]
