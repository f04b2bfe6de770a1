r"""Curvature of the risk as matrix-vector products.

Both operators are built at fixed parameters on one graph and set of examples, and multiply a vector ``[P]`` (the
parameters' dict raveled) at the cost of one forward derivative and one backward pass of the encoder, whatever the
number of interactions. What decoding keeps between products is said in :mod:`lightning_ifru.decoding`.

Source: Martens, *New insights and perspectives on the natural gradient method*, JMLR 21, 2020; Pearlmutter, *Fast
exact multiplication by the Hessian*, 1994.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import vjp

from lightning_ifru.derivatives import Derivative
from lightning_ifru.examples import Examples
from lightning_ifru.objective import Objective
from lightning_ifru.parameters import Parameters, ravel, unravel


class Curvature:
    """A symmetric matrix ``C [P, P]`` of the risk at ``parameters``, given as a product.

    Args:
        objective: the risk.
        parameters: where the curvature is taken.
        edge_index: the graph.
        examples: the weighted examples.
    """

    _exact: bool

    def __init__(
        self, objective: Objective, parameters: Parameters, edge_index: Tensor, examples: Sequence[Examples]
    ) -> None:
        self.objective = objective
        self.parameters = parameters
        self.edge_index = edge_index
        self.examples = examples
        # The encoder's own autograd graph holds tensors of the model's size; it is built once and used by every
        # product.
        self._h, self._pullback = vjp(self._encode, parameters)
        self._decoder = objective.decoder_part(parameters)
        self._bends = [
            objective.decoding(part).bend(self._h, self._decoder, exact=self._exact) for part in self.examples
        ]
        self._derivative = Derivative()

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply ``vector [P]``."""
        tangent = unravel(vector, self.parameters)
        if self.objective.linear:  # forward mode would also encode the parameters, whose h is known
            h_tangent = self._encode(tangent)
        else:
            _, h_tangent = self._derivative(self._encode, (self.parameters,), (tangent,))
        decoder_tangent = {name: tangent[name] for name in self._decoder}
        found = (bend(h_tangent, decoder_tangent) for bend in self._bends)
        rows, decoder = next(found)
        for part, of_decoder in found:
            rows = rows.add_(part)
            decoder = {name: tensor + of_decoder[name] for name, tensor in decoder.items()}
        product = self._encoder_product(tangent, rows)
        for name, tensor in decoder.items():
            product[name] = product[name] + tensor
        product = self.objective.over_ranks(product)
        for name, tensor in self.objective.penalty_product(self.parameters, tangent, self.examples).items():
            product[name] = product[name] + tensor
        return ravel(product)

    def _encode(self, parameters: Parameters) -> Tensor:
        return self.objective.encode(parameters, self.edge_index)

    def _encoder_product(self, tangent: Parameters, rows: Tensor) -> Parameters:
        """Carry a product in the node rows back to the parameters."""
        (encoder,) = self._pullback(rows)
        return dict(encoder)


class GaussNewton(Curvature):
    r"""The Gauss-Newton matrix :math:`J_s^\top\, \nabla_s^2 \ell\, J_s + \nabla^2\Omega` in the scores :math:`s`.

    Positive semi-definite for every loss that is convex in the scores; it leaves out how decoder and encoder bend.
    """

    _exact = False


class Hessian(Curvature):
    r"""The Hessian :math:`\nabla^2 J`, exact, by forward-over-reverse derivatives; indefinite in general."""

    _exact = True

    def __init__(
        self, objective: Objective, parameters: Parameters, edge_index: Tensor, examples: Sequence[Examples]
    ) -> None:
        super().__init__(objective, parameters, edge_index, examples)
        self._slope = None if objective.linear else objective.decoded(self._h, self._decoder, examples)[1]

    def _encoder_product(self, tangent: Parameters, rows: Tensor) -> Parameters:
        if self._slope is None:  # an encoder that does not bend
            return super()._encoder_product(tangent, rows)

        def pull(parameters: Parameters, slope: Tensor) -> Parameters:
            return vjp(self._encode, parameters)[1](slope)[0]

        return dict(self._derivative(pull, (self.parameters, self._slope), (tangent, rows))[1])
