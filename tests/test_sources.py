import datetime
import gzip
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_ifru.errors import DataError
from lightning_ifru.sources import read_source, read_text_table


def write(tmp_path, content, name="data.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_ids_of_a_file_stay_as_they_stand(tmp_path):
    path = write(tmp_path, 'when,who,what,stars\n3,007,NA,4.5\n1, 7,"a,b",1\n2,null,é,5e0\n')
    frame = read_source(path, user="who", item="what", rating="stars", timestamp="when")
    assert list(frame.columns) == ["user", "item", "rating", "timestamp"]
    assert frame["user"].tolist() == ["007", " 7", "null"]
    assert frame["item"].tolist() == ["NA", "a,b", "é"]
    assert frame["rating"].tolist() == [4.5, 1.0, 5.0]
    assert frame["timestamp"].tolist() == [3, 1, 2]


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_a_compressed_file_and_one_with_a_byte_order_mark_read_alike(tmp_path, as_type):
    content = b"user,item\n1,2\n3,4\n"
    packed = write(tmp_path, gzip.compress(content), "data.csv.gz")
    marked = write(tmp_path, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"), "marked.CSV")
    for path in (packed, marked):
        frame = read_source(as_type(path), user="user", item="item")
        assert frame.to_dict("list") == {"user": ["1", "3"], "item": ["2", "4"]}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 2], [1, 2]),
        (["1", "x"], ["1", "x"]),
        ([1, "x"], [1, "x"]),
        (np.array([1.0, 2.0]), [1, 2]),
        (np.array([1.0, 2.5]), [1.0, 2.5]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor([1.0, 2.0]), [1, 2]),
        (pd.Series([1, 2], index=[7, 9]), [1, 2]),
        (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
        (range(2), [0, 1]),
    ],
)
def test_ids_of_a_mapping_keep_their_type(values, wanted):
    got = read_source({"user": values, "item": ["p", "q"]}, user="user", item="item")["user"].tolist()
    assert got == wanted
    assert [type(value) for value in got] == [type(value) for value in wanted]


def test_blank_lines_are_skipped_and_lines_still_counted(tmp_path):
    path = write(tmp_path, "user,item\n1,2\n\n\n3,4\n\n")
    assert read_text_table(path).index.tolist() == [2, 5]
    assert read_source(path, user="user", item="item")["user"].tolist() == ["1", "3"]
    with pytest.raises(DataError, match="1 missing ids, the first in line 5"):
        read_source(write(tmp_path, "user,item\n1,2\n\n\n3,\n\n"), user="user", item="item")


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("", ["'data.csv' is empty"]),
        ("\n\n", ["is empty"]),
        ("user,item,r\n", ["no interactions", "at least one row"]),
        ("User,item,r\n1,2,3\n", ["no column 'user'", "'User', 'item', 'r'", "user=..."]),
        ("user,item,user\n1,2,3\n", ["column 'user' more than once"]),
        ("user,item,r\n1,2,3\n1,2,3,4\n", ["cannot be read as CSV", "line 3"]),
        ("user,item,r\n1,2,3,4\n", ["more fields in its rows than in its header"]),
        ('user,item,r\n1,"2,3\n', ["cannot be read as CSV"]),
        (b"user,item,r\n\xff\xfe,2,3\n", ["not UTF-8"]),
        ("user,item,r\n1,2,3\n,2,3\n,,3\n", ["column 'user' (user)", "2 missing ids", "line 3"]),
        ("user,item,r\n1,2,3\n2,,3\n", ["column 'item' (item)", "1 missing ids", "line 3"]),
        ("user,item,r\n1,2,3\n,,\n", ["1 missing ids", "line 3"]),
        ("user,item,r\n1,2,3\n5\n", ["column 'item' (item)", "line 3"]),
        ("user,item,r\n1,2,3\n1,3,nan\n1,4,\n1,5,x\n", ["column 'r' (rating)", "3 values", "line 3"]),
        ("user,item,r\n1,2,3\n1,3,4\n1,4,-inf\n", ["column 'r' (rating)", "1 values", "line 4"]),
        ("user,item,r\n1,2,1e300\n", ["column 'r' (rating)", "line 2"]),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, content, fragments):
    with pytest.raises(DataError) as caught:
        read_source(write(tmp_path, content), user="user", item="item", rating="r")
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("data.parquet", b"PAR1", "cannot be read as Parquet"),
        ("data.parquet", b"PAR1" + b"x" * 99, "cannot be read as Parquet"),
        ("data", b"user,item\n1,2\n", "not supported"),
        ("data.csv.gz", b"user,item\n1,2\n", "cannot be read"),
        ("data.csv.gz", gzip.compress(b"user,item\n" + b"1,2\n" * 999, mtime=0)[:-9], "cannot be read"),
        ("data.csv.zip", b"no archive", "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, fragment):
    with pytest.raises(DataError, match=fragment):
        read_source(write(tmp_path, content, name), user="user", item="item")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.csv"):
        read_source(tmp_path / "nothing.csv", user="user", item="item")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="there is no file"):
        read_source(tmp_path / "folder.csv", user="user", item="item")


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ({"user": [1]}, ["no column 'item'", "'user'", "item=..."]),
        ({"user": [1, 2], "item": [1]}, ["different lengths", "'user': 2", "'item': 1"]),
        ({"user": [], "item": []}, ["no interactions"]),
        ({"user": [1, None], "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": ["a", ""], "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": [1, 2], "item": [math.nan, 2.0]}, ["'item'", "row 0"]),
        ({"user": pd.array([1, None], dtype="Int64"), "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": pd.Series([1, None], dtype="Int64"), "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": np.ones((2, 1)), "item": [1, 2]}, ["(2, 1)", "one dimension"]),
        ({"user": "ab", "item": [1, 2]}, ["is a str"]),
        ({"user": {1, 2}, "item": [1, 2]}, ["is a set"]),
        ([1, 2], ["the source is a list", "CSV or Parquet file", "HeteroData"]),
    ],
)
def test_a_bad_mapping_gets_one_sentence(source, fragments):
    with pytest.raises(DataError) as caught:
        read_source(source, user="user", item="item")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_numbers_of_a_mapping_are_checked():
    source = {"user": [1, 2, 3], "item": [1, 2, 3], "r": [1.0, math.inf, math.nan], "t": [1, None, 3]}
    with pytest.raises(DataError, match=r"'r' \(rating\) has 2 values .* row 1"):
        read_source(source, user="user", item="item", rating="r")
    with pytest.raises(DataError, match=r"'t' \(timestamp\) has 1 values .* row 1"):
        read_source(source, user="user", item="item", timestamp="t")


