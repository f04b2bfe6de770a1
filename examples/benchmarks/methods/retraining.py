"""Training again from the start on what is left: the exact way, and the yardstick of all others."""

from __future__ import annotations

import time
from dataclasses import dataclass

from recipes import Scorer, Trained, train

from lightning_ifru import UnlearningRequest
from methods.interface import Forgotten


@dataclass(frozen=True)
class Retraining:
    """Full retraining by the original's recipe.

    Args:
        name: in the tables.
        shift: added to the original's seed. 0 is *paired* retraining: the same initialisation, batches and negatives
            without the forgotten; anything else is *free* retraining.
        jitter: a relative change of the initialisation. Paired retraining with a jitter of the size of rounding errors
            shows how far apart training alone carries two models that ought to be the same: nothing that is compared
            with paired retraining can be expected to come nearer.
    """

    name: str
    shift: int = 0
    jitter: float = 0.0

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Train without a request."""
        seed = original.seed + self.shift
        # The original's data and not the source: what was forgotten by earlier requests stays so.
        retrained = train(original.recipe, lambda: original.copy()[1], seed, without=request, jitter=self.jitter)
        since = time.perf_counter()
        scorer = retrained.scorer
        score = time.perf_counter() - since
        seconds = {"train": retrained.seconds, "score": score, "total": retrained.seconds + score}
        return Forgotten(scorer, retrained.data, seconds, {"seed": seed, "epochs": original.recipe.epochs})
