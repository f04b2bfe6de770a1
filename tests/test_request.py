import hashlib
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_ifru.errors import RequestError
from lightning_ifru.ids import id_text
from lightning_ifru.request import UnlearningRequest

ids = st.one_of(st.integers(), st.text(st.characters(codec="utf-8"), min_size=1))
requests = st.builds(
    UnlearningRequest,
    users=st.lists(ids, min_size=1, max_size=5),
    items=st.lists(ids, max_size=5),
    interactions=st.lists(st.tuples(ids, ids), max_size=5),
)


@pytest.mark.parametrize(
    "users", [[1, 2], (1, 2), {1, 2}, range(1, 3), np.array([1, 2]), torch.tensor([1, 2]), iter(["1", 2.0])]
)
def test_any_iterable_of_ids_names_the_same_users(users):
    assert UnlearningRequest(users=users) == UnlearningRequest(users=["2", "1"])


def test_what_is_stored_are_tuples_of_plain_values():
    request = UnlearningRequest(users=np.array([3]), interactions=torch.tensor([[1, 2]]))
    assert (request.users, request.items, request.interactions) == ((3,), (), ((1, 2),))
    assert type(request.users[0]) is int


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({}, ["empty"]),
        ({"users": [], "items": np.array([])}, ["empty"]),
        ({"users": "42"}, ["users='42' is a str", "users=['42']"]),
        ({"users": 42}, ["users=42 is a int", "users=[42]"]),
        ({"items": b"42"}, ["items=", "is a bytes"]),
        ({"items": {"a": 1}}, ["is a dict"]),
        ({"users": [1, None]}, ["users holds a missing id (None)"]),
        ({"items": [""]}, ["items holds a missing id ('')"]),
        ({"users": [float("nan")]}, ["missing id (nan)"]),
        ({"users": [[1]]}, ["no id"]),
        ({"users": [(1, 2)]}, ["no id"]),
        ({"interactions": (1, 2)}, ["no pair", "[(user, item), ...]"]),
        ({"interactions": ["ab"]}, ["'ab', which is no pair"]),
        ({"interactions": [(1, 2, 3)]}, ["no pair"]),
        ({"interactions": [(1, None)]}, ["interactions holds a missing id"]),
        ({"interactions": np.ones((2, 3))}, ["no pair"]),
    ],
)
def test_what_is_no_request_is_refused(arguments, fragments):
    with pytest.raises(RequestError) as caught:
        UnlearningRequest(**arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)


@given(requests, st.randoms(use_true_random=False))
def test_order_repetition_and_type_change_neither_equality_nor_digest(request_, shuffler):
    def scrambled(values):
        values = [*values, *values[:2]]
        shuffler.shuffle(values)
        return values

    other = UnlearningRequest(
        users=[id_text(value) for value in scrambled(request_.users)],
        items=[id_text(value) for value in scrambled(request_.items)],
        interactions=[(id_text(u), id_text(i)) for u, i in scrambled(request_.interactions)],
    )
    assert other == request_
    assert hash(other) == hash(request_)
    assert other.digest(b"key") == request_.digest(b"key")


def test_digests_tell_requests_and_keys_apart():
    different = [
        UnlearningRequest(users=[1]),
        UnlearningRequest(items=[1]),
        UnlearningRequest(users=[1], items=[1]),
        UnlearningRequest(interactions=[(1, 1)]),
        UnlearningRequest(users=["1", "2"]),
        UnlearningRequest(users=["1,2"]),
        UnlearningRequest(interactions=[(1, 2)]),
        UnlearningRequest(interactions=[(2, 1)]),
    ]
    assert len({request.digest(b"key") for request in different}) == len(different)
    assert len(set(different)) == len(different)
    digest = different[0].digest(b"key")
    assert different[0].digest(b"other") != digest
    assert len(digest) == 64
    assert digest != hashlib.sha256(b'[["user","1"]]').hexdigest()
    with pytest.raises(RequestError, match="key is empty"):
        different[0].digest(b"")
    assert different[0] != "something else"


@given(requests, requests)
def test_the_union_holds_what_either_holds(one, other):
    both = one | other
    for part in ("users", "items"):
        wanted = {id_text(value) for request in (one, other) for value in getattr(request, part)}
        assert {id_text(value) for value in getattr(both, part)} == wanted
        assert len(getattr(both, part)) == len(wanted)
    assert both == other | one == both | one
    assert both.digest(b"key") == (other | one).digest(b"key")


def test_a_csv_file_names_interactions_users_and_items(tmp_path):
    path = tmp_path / "forget.csv"
    path.write_text("user,item\n1,a\n\n007,\n,NA\n1,a\n")
    request = UnlearningRequest.from_file(path)
    assert request.interactions == (("1", "a"), ("1", "a"))
    assert request.users == ("007",)
    assert request.items == ("NA",)
    assert request.lines == {("interaction", ("1", "a")): 2, ("user", "007"): 4, ("item", "NA"): 5}
    assert request == UnlearningRequest(users=["007"], items=["NA"], interactions=[(1, "a")])
    assert "lines" not in repr(request)


def test_a_csv_file_of_one_column_names_whole_users_or_items(tmp_path):
    path = tmp_path / "forget.csv"
    path.write_text("movieId\n5\n6\n")
    assert UnlearningRequest.from_file(path, item="movieId") == UnlearningRequest(items=[5, 6])
    path.write_text("user\n5\n")
    assert UnlearningRequest.from_file(str(path)) == UnlearningRequest(users=[5])


