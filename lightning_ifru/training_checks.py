"""Whether a module is trained to what its objective says: on what batches hold, and by a training step of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Examples
from lightning_ifru.mixin import IFRUMixin
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, ravel


def check_batches(module: IFRUMixin, objective: Objective, data: InteractionDataModule) -> None:
    """Let the loss refuse what the data's batches do not hold, and refuse one with weights of its own.

    Raises:
        ObjectiveError: labels or negatives are lacking, or the loss depends on parameters of the module.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    one = next(iter(trained.values())).detach()
    columns = 1 if data.labelled else 1 + data.num_negatives
    value = objective.loss(one.new_zeros(1, columns), one.new_zeros(1) if data.labelled else None)
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), list(trained.values()), allow_unused=True)
        names = [name for name, gradient in zip(trained, found, strict=True) if gradient is not None]
        raise ObjectiveError(
            f"the loss '{objective.loss.name}' of {objective.name} depends on its parameters ({', '.join(names)}); "
            "wanted a function of scores alone: put them into decode."
        )


def check_training_step(
    module: IFRUMixin, data: InteractionDataModule, objective: Objective, parameters: Parameters, edge_index: Tensor
) -> None:
    """Refuse a training step of the user's own that minimises something else than the objective.

    Raises:
        ObjectiveError: its gradient on a batch is not that of the objective.
    """
    if not module.automatic_optimization:
        raise _no_loss(module, "optimises by itself")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = {name: column.to(module.device) for name, column in next(iter(data.train_dataloader())).items()}
    examples = Examples(batch["user"], batch["item"], 1 / len(batch["user"]), batch.get("label"), batch.get("negative"))
    examples = replace(examples, presence=module.batch_weights(batch, data.num_users, data.num_items))
    # Ω on both sides would hide a small difference in the loss, or be the optimiser's, which no step contains.
    bare = replace(objective, regularization=None, weight_decay={})
    wanted = ravel(bare.gradient(parameters, edge_index, [examples]))
    with _without_logging(module), _buffers_kept(module):
        output: Any = module.training_step(batch, 0)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise _no_loss(module, f"returned {type(output).__name__}")
        if module.regularizes:
            loss = loss - module.regularization()
        named = [dict(module.named_parameters())[name] for name in parameters]
        found = torch.autograd.grad(loss, named, allow_unused=True, materialize_grads=True)
    got = torch.cat([gradient.reshape(-1) for gradient in found])
    if not float((got - wanted).norm()) <= 1e-3 * float(wanted.norm()):
        raise ObjectiveError(
            f"the gradient of {type(module).__name__}.training_step on a batch has norm {float(got.norm()):.6g} and "
            f"differs by {float((got - wanted).norm()):.3g} from that of the objective given by encode, decode, loss "
            f"and regularization, norm {float(wanted.norm()):.6g}; put what training minimises into those."
        )


def _no_loss(module: IFRUMixin, found: str) -> ObjectiveError:
    return ObjectiveError(
        f"{type(module).__name__}.training_step {found}; wanted automatic optimisation and the batch's loss, to "
        "compare it with the objective: return it, or drop the training_step for that of IFRUMixin."
    )


@contextmanager
def _buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """Undo what a training step counts or averages in buffers."""
    held = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    values = [buffer.clone() for _, _, buffer in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for (part, name, buffer), value in zip(held, values, strict=True):
                part._buffers[name] = buffer.copy_(value)


@contextmanager
def _without_logging(module: torch.nn.Module) -> Iterator[None]:
    """Let a training step run outside of a loop, where ``self.log`` would raise."""
    names = ("log", "log_dict")
    for name in names:
        module.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del module.__dict__[name]
