"""What each of two processes finds; ``torchrun --nproc_per_node=2 tests/two_ranks.py folder cpu`` writes it down."""

import os
import sys
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import lightning
import numpy as np
import torch
from torch import distributed

from lightning_ifru import IFRU, DataError, IFRUCallback, InteractionDataModule, RankError, UnlearningRequest
from lightning_ifru.models import LightGCN, MatrixFactorization, NeuMF
from lightning_ifru.objective import Objective
from lightning_ifru.outputs import alone_in
from lightning_ifru.ranks import Ranks

USERS, ITEMS = 24, 16
METHOD = IFRU(max_steps=2, cg_iterations=8, locality="full")
QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
#: Model, loss, settings of the method, what is forgotten beside an erased user.
SOLVED = {
    "mf-bce": (MatrixFactorization, "bce", {}, {}),
    "lightgcn-bpr": (LightGCN, "bpr", {}, {}),
    "lightgcn-bpr-hessian-pruned": (LightGCN, "bpr", {"curvature": "hessian", "keep_ratio": 0.5}, {"items": ["i3"]}),
    "neumf-bce": (NeuMF, "bce", {}, {}),
    "lightgcn-bpr-local": (LightGCN, "bpr", {"locality": "local", "max_rows": 12}, {}),
}


def planted():
    rng = np.random.default_rng(3)
    taste, trait = rng.normal(size=(USERS, 2)), rng.normal(size=(ITEMS, 2))
    seen = rng.random((USERS, ITEMS)) < 0.5
    user, item = np.nonzero(seen)
    return {
        "user": [f"u{u}" for u in user],
        "item": [f"i{i}" for i in item],
        "rating": (3 + (taste @ trait.T)[seen]).round(1).tolist(),
    }


def data_for(loss, **changes):
    rated = {} if loss == "bpr" else {"rating": "rating", "threshold": 3.0}
    return InteractionDataModule(changes.pop("source", planted()), **{"batch_size": 32, "seed": 3} | rated | changes)


def built(name="mf-bce", **changes):
    kind, loss, _, _ = SOLVED[name]
    torch.manual_seed(1)
    sizes = {"num_users": USERS, "num_items": ITEMS, "embedding_dim": 4, "loss": loss, "lr": 0.05, "weight_decay": 1e-3}
    return kind(**sizes | changes)


def request(name="mf-bce", **more):
    return UnlearningRequest(**{"users": ["u4"]} | SOLVED[name][3] | more)


def trainer_in(folder, devices=2, method=METHOD, **changes):
    callback = changes.pop("callback", None) or IFRUCallback(method)
    return lightning.Trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        default_root_dir=folder,
        callbacks=[callback],
        **QUIET | changes,
    )


def unlearned(name, folder, trained, devices=1, accelerator="cpu"):
    """Unlearn one of the cases from the checkpoint of its training, and return all that came of it."""
    _, loss, settings, _ = SOLVED[name]
    trainer = trainer_in(folder, devices, IFRU(**vars(METHOD) | settings), accelerator=accelerator)
    model, data = built(name), data_for(loss)
    report = trainer.unlearn(data, model=model, request=request(name), ckpt_path=trained)
    (callback,) = (each for each in trainer.callbacks if isinstance(each, IFRUCallback))
    return {
        "weights": model.state_dict(),
        "report": report.to_json(),
        "ledger": callback.ledger,
        "checkpoint": report.checkpoint,
        "left": len(data.train),
    }


class Attempt:
    """An unlearning that is to fail: what was raised, and whether anything has moved."""

    rehearses = False

    def __init__(self, folder, rank):
        self.folder, self.rank = folder, rank
        self.data, self.model, self.request = data_for("bce"), built(), request()
        self.trainer = trainer_in(folder)

    def run(self):
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        rows = len(self.data.train)
        try:
            self.report = self.trainer.unlearn(
                self.data, model=self.model, request=self.request, dry_run=self.rehearses
            )
            error = None
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        return {
            "error": error,
            "moved": any(
                not torch.equal(tensor.double(), before[n].double()) for n, tensor in self.model.state_dict().items()
            ),
            "rows": rows - len(self.data.train),
            "pending": self.data.pending is not None,
        }


def other_request(attempt):
    attempt.request = request(users=["u5"])


def stranger(attempt):
    attempt.request = request(users=["nobody"])


def other_labels(attempt):
    source = planted()
    source["rating"] = source["rating"][::-1]
    attempt.data = data_for("bce", source=source)


def other_sizes(attempt):
    source = {
        name: [*column, extra] for (name, column), extra in zip(planted().items(), ("u99", "i0", 5.0), strict=True)
    }
    attempt.data, attempt.model = data_for("bce", source=source), built(num_users=USERS + 1)


def other_method(attempt):
    attempt.trainer = trainer_in(attempt.folder, method=IFRU(max_steps=3))


def other_key(attempt):
    os.environ["LIGHTNING_IFRU_KEY"] += "-of-another-machine"


def other_key_and_labels(attempt):
    other_key(attempt)
    other_labels(attempt)


#: What is done on the second rank alone.
DIFFERENT = {
    "keys": other_key,
    "keys-data": other_key_and_labels,
    "requests": other_request,
    "stranger": stranger,
    "data": other_labels,
    "sizes": other_sizes,
    "methods": other_method,
}