def test_one_column_cannot_have_two_roles():
    with pytest.raises(DataError, match="two roles"):
        read_source({"user": [1]}, user="user", item="user")


# --- Parquet


def parquet(tmp_path, columns, name="data.parquet", **options):
    path = tmp_path / name
    pd.DataFrame(columns).to_parquet(path, **options)
    return path


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1, 2], [1, 2]),
        ([2**53 + 1, 2], [2**53 + 1, 2]),
        (["007", "NA"], ["007", "NA"]),
        ([1.0, 2.0], [1, 2]),
        ([1.0, 2.5], [1.0, 2.5]),
        (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
    ],
)
def test_ids_of_a_parquet_file_keep_their_type(tmp_path, values, wanted):
    path = parquet(tmp_path, {"who": values, "what": ["p", "q"], "other": [0, 0]})
    for source in (path, str(path)):
        frame = read_source(source, user="who", item="what")
        assert list(frame.columns) == ["user", "item"]
        got = frame["user"].tolist()
        assert got == wanted
        assert [type(value) for value in got] == [type(value) for value in wanted]


def test_a_parquet_file_holds_numbers_and_times_of_its_own(tmp_path):
    moments = pd.to_datetime(["2024-03-01", "2024-01-01", "2024-02-01"])
    columns = {"user": [1, 2, 3], "item": [4, 5, 6], "r": [0.5, 1.0, 2.0], "t": moments}
    for index in (None, "user", ["user", "t"]):
        frame = pd.DataFrame(columns) if index is None else pd.DataFrame(columns).set_index(index)
        frame.to_parquet(tmp_path / "x.PARQUET")
        read = read_source(tmp_path / "x.PARQUET", user="user", item="item", rating="r", timestamp="t")
        assert read["user"].tolist() == [1, 2, 3]
        assert read["rating"].tolist() == [0.5, 1.0, 2.0]
        assert read["timestamp"].argsort().tolist() == [1, 2, 0]


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    folder = tmp_path / "data.parquet"
    folder.mkdir()
    for k in range(2):
        parquet(folder, {"user": [k], "item": ["a"]}, f"part-{k}.parquet")
    assert read_source(folder, user="user", item="item")["user"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "fragments"),
    [
        ({"user": [1], "film": [1]}, ["'data.parquet' has no column 'item'", "'user', 'film'", "item=..."]),
        ({"user": [1, None, 2**53 + 1], "item": [1, 2, 3]}, ["'user' (user) has 1 missing ids", "first in row 1"]),
        ({"user": ["a", ""], "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": ["a", None], "item": [1, 2]}, ["1 missing ids", "row 1"]),
        ({"user": [1, 2], "item": [1, 2], "r": [1.0, None]}, ["'r' (rating) has 1 values that are not", "row 1"]),
        ({"user": pd.Series([], dtype=int), "item": pd.Series([], dtype=int)}, ["no interactions"]),
    ],
)
def test_a_bad_parquet_file_gets_one_sentence(tmp_path, columns, fragments):
    rating = "r" if "r" in columns else None
    path = parquet(tmp_path, columns)
    with pytest.raises(DataError) as caught:
        read_source(path, user="user", item="item", rating=rating)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_needs_pyarrow_and_to_be_there(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.parquet"):
        read_source(tmp_path / "nothing.parquet", user="user", item="item")
    path = parquet(tmp_path, {"user": [1], "item": [1]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"cannot be read without pyarrow; .* 'lightning-ifru\[parquet\]'"):
        read_source(path, user="user", item="item")


# --- times and splits


@pytest.mark.parametrize(
    "values",
    [
        [3, 1, 2],
        ["3", "1.5", "2e0"],
        ["2024", "2022", "2023"],
        np.array([1_700_000_000_000_000_003, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002]),
        pd.array([3, 1, 2], dtype="Int64"),
        torch.tensor([3.0, 1.0, 2.0]),
        ["2024-01-03", "2024-01-01T23:59:59.5", "2024-01-02 00:00"],
        ["2024-01-01T12:00+02:00", "2024-01-01T07:00Z", "2024-01-01T09:59:59"],
        pd.to_datetime(["2024-01-03", "2024-01-01", "2024-01-02"]).to_series(),
        pd.to_datetime(["2024-01-03", "2024-01-01", "2024-01-02"]).tz_localize("Asia/Tokyo").to_series(),
        np.array(["2024-01-03", "2024-01-01", "2024-01-02"], dtype="datetime64[s]"),
        [datetime.datetime(2024, 1, 3), datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)],
        [datetime.date(2024, 1, 3), datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)],
    ],
    ids=str,
)
def test_times_are_numbers_in_their_order(values):
    source = {"user": [1, 2, 3], "item": [1, 2, 3], "t": values}
    read = read_source(source, user="user", item="item", timestamp="t")["timestamp"]
    assert np.issubdtype(read.dtype, np.number)
    assert read.argsort().tolist() == [1, 2, 0]
    assert read.is_unique


