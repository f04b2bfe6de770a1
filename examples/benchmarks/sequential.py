"""Many requests one after another, each forgotten before the next arrives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from methods.interface import Forgotten
from recipes import Scorer, Trained, quiet_trainer

from lightning_ifru import IFRU, IFRUCallback, UnlearningRequest


@dataclass(frozen=True)
class Sequential:
    """Splits a request for interactions into many, and unlearns one after another on the model that the last one left.

    Args:
        name: in the tables.
        requests: at most; each has as many interactions as the next, give or take one.
        method: the hyper-parameters.
    """

    name: str
    requests: int = 100
    method: IFRU = field(default_factory=IFRU)

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Forget the parts of a request."""
        pairs = list(request.interactions)
        module, data = original.copy()
        clock = time.perf_counter()
        steps = []
        with quiet_trainer(callbacks=[IFRUCallback(self.method)]) as trainer:
            for k in range(min(self.requests, len(pairs))):
                part = UnlearningRequest(interactions=pairs[k :: self.requests])
                steps.append(trainer.unlearn(data, model=module, request=part).steps)
        scorer = Scorer.of(module, data)
        details = {"requests": len(steps), "steps": sum(steps), "requests_without_step": steps.count(0)}
        return Forgotten(scorer, data, {"total": time.perf_counter() - clock}, details)
