"""The least that can be done: the new graph, and fresh rows for who was erased."""

from __future__ import annotations

from dataclasses import dataclass

from recipes import Scorer, Trained

from lightning_ifru import UnlearningRequest
from methods.interface import Forgotten
from methods.staged import Staged


@dataclass(frozen=True)
class Local:
    """No learning at all: the data and the graph without the forgotten, the parameters as they were.

    Args:
        name: in the tables.
        reset: whether the rows of erased users and items are drawn anew, as the module initialises them.
    """

    name: str
    reset: bool

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Swap the graph."""
        staged = Staged(original, request)
        staged.put(staged.start if self.reset else staged.unlearning.parameters)
        return staged.finish(details={"rows_reset": int(staged.unlearning.problem.erased.sum()) if self.reset else 0})
