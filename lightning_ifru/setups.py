"""What of the way a model is trained unlearning can do with: processes, precision, averaged weights, compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks
from lightning.pytorch.plugins import BitsandbytesPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_ifru.errors import ObjectiveError

#: Precisions that leave the weights themselves in full.
_PRECISIONS = ("32-true", "64-true", "16-mixed", "bf16-mixed")
_DTYPES = {torch.float32, torch.float64}


def check_setup(trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
    """Refuse a trainer or a module that unlearning would lose its corrections in, or leave something that remembers.

    Raises:
        MisconfigurationException: the trainer runs in several processes in another way than DDP, or spawns them, shards
            the model, rounds its weights to half precision, or has a callback that keeps averages of past weights.
        ObjectiveError: the module's weights are not all in float32 or all in float64, have no shape yet, or are
            averaged by a part of the module.
    """
    _check_strategy(trainer)
    _check_precision(trainer)
    _check_callbacks(trainer)
    _check_averaged_parts(module)
    _check_weights(module)


@contextmanager
def plainly(trainer: lightning.Trainer, module: lightning.LightningModule) -> Iterator[None]:
    """Compute in the type of the weights, and without compiled code, whatever training or the caller does.

    Autocast would round the curvature to half precision, and :mod:`torch.func` does not differentiate compiled code.
    Tensors that the module makes are of the type that they have in training, float64 with ``"64-true"``. Of attention
    the plain formula alone has a second derivative.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autocast(module.device.type, enabled=False))
        stack.enter_context(trainer.precision_plugin.tensor_init_context())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off for a while, with gradients on, and leave every submodule as it was."""
    training = {name: part.training for name, part in module.named_modules()}
    try:
        module.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for name, part in module.named_modules():
            part.training = training[name]


def _check_strategy(trainer: lightning.Trainer) -> None:
    name = type(trainer.strategy).__name__
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise MisconfigurationException(
            f"unlearn got {name} with spawned processes, in which the corrected weights would be lost; use "
            "Trainer(devices=1), or unlearn from the checkpoint in a process of its own."
        )
    if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        raise MisconfigurationException(
            f"unlearn got {name}, which takes the weights into its own hands; wanted a strategy that leaves them "
            "whole: save a checkpoint of the whole model and unlearn with Trainer(devices=1), ckpt_path=..."
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise MisconfigurationException(
            f"unlearn got {name} with {trainer.world_size} processes, of which it knows DDP alone; use "
            "Trainer(strategy='ddp'), or save a checkpoint and unlearn with Trainer(devices=1, num_nodes=1), "
            "ckpt_path=..."
        )


def _check_precision(trainer: lightning.Trainer) -> None:
    plugin = trainer.precision_plugin
    # What bitsandbytes makes of the layers is not in its plugin's precision.
    if plugin.precision not in _PRECISIONS or isinstance(plugin, BitsandbytesPrecision):
        raise MisconfigurationException(
            f"unlearn got a {type(plugin).__name__} plugin with precision={plugin.precision!r}, in whose rounding the "
            f"corrections would be lost; wanted one of {', '.join(_PRECISIONS)}: unlearn from the checkpoint with "
            "Trainer(precision='32-true'), ckpt_path=..."
        )


def _check_callbacks(trainer: lightning.Trainer) -> None:
    # WeightAveraging, the base of EMAWeightAveraging, came with Lightning 2.6.
    kinds = [getattr(callbacks, name, None) for name in ("StochasticWeightAveraging", "WeightAveraging")]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, tuple(kind for kind in kinds if kind is not None)):
            raise MisconfigurationException(
                f"unlearn found {type(callback).__name__} on the trainer, whose averaged weights would still remember; "
                "wanted a trainer without it: unlearn from the checkpoint with a trainer of its own, ckpt_path=..."
            )


def _check_averaged_parts(module: lightning.LightningModule) -> None:
    for name, part in module.named_modules():
        if isinstance(part, AveragedModel):
            raise ObjectiveError(
                f"the part '{name}' of {type(module).__name__} is an AveragedModel, whose averaged weights would still "
                "remember; unlearn a module without it: make the averages the weights, or drop them, and begin new "
                "averages afterwards."
            )


def _check_weights(module: lightning.LightningModule) -> None:
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    shapeless = [name for name, p in named.items() if is_lazy(p)]
    if shapeless:
        raise ObjectiveError(
            f"the parameter '{shapeless[0]}' of {type(module).__name__} has no shape yet; call "
            "model.encode(data.graph()) once before unlearning."
        )
    dtypes = {p.dtype: name for name, p in reversed(named.items())}  # the first of each
    if len(dtypes) > 1 or not dtypes.keys() <= _DTYPES:
        found = ", ".join(f"{dtype} ('{name}')" for dtype, name in dtypes.items())
        raise ObjectiveError(
            f"{type(module).__name__} has weights of {found}; wanted one type for all of them, torch.float32 or "
            "torch.float64, for half precision is too coarse for corrections: call model.float() before unlearning."
        )
