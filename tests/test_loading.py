"""A checkpoint is data: nothing in one is run, whoever reads it, and what is none is refused in one sentence."""

import io
import os
import struct
import zipfile

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_ifru import DataError
from lightning_ifru.cli import main
from lightning_ifru.loading import read_checkpoint


class Payload:
    """What somebody puts into a checkpoint to have it run: it writes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (exec, (f"open({self.marker!r}, 'w').close()",))


@pytest.fixture(scope="module")
def whole(planted, tmp_path_factory):
    """A folder with data, a config, and checkpoints from before and after an unlearning."""
    folder = tmp_path_factory.mktemp("whole")
    pd.DataFrame(planted).to_csv(folder / "ratings.csv", index=False)
    (folder / "forget.csv").write_text("user\nperson-003\n")
    model = {"embedding_dim": 4, "num_layers": 1, "loss": "bce", "lr": 0.05}
    data = {"source": str(folder / "ratings.csv"), "rating": "rating", "threshold": 3.0, "seed": 3}
    trainer = {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_model_summary": False}
    config = {"seed_everything": 1, "model": {"class_path": "lightning_ifru.models.LightGCN", "init_args": model}}
    config |= {"data": {"init_args": data}, "trainer": trainer | {"default_root_dir": str(folder / "fit")}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "run.yaml")]) == 0
    (folder / "best.ckpt").write_bytes(next((folder / "fit").rglob("*.ckpt")).read_bytes())
    assert main(command("unlearn", folder, folder / "best.ckpt")) == 0
    return folder


def command(name, folder, checkpoint):
    """Return the arguments of a command that reads a checkpoint."""
    given = {
        "unlearn": ["--ckpt_path", checkpoint, "--request", folder / "forget.csv", "--output", folder / "forgot.ckpt"],
        "audit": ["--original", checkpoint, "--unlearned", folder / "forgot.ckpt", "--output", folder / "report"],
    }.get(name, ["--ckpt_path", checkpoint])
    return [
        name,
        "--config",
        str(folder / "run.yaml"),
        *map(str, given),
        *(["--overwrite"] if name == "unlearn" else []),
    ]


def refused(name, folder, checkpoint, capsys):
    """Return the one sentence of a command that refuses a checkpoint, writing nothing."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".lock"}
    capsys.readouterr()
    assert main(command(name, folder, checkpoint)) == 1
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-ifru: "))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix != ".lock"} == before
    return said


PLACES = ["alone", "beside the weights", "state_dict", "callbacks", "InteractionDataModule"]
COMMANDS = ["fit", "validate", "test", "predict", "unlearn", "audit"]


class Command:
    """The same by a function that torch tells apart: of a module that no pickle may name."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def hostile(checkpoint, place, payload):
    """Return a checkpoint's content with an object somewhere in it."""
    content = torch.load(checkpoint, weights_only=True)
    if place == "alone":
        return payload
    part = content if place == "beside the weights" else content[place]
    part["more"] = payload
    return content


def load_anything(strategy, checkpoint_path):
    """What Lightning did before 2.6: every object was loaded, and nothing could be said against it."""
    return torch.load(checkpoint_path, weights_only=False)


