"""A cron job: apply the requests of the day one after another, and leave a checkpoint after each.

Requests are CSV or JSON files in a folder, named by their day (``2026-11-22.csv``), and are applied in the order of
their names. Each is applied to the last checkpoint, in a fresh state, and gives ``0002-2026-11-22.csv.ckpt``, the next.
Only when that is written does the request move to the folder ``done``, so that a run that breaks off loses nothing and
repeats nothing. A request that is refused stays where it is and is reported; the others go on, and the exit code is 1.

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
    say, complain = (Console(stderr=e, soft_wrap=True, markup=False, highlight=False).print for e in (False, True))
    left = 0
    try:
        if not requests.is_dir():
            raise UnlearningError(f"there is no folder {requests}; create it, or give another with --requests.")
        if train:
            train_first(InteractionDataModule(data, user=user, item=item), checkpoints, requests / "done", epochs)
        files = sorted(path for path in requests.iterdir() if path.is_file() and not path.name.startswith("."))
        for file in files:
            try:
                say(apply(file, InteractionDataModule(data, user=user, item=item), checkpoints))
            except RequestError as error:
                complain(f"{file.name} is left where it is: {error}")
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


def apply(file: Path, data: InteractionDataModule, checkpoints: Path) -> str:
    """Apply one request to the last checkpoint, write the next, put the request away, and say what happened."""
    last, done = newest(checkpoints), file.parent / "done" / file.name
    done.parent.mkdir(exist_ok=True)
    if done.exists():
        raise RequestError(f"a request of this name was applied before and is {done}; rename the new one.")
    if last.name[5:] == f"{file.name}.ckpt":
        file.rename(done)
        return f"{file.name}: had been applied by a run that broke off -> {last.name}"
    model, job = LightGCN.load_from_checkpoint(last), trainer()
    report = job.unlearn(data, model=model, request=file, ckpt_path=last)
    unfinished = checkpoints / "unfinished.part"
    job.save_checkpoint(unfinished)
    new = unfinished.rename(checkpoints / f"{int(last.name[:4]) + 1:04d}-{file.name}.ckpt")
    file.rename(done)
    fell = "not corrected, retrain" if not report.steps else f"residual {report.residual_fell:.1f}-fold down"
    return (
        f"{file.name}: {report.num_forgotten:,} interactions in {report.seconds['total']:.1f} s, {fell} -> {new.name}"
    )


def newest(checkpoints: Path) -> Path:
    """Return the checkpoint with the highest number."""
    found = sorted(checkpoints.glob("[0-9][0-9][0-9][0-9]-*.ckpt"))
    if not found:
        raise UnlearningError(f"{checkpoints} has no 0000-trained.ckpt to start from; copy one there or --train true.")
    return found[-1]


def trainer(**settings: int) -> L.Trainer:
    """Return a trainer that leaves nothing on the disk of its own accord."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(callbacks=[IFRUCallback()], enable_progress_bar=sys.stderr.isatty(), **quiet, **settings)


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
