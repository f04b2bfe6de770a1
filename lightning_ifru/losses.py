r"""The losses that recommenders are trained with, each a function of an example's scores.

Nothing is known of a loss but this function: its gradient and its second derivative are autograd's, exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_ifru.errors import ObjectiveError

LossKind = Literal["pointwise", "pairwise", "listwise"]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    r"""A loss per example as a function of its scores.

    Args:
        name: how the loss is called in messages.
        function: by its kind, of an example's score :math:`s_{ui}` and

            - pointwise: its label, ``(scores [B], targets [B]) -> [B]``;
            - pairwise: one negative's score :math:`s_{uj}` at a time, ``(positive [B, 1], negative [B, K]) -> [B, K]``,
              of which the mean over the negatives is the example's loss;
            - listwise: all of its negatives' scores at once, ``(positive [B], negative [B, K]) -> [B]``.
        kind: which of these.
        probabilistic: whether targets are probabilities, and those below 0 or above 1 an error.

    Raises:
        ObjectiveError: the kind is none of these, or the function cannot be called.

    Example:
        >>> squared_gap = Loss("squared gap", lambda positive, negative: (1 - positive + negative) ** 2, "pairwise")
        >>> squared_gap(torch.tensor([[2.0, 1.0, 2.0]]), None)
        tensor([0.5000])
    """

    name: str
    function: LossFunction
    kind: LossKind = "pointwise"
    probabilistic: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("pointwise", "pairwise", "listwise"):
            raise ObjectiveError(
                f"the loss '{self.name}' got kind={self.kind!r}; wanted 'pointwise', 'pairwise' or 'listwise'."
            )
        if not callable(self.function):
            raise ObjectiveError(
                f"the loss '{self.name}' got {self.function!r} as its function; wanted a callable of two tensors."
            )

    @property
    def needs_negatives(self) -> bool:
        """Whether an example is a positive with negatives instead of a pair with a target."""
        return self.kind != "pointwise"

    def __call__(self, scores: Tensor, target: Tensor | None) -> Tensor:
        """Return the loss ``[B]`` of ``scores [B, C]``; column 0 is the example, the others are its negatives.

        Raises:
            ObjectiveError: labels or negatives are lacking, or the function does not return one loss per example.
        """
        if self.needs_negatives:
            if scores.shape[1] == 1:
                raise ObjectiveError(
                    f"the loss '{self.name}' needs negatives and got labelled interactions; leave out the rating "
                    "column of the data, or choose loss='bce'."
                )
            return self.against(scores[:, 0], scores[:, 1:])
        if target is None:
            raise ObjectiveError(
                f"the loss '{self.name}' needs labels and got implicit interactions; name the rating column of the "
                "data, or choose loss='bpr' or 'sampled_bce'."
            )
        return self._losses((scores[:, 0], target.to(scores.dtype)), scores[:, 0].shape)

    def against(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the loss ``[B]`` of scores ``[B]`` against those of each one's negatives ``[B, K]``.

        Raises:
            ObjectiveError: the function does not return one loss per example, or for pairwise losses per negative.
        """
        if self.kind == "listwise":
            return self._losses((positive, negative), positive.shape)
        return self._losses((positive.unsqueeze(1), negative), negative.shape).mean(dim=1)

    def check_negatives(self, scores: Tensor) -> None:
        """Refuse a pairwise loss in which a negative's loss depends on the others, given scores ``[B, C]``.

        Raises:
            ObjectiveError: it does.
        """
        if self.kind != "pairwise":
            return
        if scores.shape[1] == 2:  # the example's own score serves as another negative
            scores = scores[:, [0, 1, 0]]
        positive, negative = scores[:, :1], scores[:, 1:]
        together = self._losses((positive, negative), negative.shape)
        one = (positive.expand_as(negative).reshape(-1, 1), negative.reshape(-1, 1))
        alone = self._losses(one, one[1].shape).view_as(together)
        if not torch.allclose(together, alone, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ObjectiveError(
                f"the pairwise loss '{self.name}' gives a negative another loss beside others than alone; wanted one "
                "that takes negatives one at a time: declare it Loss(..., kind='listwise')."
            )

    def check_targets(self, target: Tensor | None) -> None:
        """Refuse targets that the loss has no meaning for.

        Raises:
            ObjectiveError: a target is no probability where it must be.
        """
        if not self.probabilistic or target is None or not target.numel():
            return
        least, most = (float(bound) for bound in target.aminmax())
        if least < 0 or most > 1:
            raise ObjectiveError(
                f"the loss '{self.name}' needs labels from 0 to 1 and got labels from {least:g} to {most:g}; give the "
                "data a threshold= from which ratings are positive, or choose loss='mse'."
            )

    def _losses(self, inputs: tuple[Tensor, Tensor], wanted: torch.Size) -> Tensor:
        losses = self.function(*inputs)
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if got != tuple(wanted):
            raise ObjectiveError(
                f"the loss '{self.name}' returned {got}; wanted one loss per example, shape {tuple(wanted)}: return "
                "them without mean or sum (reduction='none')."
            )
        return losses


#: What a model may be given as its loss: a name or the path of a function, such a function, or a loss.
LossSpec = str | LossFunction | Loss


def resolve_loss(loss: LossSpec) -> Loss:
    r"""Turn a loss's name, or a function of scores and targets, into a :class:`Loss`.

    With labels ``y`` of interactions, or with sampled negatives ``j`` of implicit ones:

    - ``"bce"``: :math:`-y \log\sigma(s_{ui}) - (1 - y) \log(1 - \sigma(s_{ui}))`;
    - ``"mse"``: :math:`(s_{ui} - y)^2`, ratings as they are;
    - ``"bpr"``: :math:`-\log\sigma(s_{ui} - s_{uj})`, its mean over ``j`` (Rendle et al., arXiv 1205.2618);
    - ``"sampled_bce"``: :math:`-\log\sigma(s_{ui}) - \log(1 - \sigma(s_{uj}))`, its mean over ``j``;
    - ``"margin"``: :math:`\log(1 + e^{1 - s_{ui} + s_{uj}})`, its mean over ``j``: a hinge with a curvature;
    - ``"sampled_softmax"``: :math:`-\log \frac{e^{s_{ui}}}{e^{s_{ui}} + \sum_j e^{s_{uj}}}` (Jean et al.,
      arXiv 1412.2007; no correction, since the sampler is uniform).

    A name with a dot in it is the path of a function or of a :class:`Loss`, for config files.

    Raises:
        ObjectiveError: for a name that is none of these, and a path that cannot be imported.

    Example:
        >>> resolve_loss("mse")(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([4.])
        >>> resolve_loss("sampled_softmax")(torch.zeros(1, 4), None).exp()
        tensor([4.])
    """
    if isinstance(loss, str) and "." in loss:
        loss = _imported(loss)
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), loss)
    if not isinstance(loss, str) or loss not in _LOSSES:
        raise ObjectiveError(
            f"got loss={loss!r}; wanted one of {sorted(_LOSSES)}, a Loss, or a callable (scores, targets) or its path."
        )
    return _LOSSES[loss]


