"""Ours, by the way a user takes: ``Trainer.unlearn`` with an ``IFRUCallback``."""

from __future__ import annotations

from dataclasses import dataclass, field

from recipes import Scorer, Trained, quiet_trainer

from lightning_ifru import IFRU, IFRUCallback, UnlearningRequest
from methods.interface import Forgotten
from methods.staged import Staged

_DETAILS = (
    *("residual_before", "residual_after", "direct_norm", "spillover_norm", "stationarity", "curvature", "damping"),
    *("steps", "cg_iterations", "unknowns", "rows_changed", "num_users_erased", "num_items_erased"),
)


@dataclass(frozen=True)
class InfluenceUnlearning:
    """Recommendation unlearning by influence functions, by the public way.

    The seconds are those of the report, and ``setup`` for what it does not time: the trainer, the staging, the checks.
    ``evaluate`` measures before and after, as ``unlearn`` does unasked.

    Args:
        name: in the tables.
        method: the hyper-parameters.

    Source: Zhang et al., *Recommendation Unlearning via Influence Function*, arXiv 2307.02147.
    """

    name: str
    method: IFRU = field(default_factory=IFRU)

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Forget a request with ``Trainer.unlearn``."""
        staged = Staged(original, request)
        with quiet_trainer(callbacks=[IFRUCallback(self.method)]) as trainer:
            report = trainer.unlearn(staged.data, model=staged.module)
        staged.lap("setup")
        phases = {name: value for name, value in report.seconds.items() if name != "total"}
        staged.seconds["setup"] -= sum(phases.values())
        staged.seconds.update(phases)
        return staged.finish(details={name: getattr(report, name) for name in _DETAILS})
