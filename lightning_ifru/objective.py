r"""The risk that training minimised, as a function of parameters, examples and graph.

.. math::  J(\theta; S, G) = \sum_{z \in S} w_z\, \ell(z; \theta, G) + \Omega(\theta)

with :math:`w_z = 1/|S|` for a mean. The model is an encoder (parameters and graph to one row per node) and a decoder
(two rows to a score). Only the encoder is differentiated as a whole; interactions go through decoder and loss in
chunks, so that memory is bounded by the chunk and not by the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp

from lightning_ifru.errors import ObjectiveError
from lightning_ifru.parameters import Parameters

NodeKind = Literal["user", "item", "node"]


@dataclass(frozen=True)
class Loss:
    r"""A loss per example as a function of its scores.

    Args:
        name: how the loss is called in messages.
        function: pointwise: ``(scores [B], targets [B]) -> [B]``; pairwise: ``(positive [B, 1], negative [B, K]) ->
            [B, K]``, of which the mean over the negatives is the example's loss.
        pairwise: whether an example is a positive with negatives instead of a pair with a target.
        probabilistic: whether targets are probabilities, and those below 0 or above 1 an error.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]
    pairwise: bool = False
    probabilistic: bool = False

    def __call__(self, scores: Tensor, target: Tensor | None) -> Tensor:
        """Return the loss ``[B]`` of ``scores [B, C]``; column 0 is the example, the others are its negatives.

        Raises:
            ObjectiveError: labels or negatives are lacking, or the function does not return one loss per example.
        """
        if self.pairwise:
            if scores.shape[1] == 1:
                raise ObjectiveError(
                    f"the loss '{self.name}' needs negatives and got labelled interactions; leave out the rating "
                    "column of the data, or choose loss='bce'."
                )
            return self._losses((scores[:, :1], scores[:, 1:]), scores[:, 1:].shape).mean(dim=1)
        if target is None:
            raise ObjectiveError(
                f"the loss '{self.name}' needs labels and got implicit interactions; name the rating column of the "
                "data, or choose loss='bpr'."
            )
        return self._losses((scores[:, 0], target.to(scores.dtype)), scores[:, 0].shape)

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


