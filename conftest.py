"""What holds for all tests, those in docstrings too."""

import os

from lightning_ifru.keys import KEY

# Here and in the processes that tests start: no test makes a key in the home folder of whoever runs it.
os.environ[KEY] = "the key of all tests"
