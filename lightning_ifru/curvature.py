r"""Curvature of the risk as matrix-vector products, interactions going through in chunks.

Both operators are built at fixed parameters on one graph and set of examples, and multiply a vector ``[P]`` (the
parameters' dict raveled) at the cost of one forward derivative and one backward pass of the encoder, whatever the
number of chunks. Nothing of the data's size is kept between products.

Source: Martens, *New insights and perspectives on the natural gradient method*, JMLR 21, 2020; Pearlmutter, *Fast
exact multiplication by the Hessian*, 1994.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import grad, vjp

from lightning_ifru.derivatives import Derivative
from lightning_ifru.objective import Chunk, Examples, Objective
from lightning_ifru.parameters import Parameters, ravel, unravel


class Curvature(ABC):
    """A symmetric matrix ``C [P, P]`` of the risk at ``parameters``, given as a product.

    Args:
        objective: the risk.
        parameters: where the curvature is taken.
        edge_index: the graph.
        examples: the weighted examples.
    """

    def __init__(
        self, objective: Objective, parameters: Parameters, edge_index: Tensor, examples: Sequence[Examples]
    ) -> None:
        self.objective = objective
        self.parameters = parameters
        self.edge_index = edge_index
        self.examples = examples
        # The encoder's own autograd graph holds tensors of the model's size; it is built once and used by every
        # product. The interactions' part is never kept.
        self._h, self._pullback = vjp(self._encode, parameters)
        self._decoder = objective.decoder_part(parameters)
        self._derivative = Derivative()

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply ``vector [P]``."""
        tangent = unravel(vector, self.parameters)
        data = self._data_product(tangent)
        slope = grad(lambda p: self.objective.penalty(p, self.examples))
        _, omega = self._derivative(slope, (self.parameters,), (tangent,))
        return ravel(data) + ravel(omega)

    def _encode(self, parameters: Parameters) -> Tensor:
        return self.objective.encode(parameters, self.edge_index)

    def _data_product(self, tangent: Parameters) -> Parameters:
        _, h_tangent = self._derivative(self._encode, (self.parameters,), (tangent,))
        decoder_tangent = {name: tangent[name] for name in self._decoder}
        gradient = torch.zeros_like(self._h)
        product = torch.zeros_like(self._h)
        decoder = {name: torch.zeros_like(tensor) for name, tensor in self._decoder.items()}
        for part in self.examples:
            for chunk in self.objective.chunks(part):
                index = (chunk.source, chunk.destination)
                rows = [self._h.index_select(0, i) for i in index]
                tangents = [h_tangent.index_select(0, i) for i in index]
                first, (d, *second) = self._chunk_product(chunk, rows, decoder_tangent, tangents)
                for i, g, p in zip(index, first, second, strict=True):
                    if g is not None:
                        gradient.index_add_(0, i, g)
                    product.index_add_(0, i, p)
                for name, tensor in d.items():
                    decoder[name] += tensor
        encoder = self._encoder_product(tangent, gradient, product)
        return {n: p + decoder[n] if n in decoder else p for n, p in encoder.items()}

    @abstractmethod
    def _chunk_product(
        self, chunk: Chunk, rows: list[Tensor], decoder_tangent: Parameters, tangents: list[Tensor]
    ) -> tuple[tuple[Tensor | None, Tensor | None], tuple[Parameters, Tensor, Tensor]]:
        """Return the chunk's gradient in its rows (if the encoder needs it) and the product in decoder and rows."""

    @abstractmethod
    def _encoder_product(self, tangent: Parameters, gradient: Tensor, product: Tensor) -> Parameters:
        """Carry a product in the node rows back to the parameters."""


class GaussNewton(Curvature):
    r"""The Gauss-Newton matrix :math:`J_s^\top\, \nabla_s^2 \ell\, J_s + \nabla^2\Omega` in the scores :math:`s`.

    Positive semi-definite for every loss that is convex in the scores; it leaves out how decoder and encoder bend.
    """

    def _chunk_product(
        self, chunk: Chunk, rows: list[Tensor], decoder_tangent: Parameters, tangents: list[Tensor]
    ) -> tuple[tuple[None, None], tuple[Parameters, Tensor, Tensor]]:
        def decode(decoder: Parameters, source: Tensor, destination: Tensor) -> Tensor:
            return self.objective.decode(decoder, source, destination)

        primals = (self._decoder, *rows)
        _, score_tangent = self._derivative(decode, primals, (decoder_tangent, *tangents))
        scores, pullback = vjp(decode, *primals)
        _, bent = self._derivative(grad(lambda s: chunk.risk(self.objective.loss, s)), (scores,), (score_tangent,))
        d, s, t = pullback(bent)
        return (None, None), (d, s, t)

    def _encoder_product(self, tangent: Parameters, gradient: Tensor, product: Tensor) -> Parameters:
        (encoder,) = self._pullback(product)
        return encoder


class Hessian(Curvature):
    r"""The Hessian :math:`\nabla^2 J`, exact, by forward-over-reverse derivatives; indefinite in general."""

    def _chunk_product(
        self, chunk: Chunk, rows: list[Tensor], decoder_tangent: Parameters, tangents: list[Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Parameters, Tensor, Tensor]]:
        first = grad(lambda *inputs: self.objective.chunk_risk(chunk, *inputs), argnums=(0, 1, 2))
        (_, s, t), product = self._derivative(first, (self._decoder, *rows), (decoder_tangent, *tangents))
        return (s, t), product

    def _encoder_product(self, tangent: Parameters, gradient: Tensor, product: Tensor) -> Parameters:
        def pull(parameters: Parameters, rows: Tensor) -> Parameters:
            return vjp(self._encode, parameters)[1](rows)[0]

        return self._derivative(pull, (self.parameters, gradient), (tangent, product))[1]