def takes_two(function: Callable[..., Any]) -> bool:
    """Return whether a function in the body of a class is one of scores and targets, and no method."""
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    # A method whose targets have a default would do with two, too.
    return next(iter(signature.parameters)) != "self"


def _imported(path: str) -> LossSpec:
    """The function or loss that a path such as ``"package.module.name"`` stands for, as in a config file."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ObjectiveError(
            f"got loss={path!r}, which cannot be imported ({error}); wanted the path of a function of scores and "
            f"targets, of a Loss, or one of {sorted(_LOSSES)}."
        ) from error


def _sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    return torch.cat([positive.unsqueeze(1), negative], dim=1).logsumexp(dim=1) - positive


_LOSSES = {
    loss.name: loss
    for loss in (
        Loss("bce", lambda s, y: F.binary_cross_entropy_with_logits(s, y, reduction="none"), probabilistic=True),
        Loss("mse", lambda s, y: (s - y).square()),
        Loss("bpr", lambda positive, negative: F.softplus(negative - positive), "pairwise"),
        Loss("sampled_bce", lambda positive, negative: F.softplus(-positive) + F.softplus(negative), "pairwise"),
        Loss("margin", lambda positive, negative: F.softplus(1 - positive + negative), "pairwise"),
        Loss("sampled_softmax", _sampled_softmax, "listwise"),
    )
}
