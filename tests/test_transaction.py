"""All or nothing: whatever goes wrong before the checkpoint has its name is undone, and nothing after it."""

import errno
import os
import resource
import signal
import sys
import threading
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_ifru import IFRU, DataError, IFRUCallback, UnlearningRequest, checkpoints
from lightning_ifru.ledger import Ledger
from lightning_ifru.ledger_check import check_ledger
from lightning_ifru.newton import NewtonSearch
from lightning_ifru.outputs import LEDGER, LOCK, UNFINISHED, alone_in, replacing, unfinished
from lightning_ifru.progress import Phases

GONE = UnlearningRequest(users=["person-003"])


class World:
    """A trained model, its checkpoint, and a call that unlearns it into a folder."""

    def __init__(self, trained, make_trainer, snapshot, folder):
        first, self.model, self.data = trained(max_epochs=3)
        self.folder, self.output = folder, folder / "unlearned.ckpt"
        self.loaded = folder / "trained.ckpt"
        first.save_checkpoint(self.loaded)
        callback = IFRUCallback(IFRU(max_steps=1, cg_iterations=3), evaluate=False)
        self.trainer = make_trainer(callbacks=[callback], enable_checkpointing=False)
        self.callback, self.take = callback, snapshot

    def call(self, **changes):
        asked = {"model": self.model, "request": GONE, "ckpt_path": self.loaded, "output": self.output} | changes
        return self.trainer.unlearn(self.data, **asked)

    def snapshot(self):
        return self.take(model=self.model, data=self.data, trainer=self.trainer)

    @property
    def names(self):
        return {path.name for path in self.folder.iterdir() if path.is_file() or path.name.startswith(".")} - {LOCK}

    def check_new(self):
        """The new state, in memory and on the disk."""
        written = torch.load(self.output, weights_only=True)
        assert torch.equal(written["state_dict"]["net.embedding.weight"], self.model.net.embedding.weight)
        assert written["InteractionDataModule"]["user_ids"][3] is None
        assert self.data.user_ids[3] is None
        assert self.data.pending is None
        assert written["callbacks"]["IFRUCallback"]["ledger"] == self.callback.ledger
        assert len(self.callback.ledger) == 1
        assert self.names == {"trained.ckpt", "unlearned.ckpt", LEDGER}


@pytest.fixture
def world(trained, make_trainer, snapshot, tmp_path):
    return World(trained, make_trainer, snapshot, tmp_path)


def test_an_output_is_written_by_a_trainer_that_writes_no_checkpoints(world):
    loaded = world.loaded.read_bytes()
    report = world.call()
    assert report.checkpoint == str(world.output)
    assert report.older_checkpoints == [str(world.loaded)]
    assert world.loaded.read_bytes() == loaded
    world.check_new()


def test_checkpoint_callbacks_stand_for_an_output(trained, best, tmp_path):
    trainer, _, data = trained(callbacks=[IFRUCallback(IFRU(max_steps=1), evaluate=False), best()])
    report = trainer.unlearn(data, request=GONE, output=tmp_path / "a.ckpt")
    assert trainer.checkpoint_callback.best_model_path == report.checkpoint == str(tmp_path / "a.ckpt")
    assert not list(tmp_path.rglob("unlearned*"))


def test_a_dry_run_does_not_look_at_an_output(world):
    state = world.snapshot()
    assert world.call(dry_run=True, output=world.folder / "no" / "where.ckpt").dry_run
    state.check()
    assert not (world.folder / LOCK).exists()


@pytest.mark.parametrize(
    ("place", "sentence"), [("no/where.ckpt", "nothing can be written; make the folder"), (".", "which is a folder")]
)
def test_an_output_that_cannot_be_written_is_refused(world, place, sentence):
    state = world.snapshot()
    with pytest.raises(DataError, match=sentence):
        world.call(output=world.folder / place)
    state.check()


def test_what_is_written_is_on_the_disk_before_its_name_and_its_name_before_the_ledger(world, monkeypatch):
    done = []

    def note(which):
        call = getattr(os, which)

        def noting(first, *more):
            result = call(first, *more)
            found = os.stat(*more) if more else os.fstat(first)
            done.append((which, found.st_ino, found.st_size))
            return result

        monkeypatch.setattr(os, which, noting)

    note("fsync")
    note("replace")
    ledger = world.folder / LEDGER
    for changes in ({}, {"ckpt_path": None, "request": UnlearningRequest(users=["person-004"])}):
        done.clear()
        new = not ledger.exists()
        world.call(**changes)
        names = {path.stat().st_ino: path for path in (world.output, world.folder, ledger)}
        sizes = {world.output: world.output.stat().st_size, ledger: ledger.stat().st_size}
        ours = [(which, names[inode], size) for which, inode, size in done if inode in names]
        seen = [(which, path) for which, path, size in ours if sizes.get(path, size) == size]
        wanted = [("fsync", world.output), ("replace", world.output), ("fsync", world.folder), ("fsync", ledger)]
        wanted += [("fsync", world.folder)] if new else []
        assert [event for event in seen if event != ("replace", ledger)] == wanted


