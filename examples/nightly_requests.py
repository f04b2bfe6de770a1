"""A cron job: apply the requests of the day one after another, and leave a checkpoint after each.

Requests are CSV or JSON files in a folder, named by ticket (``2026-117.csv``) and never by person: checkpoints and
ledger carry the names. In their order each makes the next checkpoint, ``0002-2026-117.csv.ckpt``, and moves to the
folder ``done``; a run that breaks off loses and repeats nothing. What is refused stays; the exit code is then 1.

    python examples/nightly_requests.py --requests requests --checkpoints checkpoints --train true
"""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
from jsonargparse import auto_cli
from rich.console import Console

from lightning_ifru import IFRUCallback, InteractionDataModule, RequestError, UnlearningError
from lightning_ifru.bounded import printable
from lightning_ifru.loading import read_checkpoint
from lightning_ifru.models import LightGCN

RATINGS = Path(__file__).parent / "data" / "ml-latest-small" / "ratings.csv.gz"


def main(
    requests: Path,
    checkpoints: Path,
    train: bool = False,
    data: Path = RATINGS,
    user: str = "userId",
    item: str = "movieId",
    epochs: int = 100,
) -> int:
    """Apply all new requests and return the exit code.

    Args:
        requests: folder of request files.
        checkpoints: folder of checkpoints, of which the one with the highest number is the last.
        train: train the first checkpoint and call it 0000-trained.ckpt; without it there must be one.
        data: CSV of interactions, with the forgotten ones or without.
        user: column of user ids.
        item: column of item ids.
        epochs: epochs of training.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message="Retrain this model")  # stands in the request's line
    say, complain = (Console(stderr=e, soft_wrap=True, markup=False, highlight=False).print for e in (False, True))
    left = 0
    try:
        if not requests.is_dir():
            raise UnlearningError(f"there is no folder {requests}; create it, or give another with --requests.")
        if train:
            train_first(InteractionDataModule(data, user=user, item=item), checkpoints, requests / "done", epochs)
        files = sorted(path for path in requests.iterdir() if path.is_file() and not path.name.startswith("."))
        interactions = InteractionDataModule(data, user=user, item=item)
        model, job = LightGCN(**read_checkpoint(newest(checkpoints))["hyper_parameters"]), trainer()
        for file in files:
            try:
                say(printable(apply(file, job, model, interactions, checkpoints)))
            except RequestError as error:
                complain(printable(f"{file.name} is left where it is: {error}"))
                left += 1
        say(f"{len(files) - left} requests applied, {left} left; the last checkpoint is {newest(checkpoints)}.")
    except UnlearningError as error:
        complain(str(error))
        return 1
    return 1 if left else 0


def train_first(data: InteractionDataModule, checkpoints: Path, done: Path, epochs: int) -> None:
    """Train the checkpoint that everything starts from, unless it would bring somebody back."""
    if any(checkpoints.glob("*.ckpt")) or any(done.glob("*")):
        raise UnlearningError(
            f"training on the data as they are would bring back what {checkpoints} or {done} say was forgotten; leave "
            "out --train, or take those rows out of the data and start with empty folders."
        )
    L.seed_everything(0, verbose=False)
    model = LightGCN(data.num_users, data.num_items, embedding_dim=32, lr=3e-3, weight_decay=1e-4)
    job = trainer(max_epochs=epochs, limit_val_batches=0)
    job.fit(model, datamodule=data)
    job.save_checkpoint(checkpoints / "0000-trained.ckpt")


def apply(file: Path, job: L.Trainer, model: LightGCN, data: InteractionDataModule, checkpoints: Path) -> str:
    """Apply one request to the last checkpoint, write the next, put the request away, and say what happened."""
    last, done = newest(checkpoints), file.parent / "done" / file.name
    done.parent.mkdir(exist_ok=True)
    if done.exists():
        raise RequestError(f"a request of this name was applied before and is {done}; rename the new one.")
    new = checkpoints / f"{int(last.name[:4]) + 1:04d}-{file.name}.ckpt"
    report = job.unlearn(data, model=model, request=file, ckpt_path=last, output=new)
    file.rename(done)
    if not report.num_forgotten:
        return f"{file.name}: all of it was forgotten before -> {last.name}"
    fell = f"residual {report.residual_fell:.1f}-fold down" if report.steps else "no step"
    took = f"{report.num_forgotten:,} interactions in {report.seconds['total']:.1f} s"
    return f"{file.name}: {took}, {fell} -> {new.name}, {report.verdict}: {' '.join(report.verdict_reasons)}"


def newest(checkpoints: Path) -> Path:
    """Return the checkpoint with the highest number."""
    found = sorted(checkpoints.glob("[0-9][0-9][0-9][0-9]-*.ckpt"))
    if not found:
        raise UnlearningError(f"{checkpoints} has no 0000-trained.ckpt to start from; copy one there or --train true.")
    return found[-1]


def trainer(**settings: int) -> L.Trainer:
    """Return a trainer that leaves nothing on the disk of its own accord, and measures nothing beside the residual."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    callbacks = [IFRUCallback(evaluate=False)]  # metrics before and after can take longer than the erasure
    return L.Trainer(callbacks=callbacks, enable_progress_bar=sys.stderr.isatty(), **quiet, **settings)


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
