import gzip
import math

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
        ("data", b"user,item\n1,2\n", "not supported"),
        ("data.csv.gz", b"user,item\n1,2\n", "cannot be read"),
        ("data.csv.gz", gzip.compress(b"user,item\n" + b"1,2\n" * 999)[:-9], "cannot be read"),
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
        ([1, 2], ["the source is a list"]),
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
