"""Requests one after another in one process, and what that costs in memory.

``python tests/soak.py --count 500 --seed 0`` prints one JSON object: for each way of unlearning, the memory of the
process after every request from the 50th on, against the 50th. Every request is one by a user, one by one, out of data
that a model has been trained on once; what is counted is what stays after a garbage collection.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import lightning
import numpy as np
import psutil
import torch

from lightning_ifru import IFRU, IFRUCallback, InteractionDataModule, UnlearningRequest
from lightning_ifru.keys import throwaway_key
from lightning_ifru.models import LightGCN

#: The ways of unlearning: where the step is solved, and whether every request leaves a checkpoint.
WAYS = {
    "full": ("full", False),
    "local": ("local", False),
    "full, with checkpoints": ("full", True),
    "local, with checkpoints": ("local", True),
}
#: From this request on memory is to stay: before it caches fill.
SETTLED = 50


def planted(users, seed, items=60):
    """Return interactions of some users, eight of each."""
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(users) for i in rng.choice(items, 8, replace=False)]
    return {"user": [f"user-{u}" for u, _ in pairs], "item": [f"item-{i}" for _, i in pairs]}


class Soak:
    """A trained model and its data, and requests to forget one user each."""

    def __init__(self, folder, way, count, seed):
        locality, self.writes = WAYS[way]
        self.data = InteractionDataModule(planted(count + 100, seed), seed=seed, batch_size=512)
        torch.manual_seed(seed)
        self.model = LightGCN(self.data.num_users, self.data.num_items, 8, 1, loss="bpr", lr=0.05, weight_decay=1e-3)
        method = IFRU(max_steps=1, cg_iterations=3, locality=locality, max_rows=64)
        self.trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[IFRUCallback(method)],
        )
        self.trainer.fit(self.model, datamodule=self.data)
        self.folder, self.forgotten = folder, 0
        self.order = np.random.default_rng(seed).permutation(count + 100).tolist()

    def forget(self):
        """Forget one user more."""
        request = UnlearningRequest(users=[f"user-{self.order[self.forgotten]}"])
        output = self.folder / "unlearned.ckpt" if self.writes else None
        report = self.trainer.unlearn(self.data, model=self.model, request=request, output=output)
        self.forgotten += 1
        assert report.num_users_erased == 1
        assert report.path == self.trainer.callbacks[0].method.locality

    @property
    def entries(self):
        """How much the ledger holds, which is to grow."""
        return len(self.trainer.callbacks[0].ledger)


def resident():
    """Return the bytes that the process holds, without what only waits to be given back."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def objects():
    """Return how many objects of each kind there are."""
    gc.collect()
    return Counter(type(one).__qualname__ for one in gc.get_objects())


def tensor_bytes():
    """Return the bytes of all tensors, each of those that share their first element once."""
    gc.collect()
    # Not those of torch's compiler, which have no memory and no numbers for sizes.
    plain = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [one for one in plain if one.layout == torch.strided]
    return sum({one.data_ptr(): one.nbytes for one in sorted(tensors, key=lambda one: one.nbytes)}.values())


@contextlib.contextmanager
def soaking(way, count, seed):
    """Yield a soak in a folder of its own, without Lightning's advice."""
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), throwaway_key():
            warnings.simplefilter("ignore")
            yield Soak(Path(folder), way, count, seed)
    finally:
        logging.disable(logging.NOTSET)


def run(count=500, seed=0, ways=tuple(WAYS)):
    """Forget ``count`` users in each of some ways, and return what that has cost."""
    found = {"count": count, "seed": seed, "settled": min(SETTLED, count // 2), "ways": {}}
    for way in ways:
        with soaking(way, count, seed) as soak:
            since, held = time.perf_counter(), []
            for _ in range(count):
                soak.forget()
                if soak.forgotten >= found["settled"]:
                    held.append(resident())
            found["ways"][way] = {
                "requests": soak.forgotten,
                "ledger": soak.entries,
                "bytes_settled": held[0],
                "bytes_at_the_end": held[-1],
                "bytes_at_most": max(held),
                "growth": round(max(held) / held[0] - 1, 4),
                "seconds": round(time.perf_counter() - since, 1),
            }
    found["growth"] = max(way["growth"] for way in found["ways"].values())
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    result = run(**vars(options.parse_args()))
    print(json.dumps(result, indent=1))  # noqa: T201
    sys.exit(1 if result["growth"] > 0.05 else 0)
