r"""Training on from the original on what is left, plainly or with a control variate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from recipes import Scorer, Trained, fit
from torch.func import grad

from lightning_ifru import UnlearningRequest
from lightning_ifru.objective import Examples
from lightning_ifru.parameters import ravel, unravel
from lightning_ifru.pruning import expand_to_parameters
from methods.interface import Forgotten
from methods.staged import Staged


@dataclass(frozen=True)
class FineTuning:
    """Warm-start training on the retained data and graph, with a fresh Adam of the original's recipe.

    Rows of erased users and items start anew.

    Args:
        name: in the tables.
        epochs: over the retained data.
        control_variate: whether gradients are corrected by :class:`ControlVariate`.
    """

    name: str
    epochs: int = 5
    control_variate: bool = False

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Train on for some epochs."""
        staged = Staged(original, request)
        corrections = [ControlVariate(staged)] if self.control_variate else []
        staged.lap("influence")
        staged.put(staged.start)
        lightning.seed_everything(original.seed, verbose=False)
        fit(staged.module, staged.data, self.epochs, list[Callback](corrections))
        staged.lap("train")
        return staged.finish(details={"epochs": self.epochs})


class ControlVariate(Callback):
    r"""Corrects every minibatch's gradient so that its mean is the residual of unlearning.

    .. math::  \nabla J(\theta; B, G') - \nabla J(\hat\theta; B, G') - b
               \;\to\; \nabla J(\theta; R, G') - \nabla J(\hat\theta; D, G) = r(\theta)

    for a batch :math:`B` of the retained, whose noise cancels near :math:`\hat\theta`. What training had left of the
    gradient is no reason to move, and rows of the erased are held.

    Args:
        staged: the request, worked out against the model before anything is changed.

    Source: Johnson and Zhang, *Accelerating stochastic gradient descent using predictive variance reduction*, 2013,
    with equation (1) of the package in place of the full gradient.
    """

    def __init__(self, staged: Staged) -> None:
        u = self._unlearning = staged.unlearning
        self._start = staged.start
        influence = u.method.influence(u.objective, u.parameters, u.problem, start=staged.start)
        self._free = expand_to_parameters(~u.problem.erased, u.objective, u.parameters)
        self._constant = influence.total + ravel(grad(u.objective.regularization)(staged.start))
        self._anchor = torch.zeros_like(self._constant)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch's gradient at the start."""
        u = self._unlearning
        user = batch["user"]
        examples = Examples(user, batch["item"], 1 / len(user), batch.get("label"), batch.get("negative"))
        self._anchor = ravel(u.objective.gradient(self._start, u.problem.after, [examples], regularize=False))

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Correct the gradient; the optimiser adds its own of the L2 penalty, as it does in training."""
        correction = unravel(self._anchor + self._constant, self._start)
        free = unravel(self._free, self._start)
        for name, p in pl_module.named_parameters():
            assert p.grad is not None
            p.grad.sub_(correction[name]).mul_(free[name])
