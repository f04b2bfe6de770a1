r"""The risk that training minimised, as a function of parameters, examples and graph.

.. math::  J(\theta; S, G) = \sum_{z \in S} w_z\, \ell(z; \theta, G) + \Omega(\theta) + \sum_v p_v\, \omega_v(\theta)

with :math:`w_z = 1/|S|` for a mean, and :math:`p_v` the weight of a node's own penalty, see
:mod:`lightning_ifru.presence`. The model is an encoder (parameters and graph to one row per node) and a decoder (two
rows to a score). Only the encoder is differentiated as a whole; interactions go through decoder and loss in chunks, so
that memory is bounded by the chunk and not by the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from lightning_ifru.derivatives import Derivative
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.losses import Loss
from lightning_ifru.parameters import Parameters

NodeKind = Literal["user", "item", "node"]


@dataclass(frozen=True)
class Examples:
    """A weighted set of training examples.

    Attributes:
        user, item: indices ``[n]``.
        weight: the weight of each example in the risk, ``1/n`` for a mean.
        target: labels ``[n]`` of a pointwise loss.
        negative: items ``[n, K]`` of a pairwise loss, drawn once.
        candidates: items ``[M]``; instead of ``negative``: the expectation over all of them. Exact where a loss takes
            negatives one at a time; of one that takes ``group`` at once the mean over sets in which each occurs once.
        group: how many candidates the loss takes at once.
        presence: the weight :math:`p_v` of every node's own penalty, ``[num_nodes]``; ``None`` without one.
    """

    user: Tensor
    item: Tensor
    weight: float
    target: Tensor | None = None
    negative: Tensor | None = None
    candidates: Tensor | None = None
    group: int = 1
    presence: Tensor | None = None

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
        node_regularization: ``parameters -> [num_nodes]``, the penalty :math:`\omega_v` of each node's own rows, which
            counts as often as training has it in a batch; ``None`` where there is none.
        num_users: the offset of items among nodes.
        num_items: the number of items.
        node_parameters: for each parameter whose rows belong to users, items or nodes, to which.
        decoder_parameters: the names of the parameters that ``decode`` depends on.
        chunk_size: pairs that go through decoder and loss at a time.
        name: how the model is called in messages.

    Example:
        >>> from lightning_ifru.losses import resolve_loss
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
    node_regularization: Callable[[Parameters], Tensor] | None = None
    name: str = "the model"

    @property
    def num_nodes(self) -> int:
        """Users and items together."""
        return self.num_users + self.num_items

    def chunks(self, examples: Examples) -> Iterator[Chunk]:
        """Cut ``examples`` into chunks of at most :attr:`chunk_size` pairs (at least one example each)."""
        if examples.candidates is not None and examples.group > 1:
            yield from self._grouped(examples, examples.candidates.view(-1, examples.group))
            return
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

    def _grouped(self, examples: Examples, groups: Tensor) -> Iterator[Chunk]:
        """Pair every example with every one of ``groups [G, K]`` of candidates."""
        columns = 1 + groups.shape[1]
        for part in groups.split(max(1, self.chunk_size // columns)):
            for start, stop in _ranges(len(examples), self.chunk_size // (columns * len(part))):
                user, item = (some[start:stop].repeat_interleave(len(part)) for some in (examples.user, examples.item))
                negative = part.repeat(stop - start, 1)
                yield Chunk.of(self.num_users, user, item, None, negative, examples.weight / len(groups))

    def _chunk(self, examples: Examples, start: int, stop: int, negative: Tensor | None, weight: float) -> Chunk:
        target = None if examples.target is None else examples.target[start:stop]
        return Chunk.of(self.num_users, examples.user[start:stop], examples.item[start:stop], target, negative, weight)

    def chunk_risk(self, chunk: Chunk, parameters: Parameters, source: Tensor, destination: Tensor) -> Tensor:
        """Return the chunk's share of the risk, a scalar, from the rows ``[B * columns, d]`` of its nodes."""
        return chunk.risk(self.loss, self.decode(parameters, source, destination))

    def decoder_part(self, parameters: Parameters) -> Parameters:
        """Return the parameters that the decoder depends on."""
        return {name: parameters[name] for name in self.decoder_parameters}

    def penalty(self, parameters: Parameters, examples: Sequence[Examples]) -> Tensor:
        """Return Ω and the nodes' own penalties with their weights in ``examples``, a scalar."""
        total = self.regularization(parameters)
        if self.node_regularization is not None:
            weights = [part.presence for part in examples if part.presence is not None]
            if weights:
                own = self.node_regularization(parameters)
                total = total + own @ torch.stack(weights).sum(0).to(own.dtype)
        return total

    def value_and_gradient(
        self,
        parameters: Parameters,
        edge_index: Tensor,
        examples: Sequence[Examples],
        regularize: bool = True,
    ) -> tuple[float, Parameters]:
        """Return ``J`` and its gradient at ``parameters`` on a graph; without penalties if ``regularize`` is false.

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
            omega_gradient, omega = grad_and_value(lambda p: self.penalty(p, examples))(parameters)
            gradient = {name: gradient[name] + omega_gradient[name] for name in gradient}
            value += omega
        if not torch.isfinite(value):
            raise ObjectiveError(
                f"the training objective of {self.name} is {float(value)} at these parameters; wanted a finite number: "
                f"check weights and data for NaN, and the loss '{self.loss.name}' for scores it has no value for."
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
            ObjectiveError: encoder, decoder, loss or penalty is stochastic (dropout), encoder or decoder returns the
                wrong shape, the scores do not depend on the parameters, or the loss has no meaning for the targets, is
                not finite, or has no curvature (hinge), so that the Newton system would be Ω alone.
        """
        self.loss.check_targets(examples.target)
        chunk = next(self.chunks(examples))

        def look() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            h = self._encoded(parameters, edge_index)
            scores = self.decode(parameters, h.index_select(0, chunk.source), h.index_select(0, chunk.destination))
            if scores.shape != chunk.source.shape:
                raise ObjectiveError(
                    f"decode of {self.name} returned shape {tuple(scores.shape)} for {chunk.source.numel()} pairs; "
                    f"wanted one score for each pair, shape {tuple(chunk.source.shape)}."
                )
            return h, scores, chunk.risk(self.loss, scores), self.penalty(parameters, [examples])

        with torch.no_grad():
            first, second = look(), look()
        # Atomics on accelerators reorder sums, so equality is asked for only up to rounding.
        parts = ("encode", "decode", "the loss", "the regularization")
        for part, a, b in zip(parts, first, second, strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True):
                raise ObjectiveError(
                    f"{part} of {self.name} gave two different answers to the same input; influence functions need a "
                    "deterministic objective: call model.eval(), or switch off dropout and sampling inside of it."
                )
        _, scores, risk, _ = first
        if not torch.isfinite(scores).all():
            return  # the objective itself is not finite, which its value says
        if not torch.isfinite(risk):
            raise ObjectiveError(
                f"the loss '{self.loss.name}' of {self.name} is {float(risk)} for finite scores from "
                f"{float(scores.min()):.3g} to {float(scores.max()):.3g}; wanted a number: check its formula for "
                "logarithms and divisions, or choose loss='bce' or 'bpr'."
            )
        slope_at = grad(lambda s: chunk.risk(self.loss, s))
        slope, curvature = Derivative()(slope_at, (scores,), (_alternating(scores),))
        if not bool(slope.any()) and not bool(curvature.any()):
            raise ObjectiveError(
                f"the loss '{self.loss.name}' of {self.name} does not depend on the scores; wanted a function of them: "
                "return the loss of each example, or choose loss='bce' or 'bpr'."
            )
        if not bool(curvature.any()):
            raise ObjectiveError(
                f"the loss '{self.loss.name}' has no curvature (its second derivative is zero everywhere it was "
                "tried), so that there is no Newton step; use a smooth loss such as 'bce', 'bpr' or 'mse'."
            )
        self._check_dependence(parameters, edge_index, chunk)

    def _encoded(self, parameters: Parameters, edge_index: Tensor) -> Tensor:
        h = self.encode(parameters, edge_index)
        check_rows(h, self.name, self.num_users, self.num_items)
        return h

    def _check_dependence(self, parameters: Parameters, edge_index: Tensor, chunk: Chunk) -> None:
        """Refuse scores on which no parameter has an influence: detached ones, or a stack of dead units."""

        def scores(p: Parameters) -> Tensor:
            h = self.encode(p, edge_index)
            return self.decode(p, h.index_select(0, chunk.source), h.index_select(0, chunk.destination))

        value, pullback = vjp(scores, parameters)
        # No two weights are alike, so that scores which all move together do not cancel.
        (found,) = pullback(torch.arange(1.0, value.numel() + 1).to(value).cos())
        if not any(bool(gradient.any()) for gradient in found.values()):
            raise ObjectiveError(
                f"the scores of {self.name} do not depend on its trainable parameters ({', '.join(parameters)}); "
                "wanted encode and decode to use them: look for detach(), torch.no_grad(), dead units, or weights that "
                "are all zero."
            )


def check_rows(h: object, name: str, num_users: int, num_items: int) -> None:
    """Refuse what an encoder has returned if it is not one row for each of the users and then the items.

    Raises:
        ObjectiveError: it is not; the message says what was got and wanted.
    """
    got = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
    if not isinstance(h, Tensor) or h.dim() != 2 or h.shape[0] != num_users + num_items:
        raise ObjectiveError(
            f"encode of {name} returned {got}; wanted one tensor [{num_users + num_items}, d], a row for each of the "
            f"data's {num_users} users and then {num_items} items: build the module with num_users={num_users}, "
            f"num_items={num_items}, and return torch.cat([users, items])."
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