def test_an_output_takes_the_place_of_what_is_there(world):
    world.output.write_text("mine")
    world.call()
    world.check_new()


def test_a_checkpoint_takes_the_place_of_the_one_that_remembers(world):
    report = world.call(output=world.loaded)
    assert report.older_checkpoints == []
    assert torch.load(world.loaded, weights_only=True)["InteractionDataModule"]["user_ids"][3] is None


def test_the_same_again_writes_nothing_and_arrives_at_the_same(world, make_data, make_model):
    world.call()
    weights, state = world.model.net.embedding.weight.detach().clone(), world.snapshot()
    world.data, world.model = make_data(), make_model()  # as in a new process
    report = world.call()
    assert (report.num_forgotten, report.already_absent, report.checkpoint) == (0, 1, str(world.output))
    assert torch.equal(world.model.net.embedding.weight, weights)
    world.check_new()
    assert state.seen["files"] == world.snapshot().seen["files"]
    world.data, world.model = make_data(), make_model()
    assert world.call(request=UnlearningRequest(users=["person-004"])).num_forgotten > 0  # no other request
    assert world.callback.ledger[-1]["number"] == 1


# --- what goes wrong


def full_disk(patch, _):
    """A limit on the size of files, which the operating system enforces."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    patch.callback = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))


def no_sync(patch, _):
    patch.setattr(os, "fsync", failing(OSError(errno.EIO, "Input/output error")))


def no_renaming(patch, world):
    replace = os.replace

    def rename(source, target):
        if Path(target) == world.output:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    patch.setattr(os, "replace", rename)


def read_only(patch, _):
    patch.setattr(os, "access", lambda *_, **__: False)


def read_only_mount(patch, _):
    opened = os.open

    def refuse(path, flags, *more, **options):
        if str(path).endswith(LOCK):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *more, **options)

    patch.setattr(os, "open", refuse)


def out_of_memory(patch, _):
    patch.setattr(NewtonSearch, "run", failing(torch.OutOfMemoryError("no memory left")))


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        (full_disk, DataError, "unlearned.ckpt could not be written (File too large); give another path."),
        (no_sync, DataError, "unlearned.ckpt could not be written (Input/output error)"),
        (no_renaming, DataError, "unlearned.ckpt could not be written (No space left on device)"),
        (read_only, DataError, "in whose folder nothing can be written; make the folder"),
        (read_only_mount, DataError, "(Read-only file system); make room or take away what forbids it"),
        (out_of_memory, torch.OutOfMemoryError, "no memory left"),
    ],
)
def test_what_goes_wrong_before_is_undone_and_said_in_one_sentence(world, monkeypatch, wrong, error, sentence):
    world.output.write_text("mine")
    state = world.snapshot()
    with monkeypatch.context() as patch:
        patch.callback = lambda: None
        wrong(patch, world)
        try:
            with pytest.raises(error) as caught:
                world.call()
        finally:
            patch.callback()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    state.check()
    assert world.names == {"trained.ckpt", "unlearned.ckpt"}
    world.call()  # nothing is in the way
    world.check_new()


def test_a_ledger_that_cannot_be_written_is_a_warning_and_is_restored(world, monkeypatch):
    write = os.write

    def full(descriptor, content):
        if content.startswith(b'{"id"'):
            write(descriptor, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.warns(UserWarning, match=r"is written, but not its line in .*No space left.*audit --ledger"):
            world.call()
    assert not (world.folder / LEDGER).exists()
    found = check_ledger(world.folder / LEDGER)
    assert (found.holds, found.lines, found.restored) == (True, 1, 1)
    world.check_new()


def test_an_interruption_after_the_renaming_leaves_the_new_state(world, monkeypatch):
    replace = os.replace

    def interrupt(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(SystemExit):  # Lightning's way out
            world.call()
    assert not (world.folder / LEDGER).exists()
    assert check_ledger(world.folder).restored == 1
    world.check_new()
    assert world.call(ckpt_path=None).already_absent == 1


def test_a_second_interruption_does_not_break_off_the_undoing(world, monkeypatch):
    pressed = []

    def press(module):
        pressed.append(signal.getsignal(signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)

    state = world.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(NewtonSearch, "run", failing(KeyboardInterrupt()))
        patch.setattr(type(world.model), "release_graph", press)
        with pytest.raises(SystemExit):
            world.call()
    state.check()
    assert pressed == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("moment", ["in the solve", "while writing"])
def test_sigterm_ends_before_the_checkpoint_has_its_name(world, monkeypatch, moment):
    def term(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    steps, state = [], world.snapshot()
    with monkeypatch.context() as patch:
        if moment == "in the solve":
            patch.setattr(Phases, "step", lambda *_: (steps.append(1), term()))
        else:
            save = lightning.Trainer.save_checkpoint
            patch.setattr(lightning.Trainer, "save_checkpoint", lambda *a, **k: (save(*a, **k), term()))
        with pytest.raises(SIGTERMException) as stop:
            world.call()
    assert stop.value.code == 143
    assert len(steps) == (moment == "in the solve")  # the next step is the last
    state.check()
    assert world.names == {"trained.ckpt"}


def test_a_checkpoint_that_is_written_in_the_background_is_waited_for(world, make_trainer):
    callback = IFRUCallback(IFRU(max_steps=1), evaluate=False)
    plugins = [AsyncCheckpointIO()]
    world.trainer = make_trainer(callbacks=[callback], enable_checkpointing=False, plugins=plugins)
    world.callback = callback
    world.call()
    world.check_new()


class Interrupting:
    """Raises at a call of one of the package's functions, or counts them."""

    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def __call__(self, frame, event, _):
        if event == "call" and "lightning_ifru" in frame.f_code.co_filename:
            self.calls += 1
            if self.calls == self.at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)


