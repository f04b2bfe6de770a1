"""An unlearning is killed at many moments, what it leaves is looked at, and then the same is asked for again.

    python tests/kills.py --count 200 --seed 0

One process imports everything, and forks another for each run: a second import would take longer than the unlearning.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from two_ranks import QUIET, built, data_for

from lightning_ifru import IFRU, IFRUCallback, UnlearningRequest
from lightning_ifru.ledger_check import check_ledger
from lightning_ifru.outputs import LEDGER, LOCK

METHOD = IFRU(max_steps=2, cg_iterations=8, locality="full")
ORIGINAL, FIRST, SECOND = "original.ckpt", "first.ckpt", "second.ckpt"
#: Where Lightning writes before it moves a checkpoint: on another file system, as /tmp often is, moving is copying.
ELSEWHERE = "/dev/shm" if os.path.isdir("/dev/shm") else None
#: What CPython tells of that changes files; :func:`watch` adds what it does not tell of.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "fcntl.flock")


def trainer(**changes):
    callback = IFRUCallback(METHOD, evaluate=False)
    return lightning.Trainer(devices=1, enable_checkpointing=False, callbacks=[callback], **QUIET | changes)


def unlearn(folder, user, loaded, output):
    """The request that is broken off, and made again: one person, from one checkpoint to the next."""
    folder = Path(folder)
    trainer().unlearn(
        data_for("bce"),
        model=built(),
        request=UnlearningRequest(users=[user]),
        ckpt_path=folder / loaded,
        output=folder / output,
    )


def prepare(folder):
    """Train, and forget a first person, so that there is a ledger already."""
    job, model = trainer(max_epochs=4), built()
    job.fit(model, datamodule=data_for("bce"))
    job.save_checkpoint(folder / ORIGINAL)
    unlearn(folder, "u4", ORIGINAL, FIRST)


def again(folder):
    unlearn(folder, "u7", FIRST, SECOND)


def fit(folder):
    """A fit that forgets when it ends, into a folder of which nothing was known before."""
    keeper = ModelCheckpoint(dirpath=folder, filename="fit")
    callbacks = [IFRUCallback(METHOD, request=UnlearningRequest(users=["u7"]), evaluate=False), keeper]
    job = lightning.Trainer(devices=1, callbacks=callbacks, **QUIET)
    job.fit(built(), datamodule=data_for("bce"))


def forked(folder, job, *arguments):
    """Start a job in a process of its own."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        job(Path(folder), *arguments)
        code = 0
    except BaseException:
        Path(folder, "traceback").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(process):
    """Wait for a process; whether it was killed. It has not failed."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the process has failed by itself"
    return False


def watch(folder, moment):
    """Call ``moment`` with what is about to be done to a file below a folder, and again after what makes it last."""
    below = str(folder), tempfile.gettempdir()

    def tell(event, *names):
        paths = [os.fspath(name) for name in names if isinstance(name, (str, Path))]
        if any(path.startswith(below) for path in paths):
            moment(f"{event} {_kind(paths[-1])}")

    def audit(event, arguments):
        if event in EVENTS and not (event == "open" and not _writes(arguments)):
            names = arguments
            if event == "fcntl.flock":
                names = (os.readlink(f"/proc/self/fd/{arguments[0]}"),)
            tell(event, *names)

    for name in ("replace", "fsync", "write", "sendfile"):
        function = getattr(os, name)

        def told(*arguments, _name=name, _function=function):
            on = arguments[-1] if _name == "replace" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            if _name != "replace":  # of which the audit tells
                tell(_name, on)
            if _name == "write" and len(arguments[1]) > 1:  # as far as it has come when the process is killed
                half = len(arguments[1]) // 2
                _function(arguments[0], arguments[1][:half])
                tell("half a write", on)
                return half + _function(arguments[0], arguments[1][half:])
            done = _function(*arguments)
            tell(f"after {_name}", on)
            return done

        setattr(os, name, told)
    sys.addaudithook(audit)


def _writes(arguments):
    _, mode, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(letter in str(mode) for letter in "wax+")


def _kind(path):
    name = Path(path).name
    if name in (LOCK, LEDGER, SECOND):
        return {LOCK: "lock", LEDGER: "ledger", SECOND: "checkpoint"}[name]
    return "temporary file" if path.startswith(tempfile.gettempdir()) else "folder"


def counted(folder, job=again):
    """Run undisturbed and write down every moment."""
    moments = []
    watch(folder, moments.append)
    job(folder)
    Path(folder, "moments").write_text(json.dumps(moments))


def at(folder, number, pipe=None, job=again):
    """Be killed at a moment, or tell of it and go on, to be killed a little later."""
    left = [number]

    def moment(_):
        left[0] -= 1
        if left[0] == -1:
            if pipe is None:
                os.kill(os.getpid(), signal.SIGKILL)
            posix_write(pipe, b".")

    posix_write = os.write
    watch(folder, moment)
    job(folder)


class Scene:
    """A folder with a checkpoint that has forgotten once, and what comes of a second request there."""

    def __init__(self, place):
        self.base, self.place = place / "base", place
        self.base.mkdir()
        assert not ended(forked(self.base, prepare))
        self.files = {name: (self.base / name).read_bytes() for name in (ORIGINAL, FIRST, LEDGER)}
        if not torch.cuda.is_available():  # torch forks no more when it has found one
            again(self.fresh("here"))  # what is made on first use is there in all others
        folder = self.fresh("undisturbed")
        since = time.perf_counter()
        assert not ended(forked(folder, again))
        self.seconds = time.perf_counter() - since
        self.result = result(folder)
        assert not same(self.result, result(folder, FIRST)), "nothing was forgotten"
        folder = self.fresh("counted")
        assert not ended(forked(folder, counted))
        self.moments = json.loads((folder / "moments").read_text())

    def fresh(self, name):
        folder = self.place / name
        folder.mkdir()
        self.renew(folder)
        return folder

    def renew(self, folder):
        for file in folder.iterdir():
            file.unlink()
        for file, content in self.files.items():
            (folder / file).write_bytes(content)

    def look(self, folder, check):
        """Whether the old state is found or the new one; nothing else may be."""
        assert all((folder / name).read_bytes() == self.files[name] for name in (ORIGINAL, FIRST))
        if not (folder / SECOND).exists():
            assert (folder / LEDGER).read_bytes() == self.files[LEDGER]
            return "old"
        assert same(result(folder), self.result)
        if check:
            self.check(folder, restored=(0, 1))
        return "new"

    def check(self, folder, lines=2, restored=(0,)):
        found = check_ledger(folder)
        assert found.holds, found.faults
        assert found.lines == lines
        assert found.restored in restored

    def complete(self, folder):
        """Ask for the same again: it ends where the undisturbed run does."""
        assert not ended(forked(folder, again))
        assert same(result(folder), self.result)
        self.check(folder)
        left = {path.name for path in folder.iterdir()}
        assert left == {ORIGINAL, FIRST, SECOND, LEDGER, LOCK}, left


def at_fit_end(folder, count, seed):
    """Kill ``count`` fits while they write what they have forgotten; return how many were found in which state."""
    folder.mkdir()
    assert not ended(forked(folder, counted, fit))
    moments = json.loads((folder / "moments").read_text())
    whole = torch.load(folder / "unlearned-1.ckpt", weights_only=True)["state_dict"]
    found = {"old": 0, "new": 0}
    # A fit writes its own checkpoint first, which no one has said anything of.
    last = range(moments.index("fcntl.flock lock"), len(moments))
    for moment in np.random.default_rng(seed).choice(last, count, replace=False):
        shutil.rmtree(folder)
        folder.mkdir()
        assert ended(forked(folder, at, int(moment), None, fit))
        assert torch.load(folder / "fit.ckpt", weights_only=True)["InteractionDataModule"]["num_forgotten"] == 0
        new = (folder / "unlearned-1.ckpt").exists()
        found["new" if new else "old"] += 1
        assert new or not (folder / LEDGER).exists()
        if new:
            assert same(torch.load(folder / "unlearned-1.ckpt", weights_only=True)["state_dict"], whole)
            assert check_ledger(folder).holds
    return found


def result(folder, name=SECOND):
    """What a checkpoint holds, but for the time that it was made at, and what is drawn for each anew."""
    content = torch.load(folder / name, weights_only=True)
    (state,) = (state for state in content["callbacks"].values() if "ledger" in state)
    for entry in state["ledger"][1:]:  # the first is of a run that was not disturbed
        for own in ("id", "time", "seconds"):
            entry.pop(own)
    return content


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(count, seed):
    """Kill ``count`` runs, half of them while they write, and return how many were found in which state.

    Args:
        count: of runs.
        seed: of the moments.
    """
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ.setdefault("LIGHTNING_IFRU_KEY", "the key of all tests")
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    found = {"any time": {"old": 0, "new": 0}, "writing": {"old": 0, "new": 0}}
    with tempfile.TemporaryDirectory() as place, elsewhere():
        scene = Scene(Path(place))
        # Every moment of the writing once, as far as the count goes; then again, a little later than that.
        aimed = rng.permutation(len(scene.moments))
        for number in range(count):
            folder = scene.fresh(str(number))
            if number % 2:
                turn, which = divmod(number // 2, len(aimed))
                phase = "writing"
                killed_at(folder, int(aimed[which]), rng.uniform(0, 0.002) if turn else None)
            else:
                phase = "any time"
                killed_after(folder, scene, rng.uniform(0, scene.seconds))
            found[phase][scene.look(folder, check=bool(rng.integers(2)))] += 1
            scene.complete(folder)
            shutil.rmtree(folder)
    return {
        "kills": count,
        "moments of writing": len(scene.moments),
        "killed at any time, found": found["any time"],
        "killed while writing, found": found["writing"],
        "completed when asked for again": count,
    }


@contextmanager
def elsewhere():
    """Let temporary files be on another file system, where there is one."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=ELSEWHERE) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def killed_at(folder, moment, later):
    """Have a run killed at a moment of its writing, or some seconds later if it has not ended by then."""
    if later is None:
        assert ended(forked(folder, at, moment))
        return
    ear, mouth = os.pipe()
    process = forked(folder, at, moment, mouth)
    os.close(mouth)
    os.read(ear, 1)
    os.close(ear)
    time.sleep(later)
    os.kill(process, signal.SIGKILL)
    ended(process)


def killed_after(folder, scene, seconds):
    """Have a run killed after some seconds, or sooner if it ends before."""
    while True:
        process = forked(folder, again)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        if ended(process):
            return
        scene.renew(folder)
        seconds *= 0.8


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(run(given.count, given.seed)) + "\n")
