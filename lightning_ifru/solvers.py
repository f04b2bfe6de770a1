"""Preconditioned conjugate gradients, and a :class:`Solution` that says what happened.

A solver knows a matrix only as a product with a vector; it never knows whether that is a Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from lightning_ifru.errors import SolverError


class Status(str, Enum):
    """How a solve ended."""

    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    NEGATIVE_CURVATURE = "negative_curvature"
    BREAKDOWN = "breakdown"


@dataclass(frozen=True)
class Solution:
    """What a solve returned and how it went.

    Attributes:
        value: the last iterate ``[P]`` on which the matrix was seen to be positive definite.
        status: how the solve ended; ``value`` solves the system only if it is ``CONVERGED``.
        iterations: the number of products with the matrix, the one for a non-zero start included.
        residual: ``‖b − A x‖₂ / ‖b‖₂`` by the solver's recurrence.
    """

    value: Tensor
    status: Status
    iterations: int
    residual: float


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    preconditioner: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
    on_iteration: Callable[[], None] | None = None,
) -> Solution:
    """Solve ``A x = b`` for a symmetric positive definite ``A`` given as a product.

    Where ``A`` turns out not to be positive definite along a search direction, the solve stops *before* using that
    direction and says so: conjugate gradients on an indefinite matrix return numbers without a meaning.

    Args:
        operator: ``v [P] -> A v [P]``.
        rhs: the right-hand side ``b [P]``.
        preconditioner: the diagonal ``[P]``, positive, of a matrix close to ``A``; the identity if ``None``.
        start: the first iterate ``[P]``; zero if ``None``.
        tolerance: stop when ``‖b − A x‖₂ ≤ tolerance · ‖b‖₂``.
        max_iterations: stop after so many search directions.
        on_iteration: called after each, for a progress bar.

    Raises:
        SolverError: shapes that do not fit, values that are not finite, a preconditioner that is not positive.

    Source: Hestenes and Stiefel, 1952; truncation as in Steihaug, 1983.

    Example:
        >>> solution = conjugate_gradient(lambda v: 2 * v, torch.tensor([2.0, 4.0]))
        >>> solution.value, solution.status.value, solution.iterations
        (tensor([1., 2.]), 'converged', 1)
    """
    _check(rhs, preconditioner, start)
    norm = float(torch.linalg.vector_norm(rhs))
    if norm == 0.0:
        return Solution(torch.zeros_like(rhs), Status.CONVERGED, 0, 0.0)

    iterations = 0
    if start is None:
        x, r = torch.zeros_like(rhs), rhs.clone()
    else:
        x, r = start.clone(), rhs - operator(start)
        iterations += 1
    relative = float(torch.linalg.vector_norm(r)) / norm
    direction: Tensor | None = None
    rz = 0.0
    for _ in range(max_iterations):
        if relative <= tolerance:
            return Solution(x, Status.CONVERGED, iterations, relative)
        z = r if preconditioner is None else r / preconditioner
        rz, previous = float(torch.dot(r, z)), rz
        direction = z.clone() if direction is None else z.add_(direction, alpha=rz / previous)
        product = operator(direction)
        iterations += 1
        curvature = float(torch.dot(direction, product))
        if not torch.isfinite(product).all() or curvature == 0.0 or rz == 0.0:
            return Solution(x, Status.BREAKDOWN, iterations, relative)
        if curvature < 0.0:
            return Solution(x, Status.NEGATIVE_CURVATURE, iterations, relative)
        x.add_(direction, alpha=rz / curvature)
        r.sub_(product, alpha=rz / curvature)
        relative = float(torch.linalg.vector_norm(r)) / norm
        if on_iteration is not None:
            on_iteration()
    status = Status.CONVERGED if relative <= tolerance else Status.MAX_ITERATIONS
    return Solution(x, status, iterations, relative)


def _check(rhs: Tensor, preconditioner: Tensor | None, start: Tensor | None) -> None:
    if rhs.dim() != 1 or not torch.isfinite(rhs).all():
        raise SolverError(
            f"conjugate_gradient got a right-hand side of shape {tuple(rhs.shape)} with "
            f"{int((~torch.isfinite(rhs)).sum())} values that are not finite; pass one finite vector."
        )
    for name, vector in (("preconditioner", preconditioner), ("start", start)):
        if vector is not None and vector.shape != rhs.shape:
            raise SolverError(
                f"conjugate_gradient got a {name} of shape {tuple(vector.shape)} for a right-hand side of shape "
                f"{tuple(rhs.shape)}; pass the same shape."
            )
    if preconditioner is not None and not bool((preconditioner > 0).all()):
        raise SolverError(
            f"conjugate_gradient got a preconditioner with smallest entry {float(preconditioner.min()):.3g}; "
            "every entry must be positive: raise the damping or leave the preconditioner out."
        )