def test_a_parquet_file_names_interactions_users_and_items(tmp_path):
    path = tmp_path / "forget.parquet"
    long = 2**53 + 1
    users = pd.array([long, 0, None, long], dtype="Int64")
    pd.DataFrame({"user": users, "item": ["a", None, "NA", "a"]}).to_parquet(path)
    request = UnlearningRequest.from_file(path)
    assert request == UnlearningRequest(users=[0], items=["NA"], interactions=[(long, "a")])
    assert (request.users, request.interactions[0]) == ((0,), (long, "a"))
    assert request.rows == {("interaction", (str(long), "a")): 0, ("user", "0"): 1, ("item", "NA"): 2}
    assert not request.lines
    assert request.named(("item", "NA")) == "item 'NA' (row 2)"
    assert "rows" not in repr(request)

    pd.DataFrame({"movieId": [5.0, 6.0]}).to_parquet(path)
    assert UnlearningRequest.from_file(str(path), item="movieId") == UnlearningRequest(items=[5, 6])


def test_an_entry_is_named_with_its_place(tmp_path):
    (tmp_path / "a.csv").write_text("user,item\n1,x\n")
    pd.DataFrame({"user": ["7"]}).to_parquet(tmp_path / "b.parquet")
    read = [UnlearningRequest.from_file(tmp_path / name) for name in ("a.csv", "b.parquet")]
    both = read[0] | read[1] | UnlearningRequest(items=[4])
    assert [both.named(key) for key in both.texts] == [
        "user '7' (row 0)",
        "item 4",
        "interaction ('1', 'x') (line 2)",
    ]


@pytest.mark.parametrize(
    ("columns", "fragments"),
    [
        ({"who": ["1"]}, ["column 'user' or 'item'", "['who']"]),
        ({"user": [1, None], "item": ["x", None]}, ["row 1 names neither"]),
        ({"user": ["1", ""], "item": ["x", ""]}, ["row 1 names neither"]),
        ({"user": [1], "film": [2]}, ["not 'item'", "['film']", "cannot be told apart"]),
        ({"user": pd.Series([], dtype=str)}, ["empty"]),
    ],
)
def test_a_bad_parquet_request_is_refused_as_csv_is(tmp_path, columns, fragments):
    pd.DataFrame(columns).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(RequestError, match=r"'r\.parquet' is refused") as caught:
        UnlearningRequest.from_file(tmp_path / "r.parquet")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_json_file_remembers_lines(tmp_path):
    content = {"items": ['é"],[', 4.0], "interactions": [[1, "x"], ["users", 2]], "users": [-3, "y"]}
    path = tmp_path / "forget.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    request = UnlearningRequest.from_file(path)
    assert request == UnlearningRequest(**content)
    rows = path.read_text().splitlines()
    assert len(request.lines) == 6
    for (kind, text), line in request.lines.items():
        first = text[0] if kind == "interaction" else text
        shown = {'é"],[': '"\\u00e9\\"],["', "4": "4.0", "1": "1", "-3": "-3"}.get(first, f'"{first}"')
        assert rows[line - 1].strip().rstrip(",") == shown


def test_the_union_keeps_the_lines_of_both(tmp_path):
    for name, user in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.csv").write_text(f"user\n{user}\n")
    both = UnlearningRequest.from_file(tmp_path / "a.csv") | UnlearningRequest.from_file(tmp_path / "b.csv")
    assert both.lines == {("user", "1"): 2, ("user", "2"): 2}


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("r.csv", "who\n1\n", ["column 'user' or 'item'", "['who']"]),
        ("r.csv", "user,item\n1,2\n,\n", ["line 3 names neither"]),
        ("r.csv", "user,item\n", ["empty"]),
        ("r.csv", "", ["is empty"]),
        ("r.csv", "user,film\n1,2\n", ["'user'", "not 'item'", "['film']", "cannot be told apart"]),
        ("r.json", "{", ["not JSON", "line 1"]),
        ("r.json", "[1]", ["got 'list'"]),
        ("r.json", '{"user": [1]}', ["got 'user'"]),
        ("r.json", '{"users": "42"}', ["users='42' is a str"]),
        ("r.json", '{"users": null}', ["users=None"]),
        ("r.json", '{"users": [1], "users": [2]}', ["more than once"]),
        ("r.json", '{"users": [{"id": 1}]}', ["which is no id"]),
        ("r.json", '{"interactions": [[1]]}', ["no pair"]),
        ("r.json", '{"users": []}', ["empty"]),
        ("r.json", '{"users": [NaN]}', ["missing id"]),
        ("r.parquet", "PAR1", ["cannot be read as Parquet"]),
        ("r.txt", "1", ["not supported"]),
    ],
)
def test_a_bad_request_file_is_refused_by_name(tmp_path, name, content, fragments):
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=name) as caught:
        UnlearningRequest.from_file(tmp_path / name)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("kind", ["CSV", "JSON", "Parquet"])
def test_a_missing_request_file_is_said(tmp_path, kind):
    name = f"nothing.{kind.lower()}"
    with pytest.raises(RequestError, match=rf"there is no file .*{name}'; give the path of an existing {kind} file\.$"):
        UnlearningRequest.from_file(tmp_path / name)


def test_a_request_cannot_be_changed():
    request = UnlearningRequest(users=random.sample(range(9), 3))
    with pytest.raises(AttributeError):
        request.users = ()
    assert len(request.users) == 3


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_columns_that_no_comma_separates_are_told_apart_from_misnamed_ones(tmp_path, mark):
    path = tmp_path / "forget.csv"
    path.write_text(f"user{mark}item\n42{mark}a\n")
    with pytest.raises(RequestError, match=r"separate the columns by commas\.$"):
        UnlearningRequest.from_file(path)
    path.write_text("person\n42\n")
    with pytest.raises(RequestError, match=r"rename them, or in Python name them by user= and item=\.$"):
        UnlearningRequest.from_file(path)
