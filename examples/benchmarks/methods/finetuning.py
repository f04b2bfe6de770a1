r"""Training on from the original on what is left, plainly or with a control variate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from recipes import Scorer, Trained, fit

from lightning_ifru import UnlearningRequest
from lightning_ifru.curvature import GaussNewton
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Examples
from lightning_ifru.parameters import ravel, unravel
from lightning_ifru.pruning import expand_to_parameters
from lightning_ifru.system import norm
from methods.interface import Forgotten
from methods.staged import Staged

#: They start along the influence, and arrive within some per cent.
_POWER_ITERATIONS = 5


@dataclass(frozen=True)
class FineTuning:
    """Warm-start training on the retained data and graph, with a fresh Adam of the original's recipe.

    Rows of erased users and items start anew. With ``control_variate`` it is :class:`ControlVariate` that steps.

    Args:
        name: in the tables.
        epochs: over the retained data.
        control_variate: whether gradients are corrected to aim at the residual of unlearning.
    """

    name: str
    epochs: int = 5
    control_variate: bool = False
    #: Of the recipe's learning rate.
    share: ClassVar[float] = 1.0

    def prepare(self, original: Trained) -> Scorer:
        """Return the scores of the original."""
        return original.scorer

    def forget(self, original: Trained, request: UnlearningRequest) -> Forgotten:
        """Train on for some epochs."""
        staged = Staged(original, request)
        corrections, details = list[Callback](), dict[str, Any]()
        if self.control_variate:
            variate = ControlVariate(staged)
            corrections.append(variate)
            staged.module.configure_optimizers = lambda: torch.optim.SGD(staged.module.parameters(), lr=variate.rate)
            staged.lap("influence")
        staged.put(staged.start)
        staged.module.lr = staged.module.lr * self.share
        lightning.seed_everything(original.seed, verbose=False)
        fit(staged.module, staged.data, self.epochs, corrections)
        staged.lap("train")
        if self.control_variate:
            residuals = variate.residuals
            details = {"residual_before": residuals[0], "residual_after": residuals[-1], "steps": len(residuals) - 1}
        return staged.finish(details={"epochs": self.epochs, **details})


@dataclass(frozen=True)
class SlowFineTuning(FineTuning):
    """Fine-tuning at a part of the recipe's learning rate, which was fixed before anything was measured.

    Args:
        name, epochs, control_variate: as of :class:`FineTuning`.
        share: of the recipe's learning rate.
    """

    share: float = 1 / 3


class ControlVariate(Callback):
    r"""Corrects every minibatch's gradient so that its mean is the residual of unlearning, and scales its rows.

    .. math::  g = \nabla J(\theta; B, G') - \nabla J(\hat\theta; B, G') - b
               \;\to\; \nabla J(\theta; R, G') - \nabla J(\hat\theta; D, G) = r(\theta), \qquad
               \theta \leftarrow \theta - M^{-1} g / \lambda

    for a batch :math:`B` of the retained, whose noise cancels near :math:`\hat\theta`. What training had left of the
    gradient is no reason to move, and rows of the erased are held.

    The steps are those of SGD with the row of a node divided by its share :math:`M_v = n_v / n` of the interactions,
    and the largest curvature :math:`\lambda` of :math:`M^{-1/2} C M^{-1/2}` (Gauss-Newton, five power iterations) for
    the rate. Adam would move every row as far, however little of the residual is its own: with it the scores of test
    pairs ended further from retraining than where they began.

    Training ends with the first epoch in which :math:`\|r\|` does not fall, which is undone: far from a minimum the
    true curvature is indefinite, and there is no end to going down.

    Args:
        staged: the request, worked out against the model before anything is changed.

    Source: Johnson and Zhang, *Accelerating stochastic gradient descent using predictive variance reduction*, 2013,
    with equation (1) of the package in place of the full gradient.
    """

    def __init__(self, staged: Staged) -> None:
        u, self._start = staged.unlearning, staged.start
        self._objective, self._graph = u.objective, u.problem.after
        influence = u.method.influence(u.objective, u.parameters, u.problem, start=self._start)
        self._b, self._leftover = influence.total, influence.leftover
        self._retained = u.method.sides(u.objective, u.problem).retained_after
        counts = u.problem.node_counts(u.objective, u.problem.retained).clamp(min=1)
        share = expand_to_parameters(counts / len(u.problem.retained), u.objective, self._start)
        self._free = expand_to_parameters(~u.problem.erased, u.objective, self._start)
        self._rows = unravel(self._free / share, self._start)
        curvature = GaussNewton(u.objective, self._start, self._graph, [self._retained])
        direction, scale = self._b * self._free, self._free * share.rsqrt()
        #: Norms of the residual at the start and after every epoch kept.
        self.residuals = [norm(direction)]
        for _ in range(_POWER_ITERATIONS if direction.any() else 0):
            direction = scale * curvature(scale * direction / direction.norm())
        #: The rate of SGD.
        self.rate = 1 / float(direction.norm()) if direction.any() else 0.0
        self._kept = self._start

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the batch's gradient at the start."""
        user = batch["user"]
        examples = Examples(user, batch["item"], 1 / len(user), batch.get("label"), batch.get("negative"))
        self._anchor = self._objective.gradient(self._start, self._graph, [examples])

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Correct and scale the gradient, the penalty's included."""
        named = dict(pl_module.named_parameters())
        # Beside the nodes' own penalties, of which a batch has its share in the loss.
        omega = self._objective.penalty_gradient({name: p.detach() for name, p in named.items()}, [])
        b = unravel(self._b, self._start)
        for name, p in named.items():
            assert p.grad is not None
            p.grad.add_(omega.get(name, 0.0) - self._anchor[name] - b[name]).mul_(self._rows[name])

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop if the residual has not fallen."""
        theta = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        try:
            gradient = self._objective.gradient(theta, self._graph, [self._retained])
        except ObjectiveError:  # not finite
            trainer.should_stop = True
            return
        residual = norm((ravel(gradient) - self._leftover) * self._free)
        if residual < self.residuals[-1]:
            self.residuals.append(residual)
            self._kept = theta
        else:
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go back to the last parameters kept."""
        with torch.no_grad():
            for name, p in pl_module.named_parameters():
                p.copy_(self._kept[name])
