"""What one of two processes finds when the other is killed; ``python tests/lost_rank.py folder`` writes it down.

Both are forks of this one, which has imported all there is: torchrun would end the one that is left by itself.
"""

import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from two_ranks import Attempt

from lightning_ifru.objective import Objective
from lightning_ifru.target import Target
from lightning_ifru.transaction import Transaction


def killed_in(owner, name, calls=0):
    """Have the process killed as a method is called after some calls."""
    method, left = getattr(owner, name), [calls]

    def kill(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **kwargs)

    setattr(owner, name, kill)


def killed_after_publishing(owner, name):
    """Have the process killed when it knows that the other one publishes, before that one hears of it again."""

    def publish(target, entries):
        target.ranks.meet()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, publish)


#: Who is killed, and how.
MOMENTS = {
    "the second in the first gradient": (1, killed_in, Objective, "value_and_gradient"),
    "the second in the middle of the solve": (1, killed_in, Objective, "value_and_gradient", 4),
    "the first in the middle of the solve": (0, killed_in, Objective, "value_and_gradient", 4),
    "the first as it writes": (0, killed_in, Transaction, "write"),
    "the second as the first writes": (1, killed_in, Target, "write"),
    "the second before the first publishes": (1, killed_in, Target, "publish"),
    "the second after the first has published": (1, killed_after_publishing, Target, "publish"),
}


def process(folder, rank, victim, kill, *where):
    """Unlearn as one of two processes, and write down how it ended, if it was not killed."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"TORCHELASTIC_RUN_ID": "lost", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    os.environ.update({key: str(value) for key, value in place.items()})
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", store, timedelta(seconds=60), world_size=2, rank=rank)
    attempt = Attempt(folder / "run", rank)
    if rank == victim:
        kill(*where)
    since = time.perf_counter()
    found = attempt.run() | {"seconds": time.perf_counter() - since}
    (folder / f"{rank}.json").write_text(json.dumps(found))


def main(folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for moment, how in MOMENTS.items():
        place = folder / moment
        place.mkdir(parents=True)
        children = []
        for rank in range(2):
            child = os.fork()
            if not child:
                try:
                    process(place, rank, *how)
                finally:
                    os._exit(0)
            children.append(child)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        (place / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