@pytest.mark.parametrize("older", [False, True], ids=["this Lightning", "Lightning before 2.6"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_in_a_checkpoint_never_runs(whole, tmp_path, capsys, monkeypatch, name, older):
    if older:
        monkeypatch.setattr(SingleDeviceStrategy, "load_checkpoint", load_anything)
    path, marker = tmp_path / "hostile.ckpt", tmp_path / "it has run"
    for place in PLACES if name == "unlearn" and not older else PLACES[-1:]:
        torch.save(hostile(whole / "best.ckpt", place, Payload(marker)), path)
        assert "hostile.ckpt holds more than tensors and plain values" in refused(name, whole, path, capsys)
        assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is as hostile as it is meant to be


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_blocks_by_name_is_one_sentence_that_names_it(whole, tmp_path, capsys, zipped):
    path, marker = tmp_path / "hostile.ckpt", tmp_path / "it has run"
    content = hostile(whole / "best.ckpt", PLACES[-1], Command(marker))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    said = refused("unlearn", whole, path, capsys)
    assert "hostile.ckpt holds more than tensors and plain values, which is not loaded unasked (" in said
    assert f"{os.system.__module__}.system" in said
    assert "Weights only load failed" not in said
    assert "torch.load" not in said
    assert not marker.exists()


@pytest.mark.parametrize("older", [False, True], ids=["this Lightning", "Lightning before 2.6"])
def test_who_trusts_a_checkpoint_can_say_so(whole, tmp_path, monkeypatch, older):
    if older:
        monkeypatch.setattr(SingleDeviceStrategy, "load_checkpoint", load_anything)
    path, marker = tmp_path / "trusted.ckpt", tmp_path / "it has run"
    torch.save(hostile(whole / "best.ckpt", "beside the weights", Payload(marker)), path)
    assert main([*command("test", whole, path), "--weights_only", "false"]) == 0
    assert marker.exists()


def sized(content, packed, unpacked):
    """The same checkpoint, of which the first part is said to have other sizes."""
    at = content.index(b"PK\x01\x02") + 20
    return content[:at] + struct.pack("<II", packed, unpacked) + content[at + 8 :]


def repacked(content):
    """The same checkpoint with packed parts, of which one is twenty megabytes of nothing."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
        new.writestr(part.filename.partition("/")[0] + "/data/99", bytes(20 << 20))
    return packed.getvalue()


DAMAGED = {
    "empty": lambda content: b"",
    "noise": lambda content: bytes(range(256)) * 40,
    "text": lambda content: b"not a checkpoint",
    "half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-30],
    "without its beginning": lambda content: content[100:],
    "a huge header": lambda content: sized(content, 2**32 - 2, 2**32 - 2),
    "a huge part": lambda content: sized(content, 10, 2**32 - 2),
    "a pickle of protocol 0": lambda content: b"cos\nsystem\n(S'touch never'\ntR.",
    "a huge string in a pickle": lambda content: b"\x80\x02X\xff\xff\xff\xffabc.",
    "a directory that lies": lambda content: content.replace(b"PK\x01\x02", b"PK\x01\x03"),
    "weights overwritten": lambda content: content.replace(b"state_dict", b"state\xff\xfe\xfd_di"[:10]),
    "packed": repacked,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_checkpoint_is_one_sentence(whole, tmp_path, capsys, how):
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(DAMAGED[how]((whole / "best.ckpt").read_bytes()))
    for name in ("test", "unlearn", "audit") if how in ("half", "packed") else ("unlearn",):
        said = refused(name, whole, path, capsys)
        assert "damaged.ckpt" in said
        assert said.isprintable()
        assert len(said) < 2_000


#: What stands in a checkpoint in place of what Lightning and this package write there.
CONTENTS = {
    "no mapping": lambda c: [1, 2],
    "no weights": lambda c: {name: part for name, part in c.items() if name != "state_dict"},
    "weights a list": lambda c: c | {"state_dict": [1]},
    "weights that are no tensors": lambda c: c | {"state_dict": dict.fromkeys(c["state_dict"], "x")},
    "weights without names": lambda c: c | {"state_dict": dict(enumerate(c["state_dict"].values()))},
    "callbacks a list": lambda c: c | {"callbacks": [1]},
    "callbacks without states": lambda c: c | {"callbacks": {"IFRUCallback": 7}},
    "a ledger that is none": lambda c: c | {"callbacks": {"IFRUCallback": {"ledger": 7}}},
    "entries that are none": lambda c: c | {"callbacks": {"IFRUCallback": {"ledger": [7]}}},
    "a version that is none": lambda c: c | {"pytorch-lightning_version": 7},
    "data a list": lambda c: c | {"InteractionDataModule": [1]},
    "data that are none": lambda c: c | {"InteractionDataModule": {"num_forgotten": "x"}},
}
#: The same for parts of the state of the data.
PARTS = {
    "user_ids": [7, "x", [["a"]], [b"a"], None],
    "item_ids": [{"a": 1}],
    "withdrawn_items": [7, torch.tensor([10**9]), torch.tensor([-1]), torch.tensor([0.5]), "x"],
    "seed": ["x", None],
    "cuts": [7, ["x", "y"], [1], [-1, 2**70]],
    "num_rows": ["x", -1, 2**80, None],
    "forgotten": [7, "x", torch.tensor([10**9]), torch.tensor([[1]]), torch.zeros(1).expand(10**12)],
    "num_forgotten": ["x", -1, None],
    "fingerprint": ["x", None, 2**80],
}


@pytest.mark.parametrize("what", CONTENTS)
def test_what_is_not_as_it_was_written_is_one_sentence(whole, tmp_path, capsys, what):
    path = tmp_path / "other.ckpt"
    torch.save(CONTENTS[what](torch.load(whole / "best.ckpt", weights_only=True)), path)
    said = refused("unlearn", whole, path, capsys)
    assert said.isprintable()
    assert len(said) < 2_000


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_datas_state_that_is_another_is_one_sentence(whole, make_data, snapshot, part):
    state = torch.load(whole / "best.ckpt", weights_only=True)["InteractionDataModule"]
    data = make_data(source=whole / "ratings.csv")
    data.load_state_dict(state)
    before = snapshot(data=data)
    for value in PARTS[part]:
        with pytest.raises(DataError, match=f"the state of the data has as '{part}' something else"):
            data.load_state_dict(state | {part: value})
    before.check()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("val_pairs", torch.zeros(1, dtype=torch.int64).expand(10**12)),
        ("test_pairs", [1]),
        ("forgotten_trained", torch.ones(7, dtype=torch.bool)),
        ("forgotten_record", [1]),
        ("forgotten_record", {"key": {"users_at": torch.tensor([10**9])}}),
        ("forgotten_record", {"key": {"pairs": torch.zeros(1, 1, dtype=torch.uint8).expand(10**12, 16)}}),
    ],
)
def test_a_part_that_only_some_states_have_is_looked_at_too(planted, make_data, part, value):
    times = list(range(len(planted["user"])))
    data = make_data(source=planted | {"time": times}, split="temporal", timestamp="time")
    state = data.state_dict()
    assert {"val_pairs", "test_pairs", "forgotten_trained"} <= state.keys()
    data.load_state_dict(state)
    with pytest.raises(DataError, match=f"the state of the data has as '{part}' something else"):
        data.load_state_dict(state | {part: value})


def test_a_checkpoint_is_read_on_the_processor(whole):
    content = read_checkpoint(whole / "best.ckpt")
    assert all(tensor.device.type == "cpu" for tensor in content["state_dict"].values())
