"""A request staged on a copy of the original, with a clock: what the methods that change a trained model start from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from recipes import Scorer, Trained

from lightning_ifru import IFRU, UnlearningRequest
from lightning_ifru.parameters import Parameters
from lightning_ifru.unlearning import Unlearning
from methods.interface import Forgotten


class Staged:
    """A request staged on a copy of the original; the clock runs from here on.

    Copying, and reading the data for it, is not on the clock: it is there so that the original outlives the benchmark.

    Attributes:
        module, data: the copies, which a method may change.
        seconds: by phase; see :meth:`lap`.

    Args:
        original: the trained model and its data.
        request: what is to be forgotten.
        method: with which :attr:`unlearning` is worked out.
    """

    def __init__(self, original: Trained, request: UnlearningRequest, method: IFRU | None = None) -> None:
        self._method = IFRU() if method is None else method
        self.module, self.data = original.copy()
        self.module.eval()
        self.seconds: dict[str, float] = {}
        self._began = self._last = time.perf_counter()
        self.data.forget(request)

    @cached_property
    def unlearning(self) -> Unlearning:
        """The request worked out against the model: objective, parameters and problem."""
        return Unlearning.of(self.module, self.data, self._method)

    @cached_property
    def start(self) -> Parameters:
        """The trained parameters with fresh rows for erased users and items, the same ones that IFRU draws."""
        # A copy, since the objective's parameters are the module's own, which training moves.
        start = {name: tensor.clone() for name, tensor in self.unlearning.parameters.items()}
        rows = self.unlearning.problem.erased.nonzero().flatten()
        for name in self.unlearning.objective.node_parameters if len(rows) else ():
            # Users' and items' rows are in one table, as in all models of the recipes.
            start[name][rows] = self.module.initial_rows(name, rows, seed=self._method.seed)
        return start

    def lap(self, phase: str) -> None:
        """Book the time since the last call on a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def put(self, parameters: Parameters) -> None:
        """Put parameters into the model and take the forgotten out of data and graph."""
        with torch.no_grad():
            for name, own in self.module.named_parameters():
                own.copy_(parameters[name])
        self.data.commit(self.data.removal())
        self.module.release_graph()
        self.lap("apply")

    def finish(self, scorer: Scorer | None = None, details: Mapping[str, Any] | None = None) -> Forgotten:
        """Return what the method arrived at; by default the scores of the model on the data as they are now."""
        scorer = Scorer.of(self.module, self.data) if scorer is None else scorer
        self.lap("score")
        return Forgotten(scorer, self.data, {**self.seconds, "total": self._last - self._began}, dict(details or {}))