def resolve_loss(loss: str | Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    r"""Turn a loss's name, or a function of scores and targets, into a :class:`Loss`.

    ``"bce"`` is :math:`-y \log\sigma(s) - (1-y)\log(1-\sigma(s))`, ``"mse"`` is :math:`(s-y)^2`, and ``"bpr"`` is
    :math:`-\log\sigma(s_{ui} - s_{uj})` for negatives :math:`j`.

    Raises:
        ObjectiveError: for a name that is none of these.

    Example:
        >>> resolve_loss("mse")(torch.tensor([[3.0]]), torch.tensor([1.0]))
        tensor([4.])
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), loss)
    if loss not in _LOSSES:
        raise ObjectiveError(f"got loss={loss!r}; wanted one of {sorted(_LOSSES)} or a callable (scores, targets).")
    return _LOSSES[loss]


_LOSSES = {
    "bce": Loss("bce", lambda s, y: F.binary_cross_entropy_with_logits(s, y, reduction="none"), probabilistic=True),
    "mse": Loss("mse", lambda s, y: (s - y).square()),
    "bpr": Loss("bpr", lambda positive, negative: F.softplus(negative - positive), pairwise=True),
}


@dataclass(frozen=True)
class Examples:
    """A weighted set of training examples.

    Attributes:
        user, item: indices ``[n]``.
        weight: the weight of each example in the risk, ``1/n`` for a mean.
        target: labels ``[n]`` of a pointwise loss.
        negative: items ``[n, K]`` of a pairwise loss, drawn once.
        candidates: items ``[M]``; instead of ``negative``: the expectation over all of them, exactly.
    """

    user: Tensor
    item: Tensor
    weight: float
    target: Tensor | None = None
    negative: Tensor | None = None
    candidates: Tensor | None = None

    def __len__(self) -> int:
        return self.user.numel()


@dataclass(frozen=True)
class Chunk:
    """Examples as pairs of nodes: ``B`` examples of ``columns`` pairs each, flattened to ``[B * columns]``.

    Column 0 of an example is its own pair, the others pair its user with its negatives.
    """

    source: Tensor
    destination: Tensor
    columns: int
    target: Tensor | None
    weight: float

    @classmethod
    def of(
        cls, num_users: int, user: Tensor, item: Tensor, target: Tensor | None, negative: Tensor | None, weight: float
    ) -> Chunk:
        """Pair users ``[B]`` with items ``[B]`` and, if there are any, with negatives ``[B, K]``."""
        columns = 1
        if negative is not None:
            columns += negative.shape[1]
            user = user.repeat_interleave(columns)
            item = torch.cat([item.unsqueeze(1), negative], dim=1).reshape(-1)
        return cls(user, item + num_users, columns, target, weight)

    def risk(self, loss: Loss, scores: Tensor) -> Tensor:
        """Return the chunk's share of the risk, a scalar, from its scores ``[B * columns]``."""
        return self.weight * loss(scores.view(-1, self.columns), self.target).sum()


@dataclass(frozen=True)
class Objective:
    r"""The risk :math:`J` of an encoder-decoder recommender.

    Args:
        encode: ``(parameters, edge_index) -> [num_nodes, d]``.
        decode: ``(parameters, source [B, d], destination [B, d]) -> scores [B]``.
        loss: the loss per example.
        regularization: ``parameters -> Ω``, a scalar.
        num_users: the offset of items among nodes.
        num_items: the number of items.
        node_parameters: for each parameter whose rows belong to users, items or nodes, to which.
        decoder_parameters: the names of the parameters that ``decode`` depends on.
        chunk_size: pairs that go through decoder and loss at a time.

    Example:
        >>> table = torch.tensor([[1.0], [2.0]])
        >>> objective = Objective(
        ...     encode=lambda p, _: p["w"], decode=lambda p, s, t: (s * t).sum(-1), loss=resolve_loss("mse"),
        ...     regularization=lambda p: p["w"].square().sum(), num_users=1, num_items=1, node_parameters={"w": "node"})
        >>> one = Examples(torch.tensor([0]), torch.tensor([0]), 1.0, target=torch.tensor([1.0]))
        >>> value, gradient = objective.value_and_gradient({"w": table}, None, [one])
        >>> value, gradient["w"].flatten()
        (6.0, tensor([6., 6.]))
    """

    encode: Callable[[Parameters, Tensor], Tensor]
    decode: Callable[[Parameters, Tensor, Tensor], Tensor]
    loss: Loss
    regularization: Callable[[Parameters], Tensor]
    num_users: int
    num_items: int
    node_parameters: Mapping[str, NodeKind] = field(default_factory=dict)
    decoder_parameters: tuple[str, ...] = ()
    chunk_size: int = 65536

    @property
    def num_nodes(self) -> int:
        """Users and items together."""
        return self.num_users + self.num_items

    def chunks(self, examples: Examples) -> Iterator[Chunk]:
        """Cut ``examples`` into chunks of at most :attr:`chunk_size` pairs (at least one example each)."""
        if examples.candidates is not None:
            # An expectation over more items than fit a chunk is the weighted mean of expectations over its parts.
            total = examples.candidates.numel()
            for part in examples.candidates.split(max(1, self.chunk_size - 1)):
                weight = examples.weight * part.numel() / total
                for start, stop in _ranges(len(examples), self.chunk_size // (1 + part.numel())):
                    negative = part.expand(stop - start, -1)
                    yield self._chunk(examples, start, stop, negative, weight)
            return
        columns = 1 if examples.negative is None else 1 + examples.negative.shape[1]
        for start, stop in _ranges(len(examples), self.chunk_size // columns):
            negative = None if examples.negative is None else examples.negative[start:stop]
            yield self._chunk(examples, start, stop, negative, examples.weight)

    def _chunk(self, examples: Examples, start: int, stop: int, negative: Tensor | None, weight: float) -> Chunk:
        target = None if examples.target is None else examples.target[start:stop]
        return Chunk.of(self.num_users, examples.user[start:stop], examples.item[start:stop], target, negative, weight)

    def chunk_risk(self, chunk: Chunk, parameters: Parameters, source: Tensor, destination: Tensor) -> Tensor:
        """Return the chunk's share of the risk, a scalar, from the rows ``[B * columns, d]`` of its nodes."""
        return chunk.risk(self.loss, self.decode(parameters, source, destination))

    def decoder_part(self, parameters: Parameters) -> Parameters:
        """Return the parameters that the decoder depends on."""
        return {name: parameters[name] for name in self.decoder_parameters}

    def value_and_gradient(
        self,
        parameters: Parameters,
        edge_index: Tensor,
        examples: Sequence[Examples],
        regularize: bool = True,
    ) -> tuple[float, Parameters]:
        """Return ``J`` and its gradient at ``parameters`` on a graph; without Ω if ``regularize`` is false.

        Raises:
            ObjectiveError: if the risk is not finite.
        """
        h, pullback = vjp(lambda p: self.encode(p, edge_index), parameters)
        decoder = self.decoder_part(parameters)
        gradient_h = torch.zeros_like(h)
        gradient_decoder = {name: torch.zeros_like(tensor) for name, tensor in decoder.items()}
        value = torch.zeros((), dtype=torch.float64, device=h.device)
        for part in examples:
            for chunk in self.chunks(part):
                (d, s, t), risk = grad_and_value(lambda *rows, c=chunk: self.chunk_risk(c, *rows), argnums=(0, 1, 2))(
                    decoder, h.index_select(0, chunk.source), h.index_select(0, chunk.destination)
                )
                gradient_h.index_add_(0, chunk.source, s).index_add_(0, chunk.destination, t)
                for name, tensor in d.items():
                    gradient_decoder[name] += tensor
                value += risk
        (gradient,) = pullback(gradient_h)
        gradient = {n: g + gradient_decoder[n] if n in gradient_decoder else g for n, g in gradient.items()}
        if regularize:
            omega_gradient, omega = grad_and_value(self.regularization)(parameters)
            gradient = {name: gradient[name] + omega_gradient[name] for name in gradient}
            value += omega
        if not torch.isfinite(value):
            raise ObjectiveError(
                f"the training objective is {float(value)} at these parameters; wanted a finite number: check the "
                "model's weights and the data for NaN before unlearning."
            )
        return float(value), gradient

    def gradient(
        self,
        parameters: Parameters,
        edge_index: Tensor,
        examples: Sequence[Examples],
        regularize: bool = True,
    ) -> Parameters:
        """Return the gradient alone; see :meth:`value_and_gradient`."""
        return self.value_and_gradient(parameters, edge_index, examples, regularize)[1]

    def check(self, parameters: Parameters, edge_index: Tensor, examples: Examples) -> None:
        """Refuse an objective that influence functions do not apply to.

        Raises:
            ObjectiveError: the encoder or decoder is stochastic (dropout), returns the wrong shape, or the loss has
                no meaning for the targets, or no curvature (hinge), so that the Newton system would be Ω alone.
        """
        self.loss.check_targets(examples.target)
        chunk = next(self.chunks(examples))
        with torch.no_grad():
            first, second = self.encode(parameters, edge_index), self.encode(parameters, edge_index)
            if first.dim() != 2 or first.shape[0] != self.num_nodes:
                raise ObjectiveError(
                    f"encode returned shape {tuple(first.shape)}; wanted [{self.num_nodes}, d], one row for each of "
                    f"{self.num_users} users and then {self.num_items} items."
                )
            rows = first.index_select(0, chunk.source), first.index_select(0, chunk.destination)
            scores, again = self.decode(parameters, *rows), self.decode(parameters, *rows)
            if scores.shape != chunk.source.shape:
                raise ObjectiveError(
                    f"decode returned shape {tuple(scores.shape)} for {chunk.source.numel()} pairs; wanted one score "
                    f"for each pair, shape {tuple(chunk.source.shape)}."
                )
        # Atomics on accelerators reorder sums, so equality is asked for only up to rounding.
        same = all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in ((first, second), (scores, again))
        )
        if not same:
            raise ObjectiveError(
                "the model gave two different answers to the same input; influence functions need a deterministic "
                "objective: call model.eval(), or switch off dropout and sampling inside encode and decode."
            )
        curvature = jvp(grad(lambda s: chunk.risk(self.loss, s)), (scores,), (_alternating(scores),))[1]
        if torch.isfinite(scores).all() and not bool(curvature.any()):
            raise ObjectiveError(
                f"the loss '{self.loss.name}' has no curvature (its second derivative is zero everywhere it was "
                "tried), so that there is no Newton step; use a smooth loss such as 'bce', 'bpr' or 'mse'."
            )


def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(1, size)
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _alternating(like: Tensor) -> Tensor:
    # A pairwise loss does not change when all scores move together; probe a direction in which they move apart.
    signs = torch.ones_like(like)
    signs[1::2] = -1.0
    return signs
