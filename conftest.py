"""What holds for all tests, those in docstrings too."""

import os

import torch

from lightning_ifru.keys import KEY

# Here and in the processes that tests start: no test makes a key in the home folder of whoever runs it.
os.environ[KEY] = "the key of all tests"

# Side by side, each process takes one core: threads of all for each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
