r"""The risk that training minimised, as a function of parameters, examples and graph.

.. math::  J(\theta; S, G) = \sum_{z \in S} w_z\, \ell(z; \theta, G) + \Omega(\theta) + \sum_v p_v\, \omega_v(\theta)

with :math:`w_z = 1/|S|` for a mean, and :math:`p_v` the weight of a node's own penalty, see
:mod:`lightning_ifru.presence`. The model is an encoder (parameters and graph to one row per node) and a decoder (two
rows to a score). Only the encoder is differentiated as a whole; how interactions go through decoder and loss is said in
:mod:`lightning_ifru.decoding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import grad, vjp

from lightning_ifru.decoding import Decoding, Gathered
from lightning_ifru.derivatives import Derivative
from lightning_ifru.dot_products import AllCandidates, DotProducts
from lightning_ifru.errors import ObjectiveError
from lightning_ifru.examples import Chunk, Examples, chunks
from lightning_ifru.losses import Loss
from lightning_ifru.parameters import Parameters
from lightning_ifru.ranks import ALONE, Ranks
from lightning_ifru.weight_decay import l2_penalty

NodeKind = Literal["user", "item", "node"]

_patterns: WeakKeyDictionary[Examples, dict[tuple[object, ...], DotProducts]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Objective:
    r"""The risk :math:`J` of an encoder-decoder recommender.

    Args:
        encode: ``(parameters, edge_index) -> [num_nodes, d]``.
        decode: ``(parameters, source [B, d], destination [B, d]) -> scores [B]``.
        loss: the loss per example.
        regularization: ``parameters -> Ω``, a scalar; ``None`` where there is none but weight decay.
        node_regularization: ``parameters -> [num_nodes]``, the penalty :math:`\omega_v` of each node's own rows, which
            counts as often as training has it in a batch; ``None`` where there is none.
        num_users: the offset of items among nodes.
        num_items: the number of items.
        node_parameters: for each parameter whose rows belong to users, items or nodes, to which.
        decoder_parameters: the names of the parameters that ``decode`` depends on.
        chunk_size: pairs that go through a decoder other than the dot product, and the loss, at a time.
        name: how the model is called in messages.
        weight_decay: :math:`\lambda_p` of an L2 penalty :math:`\frac{\lambda_p}{2} \|\theta_p\|^2` for each parameter
            that has one, a part of Ω beside ``regularization``.
        dot_product: whether ``decode`` is the dot product, so that scores can be sparse matrix products.
        linear: whether ``encode`` is linear in the parameters, without a constant, and thus its own derivative.
        ranks: the processes that divide the examples among them; all of them ask for the same, in the same order.

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
    regularization: Callable[[Parameters], Tensor] | None
    num_users: int
    num_items: int
    node_parameters: Mapping[str, NodeKind] = field(default_factory=dict)
    decoder_parameters: tuple[str, ...] = ()
    chunk_size: int = 65536
    node_regularization: Callable[[Parameters], Tensor] | None = None
    name: str = "the model"
    weight_decay: Mapping[str, float] = field(default_factory=dict)
    dot_product: bool = False
    linear: bool = False
    ranks: Ranks = ALONE

    @property
    def num_nodes(self) -> int:
        """Users and items together."""
        return self.num_users + self.num_items

    def decoding(self, examples: Examples) -> Decoding:
        """Return how this rank's share of ``examples`` is decoded; patterns built for them are kept while they live."""
        known: dict[tuple[object, ...], DotProducts] = _patterns.setdefault(examples, {})
        key = (self.loss, self.num_users, self.num_items, self.ranks)
        if key in known:
            return known[key]
        share = examples if self.ranks.size == 1 else examples[self.ranks.share(len(examples))]
        if not self.dot_product or share.user.device.type not in ("cpu", "cuda"):  # others lack sparse products
            return Gathered(self.decode, self.loss, share, self.num_users, self.chunk_size)
        if examples.candidates is not None:
            return AllCandidates(self.loss, share, self.num_users, self.chunk_size)
        known[key] = DotProducts(self.loss, share, self.num_users, self.num_items)
        return known[key]

    def decoder_part(self, parameters: Parameters) -> Parameters:
        """Return the parameters that the decoder depends on."""
        return {name: parameters[name] for name in self.decoder_parameters}

    def penalty(self, parameters: Parameters, examples: Sequence[Examples]) -> Tensor:
        """Return Ω and the nodes' own penalties with their weights in ``examples``, a scalar."""
        total = l2_penalty(parameters, self.weight_decay)
        own = self._own_penalty(examples)
        return total if own is None else total + own(parameters)

    def penalty_gradient(self, parameters: Parameters, examples: Sequence[Examples]) -> Parameters:
        """Return the gradient of :meth:`penalty`."""
        own = self._own_penalty(examples)
        slope = {} if own is None else grad(own)(parameters)
        return self._with_decay(slope, parameters)

    def penalty_product(self, parameters: Parameters, tangent: Parameters, examples: Sequence[Examples]) -> Parameters:
        """Return the product of the Hessian of :meth:`penalty` with ``tangent``."""
        own = self._own_penalty(examples)
        product = {} if own is None else Derivative()(grad(own), (parameters,), (tangent,))[1]
        return self._with_decay(product, tangent)

    def _own_penalty(self, examples: Sequence[Examples]) -> Callable[[Parameters], Tensor] | None:
        """The penalty without weight decay, whose derivatives need no autograd."""
        weights = [part.presence for part in examples if part.presence is not None]
        of_nodes = self.node_regularization if weights else None
        if of_nodes is None:
            return self.regularization

        def penalty(parameters: Parameters) -> Tensor:
            own = of_nodes(parameters)
            total = own @ torch.stack(weights).sum(0).to(own.dtype)
            return total if self.regularization is None else total + self.regularization(parameters)

        return penalty

    def _with_decay(self, linear: Parameters, at: Parameters) -> Parameters:
        decayed = {name: decay * at[name] for name, decay in self.weight_decay.items() if decay and name in at}
        return {
            name: linear[name] + decayed[name] if name in linear and name in decayed else tensor
            for name, tensor in (linear | decayed).items()
        }

    def decoded(
        self, h: Tensor, decoder: Parameters, examples: Sequence[Examples]
    ) -> tuple[Tensor, Tensor, Parameters]:
        """Return the data's part of the risk (float64) and its gradients in ``h [N, d]`` and in the decoder."""
        # One at a time: there may be many parts, and each has a gradient of the model's size.
        found = (self.decoding(part).value_and_gradient(h, decoder) for part in examples)
        value, gradient, total = next(found)
        for risk, rows, of_decoder in found:
            value, gradient = value + risk, gradient.add_(rows)
            total = {name: tensor + of_decoder[name] for name, tensor in total.items()}
        return value, gradient, total

    def over_ranks(self, part: Parameters) -> Parameters:
        """Return the sum over ranks of what each has found in its share.

        The sum of the encoders' pullbacks is the pullback of the sum. But it is the same to the bit on all ranks,
        whatever an encoder rounds.
        """
        return dict(zip(part, self.ranks.sum(*part.values()), strict=True))

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
        risk, rows, decoder = self.decoded(h, self.decoder_part(parameters), examples)
        (gradient,) = pullback(rows)
        gradient = self.over_ranks({name: g + decoder[name] if name in decoder else g for name, g in gradient.items()})
        (risk,) = self.ranks.sum(risk)
        if regularize:
            omega = self.penalty_gradient(parameters, examples)
            gradient = {name: g + omega[name] if name in omega else g for name, g in gradient.items()}
            risk += self.penalty(parameters, examples)
        value = float(risk)
        if not math.isfinite(value):
            raise ObjectiveError(
                f"the training objective of {self.name} is {value} at these parameters; wanted a finite number: "
                f"check weights and data for NaN, and the loss '{self.loss.name}' for scores it has no value for."
            )
        return value, gradient

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
                wrong shape, the encoder is said to be linear and is not, the scores do not depend on the parameters, or
                the loss has no meaning for the targets, is not finite, or has no curvature (hinge), so that the Newton
                system would be Ω alone.
        """
        self.loss.check_targets(examples.target)
        chunk = next(chunks(examples, self.num_users, self.chunk_size))

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
        h, scores, risk, _ = first
        if self.linear and bool(torch.isfinite(h).all()):  # else the objective's value says so
            self._check_linear(parameters, edge_index, h)
        if not torch.isfinite(scores).all():
            return  # the objective itself is not finite, which its value says
        if not torch.isfinite(risk):
            raise ObjectiveError(
                f"the loss '{self.loss.name}' of {self.name} is {float(risk)} for finite scores from "
                f"{float(scores.min()):.3g} to {float(scores.max()):.3g}; wanted a number: check its formula for "
                "logarithms and divisions, or choose loss='bce' or 'bpr'."
            )
        self.loss.check_negatives(scores.view(-1, chunk.columns))
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

    def _check_linear(self, parameters: Parameters, edge_index: Tensor, h: Tensor) -> None:
        """Refuse an encoder, ``h [N, d]`` at the parameters, whose answer to a sum is not the sum of its answers."""
        others = {name: tensor.flip(0) for name, tensor in parameters.items()}
        both = {name: tensor + others[name] for name, tensor in parameters.items()}
        with torch.no_grad():
            wanted, got = h + self.encode(others, edge_index), self.encode(both, edge_index)
        if not torch.allclose(got, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max())):
            raise ObjectiveError(
                f"{self.name} declares layer_weights and its encode is not linear in its parameters; wanted the sum of "
                "these multiples of one table, propagated once, twice and so on: correct it, or declare none."
            )

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


def _alternating(like: Tensor) -> Tensor:
    # A pairwise loss does not change when all scores move together; probe a direction in which they move apart.
    signs = torch.ones_like(like)
    signs[1::2] = -1.0
    return signs
