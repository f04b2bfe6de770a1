"""The part of the risk that lies between representations and its value: decoder and loss, by chunks of pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from lightning_ifru.derivatives import Derivative
from lightning_ifru.examples import Chunk, Examples, chunks
from lightning_ifru.losses import Loss
from lightning_ifru.parameters import Parameters

Decode = Callable[[Parameters, Tensor, Tensor], Tensor]
#: Multiplies a derivative of the representations ``[N, d]`` and one of the decoder's parameters with the curvature.
Bend = Callable[[Tensor, Parameters], tuple[Tensor, Parameters]]


class Decoding(ABC):
    r"""The sum :math:`\sum_z w_z\, \ell(z)` over some examples, as a function of representations and decoder."""

    @abstractmethod
    def value_and_gradient(self, h: Tensor, decoder: Parameters) -> tuple[Tensor, Tensor, Parameters]:
        """Return the sum, a scalar in float64, and its gradients in ``h [N, d]`` and in the decoder's parameters."""

    @abstractmethod
    def bend(self, h: Tensor, decoder: Parameters, *, exact: bool) -> Bend:
        r"""Return products with the sum's curvature at ``h [N, d]`` and ``decoder``.

        With ``exact`` it is the Hessian, else the Gauss-Newton matrix :math:`J_s^\top\, \nabla_s^2 \ell\, J_s` in the
        scores :math:`s`.
        """


class Gathered(Decoding):
    """Any decoder: rows are gathered for a chunk of pairs at a time, and their derivatives scattered.

    Nothing of the data's size is kept.

    Args:
        decode: ``(parameters, source [B, d], destination [B, d]) -> scores [B]``.
        loss: the loss per example.
        examples: the examples.
        num_users: the offset of items among nodes.
        chunk_size: pairs of a chunk.
    """

    def __init__(self, decode: Decode, loss: Loss, examples: Examples, num_users: int, chunk_size: int) -> None:
        self._decode, self._loss, self._examples = decode, loss, examples
        self._num_users, self._chunk_size = num_users, chunk_size

    def _chunks(self) -> Iterator[Chunk]:
        return chunks(self._examples, self._num_users, self._chunk_size)

    def _risk(self, chunk: Chunk, decoder: Parameters, source: Tensor, destination: Tensor) -> Tensor:
        return chunk.risk(self._loss, self._decode(decoder, source, destination))

    def value_and_gradient(self, h: Tensor, decoder: Parameters) -> tuple[Tensor, Tensor, Parameters]:
        """Return the sum and its gradients; see :meth:`Decoding.value_and_gradient`."""
        value = torch.zeros((), dtype=torch.float64, device=h.device)
        gradient = torch.zeros_like(h)
        total = {name: torch.zeros_like(tensor) for name, tensor in decoder.items()}
        for chunk in self._chunks():
            (d, s, t), risk = grad_and_value(lambda *rows, c=chunk: self._risk(c, *rows), argnums=(0, 1, 2))(
                decoder, h.index_select(0, chunk.source), h.index_select(0, chunk.destination)
            )
            gradient.index_add_(0, chunk.source, s).index_add_(0, chunk.destination, t)
            for name, tensor in d.items():
                total[name] += tensor
            value += risk
        return value, gradient, total

    def bend(self, h: Tensor, decoder: Parameters, *, exact: bool) -> Bend:
        """Return products with the curvature; see :meth:`Decoding.bend`."""
        derivative = Derivative()
        of_chunk = self._hessian if exact else self._gauss_newton

        def product(h_tangent: Tensor, decoder_tangent: Parameters) -> tuple[Tensor, Parameters]:
            out = torch.zeros_like(h)
            total = {name: torch.zeros_like(tensor) for name, tensor in decoder.items()}
            for chunk in self._chunks():
                index = (chunk.source, chunk.destination)
                source, destination = (h.index_select(0, i) for i in index)
                primals = (decoder, source, destination)
                source, destination = (h_tangent.index_select(0, i) for i in index)
                tangents = (decoder_tangent, source, destination)
                d, s, t = of_chunk(derivative, chunk, primals, tangents)
                out.index_add_(0, chunk.source, s).index_add_(0, chunk.destination, t)
                for name, tensor in d.items():
                    total[name] += tensor
            return out, total

        return product

    def _gauss_newton(
        self,
        derivative: Derivative,
        chunk: Chunk,
        primals: tuple[Parameters, Tensor, Tensor],
        tangents: tuple[Parameters, Tensor, Tensor],
    ) -> tuple[Parameters, Tensor, Tensor]:
        _, score_tangent = derivative(self._decode, primals, tangents)
        scores, pullback = vjp(self._decode, *primals)[:2]

        def risk(some: Tensor) -> Tensor:
            return chunk.risk(self._loss, some)

        _, bent = derivative(grad(risk), (scores,), (score_tangent,))
        d, s, t = pullback(bent)
        return d, s, t

    def _hessian(
        self,
        derivative: Derivative,
        chunk: Chunk,
        primals: tuple[Parameters, Tensor, Tensor],
        tangents: tuple[Parameters, Tensor, Tensor],
    ) -> tuple[Parameters, Tensor, Tensor]:
        def risk(parameters: Parameters, source: Tensor, destination: Tensor) -> Tensor:
            return self._risk(chunk, parameters, source, destination)

        first = grad(risk, argnums=(0, 1, 2))
        _, product = derivative(first, primals, tangents)
        d, s, t = product
        return d, s, t