def test_an_interruption_at_any_call_leaves_the_old_state_or_the_new(world, make_data, make_model, monkeypatch):
    with Interrupting() as counting:
        world.call()
    world.check_new()
    generator = torch.Generator().manual_seed(0)
    last = counting.calls - torch.arange(12)  # all that follows the renaming is there
    anywhere = torch.randint(1, counting.calls, (8,), generator=generator)
    seen = []
    for moment in torch.cat([anywhere, last]).tolist():
        for name in ("unlearned.ckpt", LEDGER):
            (world.folder / name).unlink(missing_ok=True)
        world.data, world.model, world.callback.ledger = make_data(), make_model(), []
        monkeypatch.setattr(checkpoints, "_LAST", {})  # as many calls as the first time
        state = world.snapshot()
        try:
            with Interrupting(moment) as interrupting:
                world.call()
        except (KeyboardInterrupt, SystemExit):
            pass
        assert interrupting.calls >= moment
        seen.append("new" if world.output.exists() else "old")
        if seen[-1] == "old":
            state.check(but={"rng"})
        else:
            check_ledger(world.folder)
            world.check_new()
    assert {"old", "new"} == set(seen)


# --- two processes


@pytest.mark.parametrize("asked", [True, False])
def test_a_second_process_is_refused_while_the_first_is_at_work(world, make_trainer, best, asked):
    if not asked:  # the folder of the checkpoint callback
        world.trainer = make_trainer(callbacks=[world.callback, best()], max_epochs=1)
        world.trainer.fit(world.model, datamodule=world.data)
        world.output = None
    folder = world.folder if asked else Path(world.trainer.checkpoint_callback.best_model_path).parent
    ear, mouth = os.pipe()
    child = os.fork()
    if not child:
        with alone_in(folder):
            os.write(mouth, b".")
            signal.pause()
    try:
        os.read(ear, 1)
        state = world.snapshot()
        with pytest.raises(DataError, match=r"another unlearning writes into .* at this moment; wait until"):
            world.call()
        state.check()
        assert world.call(dry_run=True).dry_run
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ear)
        os.close(mouth)
    written = Path(world.call().checkpoint)  # a lock does not outlive its process
    assert written.parent == folder


def test_of_many_at_once_one_is_let_in_at_a_time(tmp_path):
    inside, most, refused = [], [], []

    def enter():
        for _ in range(20):
            try:
                with alone_in(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except DataError:
                refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 80


def test_what_a_killed_process_has_left_goes_and_nothing_else_does(tmp_path):
    for name in (".lightning-ifru-ab_12xyz", ".lightning-ifru-mine", ".lightning-ifru-abcdefgh-2", ".mine", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.ckpt").write_text("half of")
    (tmp_path / ".lightning-ifru-link").symlink_to(tmp_path / "folder")
    with alone_in(tmp_path):
        assert not (tmp_path / ".lightning-ifru-ab_12xyz").exists()
        with unfinished(tmp_path / "b.ckpt") as place:
            assert UNFINISHED.fullmatch(place.parent.name)
    for name in (".mine", ".lightning-ifru-mine", ".lightning-ifru-abcdefgh-2"):
        assert (tmp_path / name / "a.ckpt").exists()
    assert (tmp_path / "folder" / "a.ckpt").exists()


def test_a_report_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")

    def break_off():
        with replacing(path) as place:
            place.write_text("half of")
            raise OSError(errno.ENOSPC, "No space left")

    with pytest.raises(DataError, match=r"report.json could not be written \(No space left\); give another path"):
        break_off()
    assert path.read_text() == "old"
    with replacing(path) as place:
        place.write_text("new")
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]
    assert Ledger(tmp_path / LEDGER).lines == []
