"""The ledger beside the checkpoints: what it says, that nothing in it can be changed unseen, and how it is restored."""

import hashlib
import hmac
import itertools
import json
import math
import platform
import shutil
import zipfile
from datetime import datetime
from unittest.mock import Mock

import pytest
import torch

from lightning_ifru import IFRU, DataError, IFRUCallback, UnlearningRequest
from lightning_ifru.cli import main
from lightning_ifru.ledger import Ledger, entries_in, is_result
from lightning_ifru.ledger_check import check_ledger
from lightning_ifru.outputs import LEDGER, LOCK, alone_in, check_target
from lightning_ifru.verdict import Drift

PEOPLE = ["person-003", "person-007", "person-011"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture
def unlearn(make_data, make_model, make_trainer):
    """Unlearn a person from a checkpoint, with objects of its own as in a process of its own."""

    def run(person, loaded, output, **changes):
        callback = IFRUCallback(IFRU(max_steps=1, cg_iterations=3), evaluate=False)
        trainer = make_trainer(callbacks=[callback], enable_checkpointing=False, max_epochs=2)
        data, model = make_data(), make_model()
        if loaded is None:
            trainer.fit(model, datamodule=data)
            trainer.save_checkpoint(output)
            return None
        request = UnlearningRequest(users=[person])
        return trainer.unlearn(data, model=model, request=request, ckpt_path=loaded, output=output, **changes)

    return run


@pytest.fixture
def folder(base, unlearn, tmp_path):
    """A folder with a trained checkpoint, three that have forgotten more and more, and their ledger."""
    if not (base / LEDGER).exists():
        unlearn(None, None, base / "0.ckpt")
        for number, person in enumerate(PEOPLE):
            unlearn(person, base / f"{number}.ckpt", base / f"{number + 1}.ckpt")
    shutil.copytree(base, tmp_path / "line")
    return tmp_path / "line"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def lines_of(folder):
    return [json.loads(text) for text in (folder / LEDGER).read_text().splitlines()]


def write(folder, lines):
    (folder / LEDGER).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_line_says_what_happened_to_which_file_and_follows_from_the_one_before(folder, monkeypatch):
    monkeypatch.delenv("LIGHTNING_IFRU_KEY", raising=False)
    texts = (folder / LEDGER).read_bytes().splitlines()
    lines = lines_of(folder)
    assert len(lines) == 3
    assert [line["previous"] for line in lines] == [None, sha256(texts[0]), sha256(texts[1])]
    assert [line["checkpoint"] for line in lines] == ["1.ckpt", "2.ckpt", "3.ckpt"]
    for number, line in enumerate(lines):
        assert line["checkpoint_before"] == sha256((folder / f"{number}.ckpt").read_bytes())
        assert line["checkpoint_after"] == sha256((folder / f"{number + 1}.ckpt").read_bytes())
        assert line["number"] == number + 1
        carried = torch.load(folder / f"{number + 1}.ckpt", weights_only=True)["callbacks"]["IFRUCallback"]["ledger"]
        assert carried == [
            {name: value for name, value in one.items() if name not in ("checkpoint", "checkpoint_after", "previous")}
            for one in lines[: number + 1]
        ]
    assert len({line["line"] for line in lines}) == 1
    assert len({line["id"] for line in lines}) == 3
    first = lines[0]
    assert first["num_forgotten"] == sum(first["forgotten_by_split"].values()) > 5
    assert first["num_users_erased"] == 1
    assert 0 < first["residual_after"] < first["residual_before"]
    assert first["verdict"]
    assert first["method"]["cg_iterations"] == 3
    assert first["versions"]["python"] == platform.python_version()
    assert first["versions"]["torch"] == torch.__version__


def test_no_line_has_an_id_or_its_plain_hash(folder):
    said = (folder / LEDGER).read_text()
    for person in PEOPLE:
        request = json.dumps([["user", person]], separators=(",", ":"))
        for plain in (person, sha256(person.encode()), sha256(request.encode())):
            assert plain not in said


def test_who_has_the_key_finds_a_request_again(base, unlearn, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_IFRU_KEY", "the key of this test")
    unlearn(None, None, tmp_path / "0.ckpt")
    unlearn(PEOPLE[0], tmp_path / "0.ckpt", tmp_path / "1.ckpt")
    (line,) = lines_of(tmp_path)
    canonical = json.dumps([["user", PEOPLE[0]]], separators=(",", ":")).encode()
    assert line["digest"] == hmac.new(b"the key of this test", canonical, "sha256").hexdigest()
    assert line["digest"] != hmac.new(b"another", canonical, "sha256").hexdigest()


def test_a_ledger_that_nobody_has_touched_holds(folder):
    before = (folder / LEDGER).read_bytes()
    for path in (folder, folder / LEDGER):
        found = check_ledger(path)
        assert found.holds
        assert (found.lines, found.restored, found.faults) == (3, 0, [])
        assert found.checkpoints == dict.fromkeys(("1.ckpt", "2.ckpt", "3.ckpt"), "as written")
    assert (folder / LEDGER).read_bytes() == before


def changed(folder, number, **values):
    lines = lines_of(folder)
    lines[number] |= values
    write(folder, lines)


def without_a_line(folder):
    lines = lines_of(folder)
    write(folder, [lines[0], lines[2]])


def chained_anew(folder):
    """Somebody with the tool at hand changes a number and all hashes after it."""
    lines = lines_of(folder)
    lines[0]["num_forgotten"] = 1
    for before, line in itertools.pairwise(lines):
        line["previous"] = sha256(json.dumps(before).encode())
    write(folder, lines)


def another_file(folder):
    with (folder / "2.ckpt").open("ab") as file:
        file.write(b"more")


def exchanged(folder):
    shutil.copy(folder / "1.ckpt", folder / "2.ckpt")


def told_anew(folder, order=(0, 1, 2), **values):
    """Somebody without the checkpoints writes a chain whose hashes hold."""
    for path in folder.glob("*.ckpt"):
        path.unlink()
    lines = [lines_of(folder)[number] for number in order]
    lines[-1] |= values
    lines[0]["previous"] = None
    for before, line in itertools.pairwise(lines):
        line["previous"] = sha256(json.dumps(before).encode())
    write(folder, lines)


TAMPERED = {
    "a count": (lambda f: told_anew(f, number=2), "line 3 does not go on from line 2"),
    "a count that is none": (lambda f: told_anew(f, number="3"), "line 3 does not go on from line 2"),
    "another model": (lambda f: told_anew(f, line="mine"), "line 3 does not go on from line 2"),
    "the order": (lambda f: told_anew(f, (0, 2, 1)), "line 2 stands before line 3"),
    "a name taken out": (lambda f: told_anew(f, checkpoint=None), "line 3 has of its checkpoint's name and hash one"),
    "a hash taken out": (lambda f: told_anew(f, checkpoint_after=None), "line 3 has of its checkpoint's name and hash"),
    "a number": (lambda f: changed(f, 1, num_forgotten=1), "line 3 does not follow from line 2 as it stands"),
    "a line taken out": (without_a_line, "line 2 does not follow from line 1 as it stands"),
    "the first hash": (lambda f: changed(f, 0, previous="ab"), "line 1 does not follow from nothing"),
    "a line twice": (lambda f: write(f, lines_of(f)[:1] * 2), "line 2 repeats one before"),
    "all hashes": (chained_anew, "line 1 says other than 1.ckpt does"),
    "a checkpoint": (another_file, "2.ckpt is not the file that was written"),
    "another checkpoint": (exchanged, "2.ckpt is not the file that was written"),
    "a path": (lambda f: changed(f, 2, checkpoint="../3.ckpt"), "'../3.ckpt' is no name of a file beside it"),
    "a windows path": (lambda f: changed(f, 2, checkpoint="..\\3.ckpt"), "is no name of a file beside it"),
    "a list": (lambda f: changed(f, 2, checkpoint=["3.ckpt"]), "line 3 is none that an unlearning has written"),
    "no id": (lambda f: changed(f, 2, id=7), "line 3 is none that an unlearning has written"),
    "no JSON": (lambda f: (f / LEDGER).write_text("mine\n" * 2), "line 1 is none that an unlearning has written"),
    "nesting": (lambda f: (f / LEDGER).write_text("[" * 10**5 + "\n"), "line 1 is none that an unlearning"),
    "a number of a million digits": (lambda f: (f / LEDGER).write_text("9" * 10**6 + "\n"), "line 1 is none"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_found(folder, what, capsys):
    change, sentence = TAMPERED[what]
    change(folder)
    found = check_ledger(folder / LEDGER)
    assert not found.holds
    assert any(sentence in fault for fault in found.faults), found.faults
    assert main(["audit", "--ledger", str(folder / LEDGER)]) == 3
    assert sentence in capsys.readouterr().out


def test_a_name_does_not_command_a_terminal(folder, capsys):
    changed(folder, 2, checkpoint="\x1b[2J.ckpt")
    assert main(["audit", "--ledger", str(folder)]) == 0  # the last line has none after it, and the file is gone
    said = capsys.readouterr().out
    assert "[2J.ckpt gone" in said
    assert "\x1b" not in said


def test_an_entry_of_a_checkpoint_that_is_none_is_no_entry(folder):
    content = torch.load(folder / "3.ckpt", weights_only=True)
    content["callbacks"]["IFRUCallback"]["ledger"][0]["id"] = ["a"]
    torch.save(content, folder / "4.ckpt")
    (folder / "5.ckpt").write_text("mine")
    assert entries_in(folder / "4.ckpt") is None
    assert entries_in(folder / "5.ckpt") is None
    assert entries_in(folder / "0.ckpt") == []
    assert check_ledger(folder).holds


def test_packed_parts_are_not_unpacked_for_a_ledger(folder):
    with zipfile.ZipFile(folder / "3.ckpt") as plain, zipfile.ZipFile(folder / "4.ckpt", "w") as packed:
        for part in plain.namelist():
            packed.writestr(part, plain.read(part), zipfile.ZIP_DEFLATED)
    assert entries_in(folder / "3.ckpt")
    assert entries_in(folder / "4.ckpt") is None


DRIFTS = [
    *({"forgotten": value} for value in (-(10**9), 10**400, 1.5, True, "7", [1])),
    *({"moved": value} for value in (-1.0, math.inf, math.nan, "1", {})),
    *({"stuck": 2, "forgotten": 1}, {"forgotten": 2**62, "trained": 10}, {"stuck": 7, "forgotten": 11, "trained": 10}),
    *({"moved": 1e-308, "undecided": 1e308}, {"asked": 1e-308, "pulled": 1e308}, "much", [1]),
]


@pytest.mark.parametrize("drift", DRIFTS, ids=str)
def test_a_drift_that_no_unlearning_leaves_is_refused_with_a_sentence(folder, unlearn, drift):
    content = torch.load(folder / "1.ckpt", weights_only=True)
    (entry,) = content["callbacks"]["IFRUCallback"]["ledger"]
    assert Drift.of(entry).forgotten > 0
    entry["drift"] = {**entry["drift"], **drift} if isinstance(drift, dict) else drift
    torch.save(content, folder / "forged.ckpt")
    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match="ledger is not as an unlearning writes it"):
        unlearn(PEOPLE[1], folder / "forged.ckpt", folder / "4.ckpt")
    assert sorted({*folder.iterdir()} - {*before}) in ([], [folder / LOCK])


@pytest.mark.parametrize("name", [LEDGER, LOCK, LEDGER.upper()])
def test_the_ledger_and_the_lock_are_no_place_for_anything_else(folder, unlearn, name):
    before = (folder / LEDGER).read_bytes()
    with pytest.raises(DataError, match=r"got output .* belongs to the ledger or the lock"):
        unlearn("person-013", folder / "3.ckpt", folder / name)
    for option in ("--report", "--figure"):
        with pytest.raises(DataError, match=f"got {option} .*; give another name"):
            check_target(folder / name, True, option)
    assert (folder / LEDGER).read_bytes() == before


def test_checkpoints_may_be_deleted(folder):
    for number in (0, 1, 2):
        (folder / f"{number}.ckpt").unlink()
    found = check_ledger(folder)
    assert found.holds
    assert found.checkpoints == {"1.ckpt": "gone", "2.ckpt": "gone", "3.ckpt": "as written"}


# --- after a crash


def torn(folder):
    content = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(content[:-20])


def cut(folder):
    write(folder, lines_of(folder)[:2])


def gone(folder):
    (folder / LEDGER).unlink()


@pytest.mark.parametrize(("break_off", "restored"), [(torn, 1), (cut, 1), (gone, 3)])
def test_the_end_is_restored_from_the_checkpoints(folder, break_off, restored):
    whole = (folder / LEDGER).read_bytes()
    break_off(folder)
    assert (folder / LEDGER).exists() == (break_off is not gone)
    found = check_ledger(folder / LEDGER)
    assert found.holds
    assert found.restored == restored
    assert (folder / LEDGER).read_bytes() == whole
    assert check_ledger(folder / LEDGER).restored == 0


def test_a_checkpoint_of_a_later_fit_is_not_taken_for_the_one_that_was_written(folder):
    whole = (folder / LEDGER).read_bytes()
    shutil.copy(folder / "3.ckpt", folder / "z.ckpt")
    content = torch.load(folder / "3.ckpt", weights_only=True)
    content["epoch"] = 7
    torch.save(content, folder / "a-later.ckpt")
    cut(folder)
    assert check_ledger(folder).holds
    assert (folder / LEDGER).read_bytes() == whole


@pytest.mark.parametrize("break_off", [torn, cut])
def test_the_next_unlearning_restores_the_end_as_well(folder, unlearn, break_off):
    whole = lines_of(folder)
    break_off(folder)
    unlearn("person-013", folder / "3.ckpt", folder / "4.ckpt")
    assert lines_of(folder)[:3] == whole
    assert [line["checkpoint"] for line in lines_of(folder)] == ["1.ckpt", "2.ckpt", "3.ckpt", "4.ckpt"]
    assert check_ledger(folder).holds


def test_the_same_again_restores_the_end_and_writes_nothing_else(folder, unlearn):
    whole, checkpoint = (folder / LEDGER).read_bytes(), (folder / "3.ckpt").read_bytes()
    cut(folder)
    assert unlearn(PEOPLE[2], folder / "2.ckpt", folder / "3.ckpt").already_absent == 1
    assert (folder / LEDGER).read_bytes() == whole
    assert (folder / "3.ckpt").read_bytes() == checkpoint


def test_what_cannot_be_restored_does_not_hold(folder, monkeypatch):
    torn(folder)
    before = (folder / LEDGER).read_bytes()
    monkeypatch.setattr(Ledger, "append", Mock(side_effect=ValueError("no room")))
    found = check_ledger(folder)
    assert found.faults == [
        "3.ckpt tells of 1 unlearnings of which the ledger has no line.",
        "its last line is not whole, and could not be restored: no room.",
    ]
    assert (folder / LEDGER).read_bytes() == before


def test_lines_are_not_missed_while_another_process_may_add_them(folder, capsys):
    with alone_in(folder):
        assert check_ledger(folder).holds
        cut(folder)
        before = (folder / LEDGER).read_bytes()
        assert main(["audit", "--ledger", str(folder)]) == 1
    assert "another unlearning writes into" in capsys.readouterr().err
    assert (folder / LEDGER).read_bytes() == before


def emptied(folder):
    (folder / LEDGER).write_text("")


def halved(folder):
    (folder / LEDGER).write_bytes((folder / LEDGER).read_bytes()[:50])


def with_a_hole(folder):
    """Somebody takes a line out and makes the hashes after it hold again."""
    lines = lines_of(folder)
    lines[2]["previous"] = lines[1]["previous"]
    write(folder, [lines[0], lines[2]])


LOSSES = [
    (emptied, 3),
    (halved, 3),
    (lambda f: write(f, lines_of(f)[:1]), 2),
    (with_a_hole, 1),
]


@pytest.mark.parametrize(("lose", "lost"), LOSSES)
def test_what_no_crash_takes_away_is_restored_only_if_asked_for(folder, capsys, lose, lost):
    lose(folder)
    less = (folder / LEDGER).read_bytes()
    lines = f"it had lost {lost} line{'s' if lost > 1 else ''}, which no crash takes away and which"
    for _ in range(2):  # the fault stays seen
        assert main(["audit", "--ledger", str(folder)]) == 3
        said = capsys.readouterr().out
        assert f"{lines} {'are' if lost > 1 else 'is'} not restored without --restore." in said
        assert "RESTORED" not in said
        assert (folder / LEDGER).read_bytes() == less
    assert main(["audit", "--ledger", str(folder), "--restore", "true"]) == 3
    said = capsys.readouterr().out
    assert f"{lines} {'are' if lost > 1 else 'is'} restored." in said
    assert (f"RESTORED {lost} lines from the checkpoints: as asked for." in said) == (lost > 1)
    # What came of a line that was taken out stands before it now.
    assert main(["audit", "--ledger", str(folder)]) == (3 if lose is with_a_hole else 0)
    assert {line["id"] for line in lines_of(folder)} == {entry["id"] for entry in entries_in(folder / "3.ckpt")}
    assert {line["checkpoint"] for line in lines_of(folder)} == {"1.ckpt", "2.ckpt", "3.ckpt"}


def another_model(folder):
    """A ledger of another model, in which all ids are others."""
    lines = [line | {"id": line["id"][::-1], "line": "another", "checkpoint": None} for line in lines_of(folder)]
    lines = [line | {"checkpoint_after": None, "checkpoint_before": None} for line in lines]
    for before, line in itertools.pairwise(lines):
        line["previous"] = sha256(json.dumps(before).encode())
    write(folder, lines)


@pytest.mark.parametrize(
    ("lose", "restored", "why"),
    [
        (gone, 3, "RESTORED 3 lines from the checkpoints: the file is new."),
        (another_model, 3, "RESTORED 3 lines from the checkpoints: each of a model that is new to it, or"),
        (cut, 1, None),
    ],
)
def test_one_crash_is_no_loss(folder, capsys, lose, restored, why):
    lose(folder)
    assert main(["audit", "--ledger", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{restored} of them restored from the checkpoints beside it; every line follows" in said
    assert ("RESTORED" in said) == (why is not None)
    assert (why or "") in said
    assert [line["checkpoint"] for line in lines_of(folder)][-restored:] == ["1.ckpt", "2.ckpt", "3.ckpt"][-restored:]


@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (emptied, "had lost 3 lines of earlier unlearnings, added again from 4.ckpt: a crash takes away one"),
        (lambda f: write(f, lines_of(f)[:1]), "had lost 2 lines of earlier"),
        (cut, "had lost 1 line of earlier"),
        (lambda f: changed(f, 1, num_forgotten=1), "did not hold when a line was to be added to it: line 3 does not"),
        (gone, None),
        (another_model, None),
        (lambda f: None, None),
    ],
)
def test_the_next_unlearning_says_what_was_wrong_with_the_ledger(folder, unlearn, recwarn, lose, said):
    lose(folder)
    unlearn("person-013", folder / "3.ckpt", folder / "4.ckpt")
    warned = [str(one.message) for one in recwarn if str(folder / LEDGER) in str(one.message)]
    assert [said in one for one in warned] == ([True] if said else [])
    assert [line["checkpoint"] for line in lines_of(folder)][-4:] == ["1.ckpt", "2.ckpt", "3.ckpt", "4.ckpt"]


def test_a_new_ledger_is_there_with_its_lines_or_not_at_all(folder, monkeypatch):
    """An empty one is then one that somebody has emptied."""
    gone(folder)
    names = {path.name for path in folder.iterdir()} | {LOCK}
    with monkeypatch.context() as patch:
        patch.setattr("lightning_ifru.ledger.os.fsync", Mock(side_effect=OSError("no room")))
        with pytest.raises(DataError, match="no room"):
            check_ledger(folder)
    assert {path.name for path in folder.iterdir()} == names
    assert check_ledger(folder).holds


def test_nothing_is_restored_onto_a_broken_chain(folder):
    without_a_line(folder)
    before = (folder / LEDGER).read_bytes()
    found = check_ledger(folder)
    assert (found.holds, found.restored, (folder / LEDGER).read_bytes()) == (False, 0, before)
    assert "3.ckpt tells of 1 unlearnings of which the ledger has no line." in found.faults


def test_the_hash_of_the_last_line_tells_a_change_that_nothing_else_does(folder, capsys):
    last = sha256((folder / LEDGER).read_bytes().splitlines()[-1])
    assert check_ledger(folder).last == last
    (folder / "3.ckpt").unlink()
    changed(folder, 2, num_forgotten=1)
    assert main(["audit", "--ledger", str(folder)]) == 0
    said = capsys.readouterr().out
    assert last not in said
    assert f"to be kept elsewhere: {sha256((folder / LEDGER).read_bytes().splitlines()[-1])}" in said


def test_twenty_faults_are_printed_and_the_rest_is_counted(folder, capsys):
    (folder / LEDGER).write_text("mine\n" * 152)
    (folder / "0.ckpt").unlink()
    faults = len(check_ledger(folder).faults)
    assert faults >= 152
    assert main(["audit", "--ledger", str(folder)]) == 3
    said = capsys.readouterr().out
    assert said.count("\n  - line ") == 20
    assert f"  - and {faults - 20} more." in said


def test_a_clock_that_goes_backwards_breaks_nothing(folder, unlearn, monkeypatch):
    class Before(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1999, 1, 1, tzinfo=tz)

    monkeypatch.setattr("lightning_ifru.ledger.datetime", Before)
    unlearn("person-013", folder / "3.ckpt", folder / "4.ckpt")
    assert lines_of(folder)[3]["time"] == "1999-01-01T00:00:00+00:00" < lines_of(folder)[2]["time"]
    assert check_ledger(folder).holds
    assert check_ledger(folder).lines == 4


# --- lines of checkpoints


@pytest.fixture
def said(monkeypatch):
    """What is said of unlearnings that a checkpoint knows nothing of."""
    lines = []
    monkeypatch.setattr("lightning_ifru.target.rank_zero_info", lines.append)
    return lines


def test_a_checkpoint_that_was_gone_on_from_is_told(folder, unlearn, said):
    for loaded, output, requests, most in [
        (2, "2b", "1 request more", "3.ckpt"),
        (1, "1b", "3 requests more", "3.ckpt"),  # 2, 3 and 2b
        (0, "0b", "5 requests more", "3.ckpt"),  # not its next one alone
        (0, "0c", "6 requests more", "3.ckpt"),  # another line of models as well
        ("0b", "0d", None, None),
    ]:
        said.clear()
        unlearn("person-013" if output != "0d" else PEOPLE[0], folder / f"{loaded}.ckpt", folder / f"{output}.ckpt")
        if requests is None:
            assert not said
        else:
            (sentence,) = said
            assert f"has forgotten {requests}, of which" in sentence
            assert f"; start from {most}, which has forgotten most." in sentence


def test_the_newest_checkpoint_is_not_told(folder, unlearn, said):
    unlearn("person-013", folder / "3.ckpt", folder / "4.ckpt")
    assert not said


def test_only_files_that_lack_what_was_forgotten_are_to_be_deleted(folder, unlearn):
    def older(report):
        return [path.rpartition("/")[2] for path in report.older_checkpoints]

    (folder / "damaged.ckpt").write_bytes(b"mine")
    for loaded in (0, 1):  # the first request again, whose result two more have gone on from
        assert older(unlearn(PEOPLE[0], folder / f"{loaded}.ckpt", folder / "1.ckpt")) == ["0.ckpt", "damaged.ckpt"]
    shutil.copy(folder / "3.ckpt", folder / "a-copy.ckpt")
    assert older(unlearn("person-013", folder / "3.ckpt", folder / "4.ckpt")) == [
        *("0.ckpt", "1.ckpt", "2.ckpt", "3.ckpt", "a-copy.ckpt", "damaged.ckpt")
    ]
    assert older(unlearn("person-013", folder / "4.ckpt", folder / "5.ckpt"))[:4] == [
        *("0.ckpt", "1.ckpt", "2.ckpt", "3.ckpt")
    ]
    assert older(unlearn(PEOPLE[2], folder / "3.ckpt", folder / "5.ckpt")) == [
        *("0.ckpt", "1.ckpt", "2.ckpt", "damaged.ckpt")
    ]


def test_another_folder_gets_the_whole_line(folder, unlearn, tmp_path):
    (tmp_path / "other").mkdir()
    unlearn("person-013", folder / "3.ckpt", tmp_path / "other" / "4.ckpt")
    lines = lines_of(tmp_path / "other")
    assert [line["id"] for line in lines[:3]] == [line["id"] for line in lines_of(folder)]
    assert [line["checkpoint"] for line in lines] == [None, None, None, "4.ckpt"]
    assert check_ledger(tmp_path / "other").holds


def test_entries_of_versions_without_ids_are_kept_in_the_checkpoint_and_have_no_line(folder, unlearn):
    content = torch.load(folder / "3.ckpt", weights_only=True)
    kept = ("time", "digest", "num_forgotten", "num_users_erased", "num_items_erased", "seconds", "method")
    entries = content["callbacks"]["IFRUCallback"]["ledger"]
    content["callbacks"]["IFRUCallback"]["ledger"] = [{name: e[name] for name in kept} for e in entries]
    (folder / "old").mkdir()
    torch.save(content, folder / "old" / "3.ckpt")
    unlearn("person-013", folder / "old" / "3.ckpt", folder / "old" / "4.ckpt")
    (line,) = lines_of(folder / "old")
    assert line["number"] == 4
    assert len(entries_in(folder / "old" / "4.ckpt")) == 4
    assert check_ledger(folder / "old").holds


def test_an_entry_that_is_of_no_line_of_models_has_no_line(folder, unlearn):
    content = torch.load(folder / "1.ckpt", weights_only=True)
    (folder / "odd").mkdir()
    del content["callbacks"]["IFRUCallback"]["ledger"][0]["line"]
    torch.save(content, folder / "odd" / "1.ckpt")
    unlearn("person-013", folder / "odd" / "1.ckpt", folder / "odd" / "2.ckpt")
    assert [line["checkpoint"] for line in lines_of(folder / "odd")] == ["2.ckpt"]
    assert check_ledger(folder / "odd").holds


def test_who_has_come_back_may_be_forgotten_again(folder):
    content = torch.load(folder / "3.ckpt", weights_only=True)
    drift = content["callbacks"]["IFRUCallback"]["ledger"][-1]["drift"]
    drift["forgotten"] = drift["trained"] + 1
    torch.save(content, folder / "4.ckpt")
    assert len(entries_in(folder / "4.ckpt")) == 3


@pytest.fixture
def trained(make_data, make_model, make_trainer):
    callback = IFRUCallback(IFRU(max_steps=1, cg_iterations=3), evaluate=False)
    trainer = make_trainer(callbacks=[callback], enable_checkpointing=False, max_epochs=1)
    data, model = make_data(), make_model()
    trainer.fit(model, datamodule=data)

    def run(person, **where):
        trainer.unlearn(data, model=model, request=UnlearningRequest(users=[person]), **where)
        return callback.ledger[-1]["checkpoint_before"]

    run.trainer, run.model, run.data, run.callback = trainer, model, data, callback
    return run


def test_what_this_process_has_written_is_what_it_goes_on_from(trained, tmp_path):
    a, b, c, d = (tmp_path / f"{name}.ckpt" for name in "abcd")
    assert trained(PEOPLE[0], output=a) is None
    assert trained(PEOPLE[1], output=b) == sha256(a.read_bytes())
    trained.trainer.unlearn(trained.data, request=UnlearningRequest(users=["person-013"]), dry_run=True)
    trained.trainer.validate(trained.model, datamodule=trained.data, verbose=False)
    assert trained(PEOPLE[0]) == sha256(a.read_bytes())  # nothing is left of it, nor written
    assert trained(PEOPLE[2], output=c) == sha256(b.read_bytes())
    assert check_ledger(tmp_path).holds
    assert trained("person-013", ckpt_path=c, output=d) == sha256(c.read_bytes())
    assert trained("person-014", output=b) == sha256(d.read_bytes())


def test_after_other_weights_nothing_is_said_of_what_was_written(trained, tmp_path, recwarn):
    a, b = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    trained(PEOPLE[0], output=a)
    for loop, quiet in [("validate", {"verbose": False}), ("test", {"verbose": False}), ("predict", {})]:
        trained(PEOPLE[0], ckpt_path=a)  # forgotten before: the file is found
        assert trained.callback._written == sha256(a.read_bytes())
        getattr(trained.trainer, loop)(trained.model, datamodule=trained.data, ckpt_path=a, **quiet)
        assert trained.callback._written is None
    assert trained(PEOPLE[1], output=b) is None
    trained.trainer.fit_loop.max_epochs = 2
    trained.trainer.fit(trained.model, datamodule=trained.data)
    assert trained(PEOPLE[2], output=a) is None
    assert trained("person-013") == sha256(a.read_bytes())  # written nowhere
    assert trained("person-014", output=b) is None
    assert not any("had lost" in str(one.message) for one in recwarn)


def test_what_a_result_is(folder):
    digest, method = lines_of(folder)[1]["digest"], IFRU(max_steps=1, cg_iterations=3)
    one, two, three = (folder / f"{number}.ckpt" for number in (1, 2, 3))
    assert is_result(two, digest, one, method)
    assert is_result(two, digest, one)
    assert not is_result(two, digest, one, IFRU())
    assert is_result(two, digest, two)
    assert not is_result(two, "ab", one)
    assert not is_result(two, "ab", two)
    assert not is_result(two, digest, three)
    assert not is_result(two, digest, folder / "no.ckpt")
    assert not is_result(three, digest, one)
    assert not is_result(folder / LEDGER, digest, one)


# --- the command


def test_the_command_needs_nothing_else(folder, capsys):
    assert main(["audit", "--ledger", str(folder / LEDGER), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["holds"]
    assert answer["lines"] == 3
    assert main(["audit", f"--ledger={folder}"]) == 0
    said = capsys.readouterr().out
    assert "3 unlearnings; every line follows from the one before." in said
    assert "3.ckpt as written" in said


def test_no_ledger_is_one_sentence(tmp_path, capsys):
    assert main(["audit", "--ledger", str(tmp_path)]) == 1
    assert "there is no ledger" in capsys.readouterr().err
    with pytest.raises(DataError, match="there is no ledger"):
        check_ledger(tmp_path / "no" / LEDGER)


def test_other_options_are_refused_beside_a_ledger(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", "--ledger", str(folder), "--original", "a.ckpt"])
    assert stop.value.code == 2
    assert "--original" in capsys.readouterr().err


def test_a_ledger_of_nothing_is_empty(tmp_path):
    assert Ledger(tmp_path / LEDGER).append([], {}) == 0
    assert not (tmp_path / LEDGER).exists()