def test_text_without_a_zone_is_of_utc_and_numeric_text_a_number(tmp_path):
    path = write(tmp_path, "user,item,t,n\n1,1,1970-01-02,7\n2,2,1970-01-02T01:00+01:00,0008\n")
    assert read_source(path, user="user", item="item", timestamp="t")["timestamp"].nunique() == 1
    assert read_source(path, user="user", item="item", timestamp="n")["timestamp"].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        (["2024-01-01", "2024-01-02", "7"], ["1 values that are not ISO 8601 times as the others are", "line 4"]),
        (["2024-01-01", "1.1.2024", "2024-01-02"], ["1 values that are not ISO 8601 times", "line 3"]),
        (["2024-01-01", "2024-13-01", "", "2024-02-29"], ["2 values that are not ISO 8601 times", "line 3"]),
        (["2024-01-01", "2024-01-02", ""], ["1 values that are not ISO 8601 times", "line 4"]),
        (["5", "2024-01-02", "6"], ["1 values that are not finite numbers as the others are", "line 3"]),
        (["5", "6", "x"], ["1 values that are not finite numbers, ", "line 4"]),
        (["5", "inf", "6"], ["1 values that are not finite numbers, ", "line 3"]),
        (["x", "y", ""], ["3 values that are not finite numbers", "line 2"]),
    ],
)
def test_bad_times_get_one_sentence(tmp_path, values, fragments):
    text = "user,item,t\n" + "".join(f"{k},{k},{value}\n" for k, value in enumerate(values))
    with pytest.raises(DataError, match=r"column 't' \(timestamp\)") as caught:
        read_source(write(tmp_path, text), user="user", item="item", timestamp="t")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_times_of_a_mapping_may_not_be_missing_or_mixed():
    for values in ([pd.Timestamp(0), None], np.array(["2024-01-01", "NaT"], "datetime64[ns]"), [pd.Timestamp(0), "x"]):
        with pytest.raises(DataError, match=r"1 values that are not ISO 8601 times .* row 1"):
            read_source({"user": [1, 2], "item": [1, 2], "t": values}, user="user", item="item", timestamp="t")


def test_a_given_split_is_read_by_its_words(tmp_path):
    path = write(tmp_path, "user,item,split\n1,2,val\n3,4,train\n5,6,test\n")
    mapping = {"user": [1, 3, 5], "item": [2, 4, 6], "split": pd.Categorical(["val", "train", "test"])}
    for source in (path, mapping):
        assert read_source(source, user="user", item="item", split="split")["split"].tolist() == [1, 0, 2]
    path = write(tmp_path, "user,item,split\n1,2,val\n3,4,Train\n5,6,\n")
    with pytest.raises(DataError, match=r"'split' \(split\) has 2 values other than train, val, test, .* line 3"):
        read_source(path, user="user", item="item", split="split")
    with pytest.raises(DataError, match=r"no column 'split' .* add it\.$"):
        read_source({"user": [1], "item": [2]}, user="user", item="item", split="split")
