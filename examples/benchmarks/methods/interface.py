"""The one interface of all methods of forgetting, ours included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from recipes import Scorer, Trained

from lightning_ifru import InteractionDataModule, UnlearningRequest


@dataclass(frozen=True)
class Forgotten:
    """What a method arrived at.

    Attributes:
        scorer: the scores of the model after forgetting, on the graph without the forgotten.
        data: the data without the forgotten.
        seconds: by phase, from the trained original to the scorer, everything included; with ``total``.
        details: whatever else is worth a column: steps, residuals, epochs.
    """

    scorer: Scorer
    data: InteractionDataModule
    seconds: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A way to make a trained model forget; it must not change the original."""

    #: As in the tables, unique among the methods.
    name: str

    def prepare(self, original: Trained) -> Scorer:
        """Do before any request what the method needs, and return the scores of the model that is to forget.

        For most methods that is the original. Those that retrain parts train their own model here, with the original's
        recipe; ``prepare`` is called once for an original and before ``forget``.
        """
        ...

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Forget a request."""
        ...