@contextmanager
def failing(owner, name, error, calls=0):
    """Let a method fail after some calls."""
    method, left = getattr(owner, name), [calls]

    def fail(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return method(*args, **kwargs)

    setattr(owner, name, fail)
    yield
    setattr(owner, name, method)


def failures(folder, rank):
    found = {}
    for name, change in DIFFERENT.items():
        attempt = Attempt(folder / name, rank)
        with patch.dict(os.environ):
            if rank == 1:
                change(attempt)
            found[name] = attempt.run()
    for calls in (0, 4):  # in the first gradient of all, and in one of those of the solve
        attempt = Attempt(folder / f"solve-{calls}", rank)
        with failing(Objective, "value_and_gradient", ValueError("on purpose"), calls if rank == 1 else 1000):
            found[f"solve-{calls}"] = attempt.run()
    for name, keyed in (("rehearsed", ()), ("rehearsed-one", (0,))):
        attempt = Attempt(folder / name, rank)
        attempt.rehearses, home = True, folder / f"home-{rank}"
        home.mkdir(exist_ok=True)
        with patch.dict(os.environ, {"XDG_CONFIG_HOME": str(home.resolve())}):
            if rank not in keyed:
                del os.environ["LIGHTNING_IFRU_KEY"]
            found[name] = attempt.run()
        if name == "rehearsed":
            found[name]["digest"] = attempt.report.digest
    attempt = Attempt(folder / "disk", rank)
    with failing(attempt.trainer.strategy.checkpoint_io, "save_checkpoint", OSError("no space left")):
        found["disk"] = attempt.run()
    attempt = Attempt(folder / "leftover", rank)
    attempt.request = request(users=["planted-5"])
    attempt.data = data_for("bce", source=planted() | {"user": [f"planted-{one[1:]}" for one in planted()["user"]]})
    attempt.model.on_save_checkpoint = lambda checkpoint: checkpoint.update(seen=["planted-5"])
    found["leftover"] = attempt.run()
    return found


def at_the_end_of_a_fit(folder):
    """Train in two processes, and forget when that ends."""
    callback, data, model = IFRUCallback(METHOD, request=request()), data_for("bce"), built()
    trainer_in(folder, callback=callback, max_epochs=2).fit(model, datamodule=data)
    return {"weights": model.state_dict(), "ledger": callback.ledger, "left": len(data.train)}


def into_an_output(folder):
    """Unlearn into a file, twice, and while another process writes there; the second rank would write elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    rank, found = distributed.get_rank(), {"said": []}
    for held in (False, False, True):
        trainer = trainer_in(folder, enable_checkpointing=False)
        with alone_in(folder) if held and rank == 0 else nullcontext():
            try:
                arguments = {"request": request(), "ckpt_path": folder.parent / "mf-bce.ckpt"}
                report = trainer.unlearn(data_for("bce"), model=built(), output=folder / "a.ckpt", **arguments)
                found["said"].append([report.num_forgotten, report.already_absent, report.checkpoint])
            except DataError as error:
                found["said"].append(f"DataError: {error}")
            except RankError as error:
                found["said"].append(f"RankError: {error}")
        found["ledger"] = found.get("ledger") or trainer.callbacks[0].ledger
    with patch.dict(os.environ):
        if rank == 1:
            os.environ["LIGHTNING_IFRU_KEY"] += "-of-another-machine"
        try:
            trainer_in(folder, enable_checkpointing=False).unlearn(
                data_for("bce"), model=built(), output=folder / "a.ckpt", **arguments
            )
        except RankError as error:
            found["other key"] = f"RankError: {error}"
    return found


def exchanges(device):
    """What the exchanges themselves give."""
    ranks = Ranks.world()
    mine = torch.arange(4.0, device=device) + ranks.rank
    found = {
        "sum": ranks.sum(mine.view(2, 2), torch.tensor(ranks.rank + 1, device=device), mine[:1].double()),
        "first": [ranks.first(0.1 + ranks.rank), ranks.first(mine), ranks.first({"rank": ranks.rank})],
        "spread": ranks.spread([lambda n=n: (n, ranks.rank) for n in range(3)]),
        "mask": ranks.first(mine > 2),
        "errors": [],
    }
    ranks.check_equal({"things": [torch.ones(2), "same"]})
    different = [{"things": [torch.full((2,), ranks.rank)]}, {"things": [torch.ones(1, 2 + ranks.rank)]}]
    for parts in ({"names": [1.0]} | some for some in different):
        try:
            ranks.check_equal(parts)
        except RankError as error:
            found["errors"].append(str(error))
    try:
        with ranks.together():
            if ranks.rank == 1:
                raise KeyError("mine")
            ranks.sum(mine)
    except (KeyError, RankError) as error:
        found["errors"].append(str(error))
    return found


def main(folder, accelerator):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if accelerator == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if accelerator == "gpu" else "gloo")
    rank, found = distributed.get_rank(), {}
    for name in SOLVED:
        found[name] = unlearned(name, folder / accelerator / name, folder / f"{name}.ckpt", 2, accelerator)
    found["exchanges"] = exchanges(torch.device("cuda" if accelerator == "gpu" else "cpu"))
    if accelerator == "cpu":
        found |= failures(folder, rank)
        found["fit"] = at_the_end_of_a_fit(folder / "fit")
        found["output"] = into_an_output(folder / "output")
    torch.save(found, folder / accelerator / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
