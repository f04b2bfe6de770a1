r"""Preconditioned conjugate gradients for one matrix under several dampings, and a :class:`Solution` for each.

A solver knows a matrix only as a product with a vector; it never knows whether that is a Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    r"""What a solve returned and how it went.

    Attributes:
        value: the last iterate ``[P]`` up to which the matrix was seen to be positive definite.
        status: how the solve ended; ``value`` solves the system only if it is ``CONVERGED``.
        iterations: the number of search directions used.
        residual: :math:`\|b - (A + \sigma M) x\| / \|b\|` in the norm of :math:`M^{-1}`, by the recurrence.
    """

    value: Tensor
    status: Status
    iterations: int
    residual: float


class _Shifted:
    """The iterate for one shift: the LU factors of Lanczos' tridiagonal matrix plus the shift, row by row."""

    def __init__(self, shift: float, like: Tensor, norm: float) -> None:
        self.shift = shift
        self.x = torch.zeros_like(like)
        self.direction = torch.zeros_like(like)
        self.pivot = 1.0
        self.zeta = norm
        self.iterations = 0
        self.residual = 1.0
        self.status: Status | None = None

    def advance(self, v: Tensor, alpha: float, beta: float, beta_next: float, norm: float) -> None:
        factor = beta / self.pivot if self.iterations else 0.0
        pivot = alpha + self.shift - factor * beta
        rounding = 4 * torch.finfo(v.dtype).eps * (abs(alpha + self.shift) + abs(factor * beta))
        # The pivot is the curvature along the direction that conjugate gradients would now use.
        if pivot < -rounding:
            self.status = Status.NEGATIVE_CURVATURE
        elif not pivot > rounding:
            self.status = Status.BREAKDOWN
        if self.status is not None:
            return
        if self.iterations:
            self.zeta *= -factor
        self.direction.mul_(-beta).add_(v).div_(pivot)
        self.x.add_(self.direction, alpha=self.zeta)
        self.pivot = pivot
        self.iterations += 1
        self.residual = beta_next * abs(self.zeta) / pivot / norm


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    shifts: Sequence[float] = (0.0,),
    preconditioner: Tensor | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> list[Solution]:
    r"""Solve :math:`(A + \sigma M)\, x = b` for a symmetric :math:`A` and all shifts :math:`\sigma` at once.

    With the diagonal :math:`M` as preconditioner all shifts share one Krylov space, so that a whole ladder of dampings
    costs the products of its smallest. The recurrence is conjugate gradients in Lanczos' form. Where
    :math:`A + \sigma M` turns out not to be positive definite along a search direction, that shift stops *before*
    using the direction and says so: conjugate gradients on an indefinite matrix return numbers without a meaning.

    Args:
        operator: ``v [P] -> A v [P]``.
        rhs: the right-hand side ``b [P]``.
        shifts: the dampings, in units of ``M``.
        preconditioner: the diagonal ``[P]`` of ``M``, positive; the identity if ``None``.
        tolerance: a shift has converged when its residual is at most ``tolerance`` times that of ``x = 0``.
        max_iterations: products with ``A`` at most.

    Returns:
        One :class:`Solution` for each shift, in order.

    Raises:
        SolverError: shapes that do not fit, values that are not finite, a preconditioner that is not positive.

    Source: Saad, *Iterative Methods for Sparse Linear Systems*, algorithm 6.17 (D-Lanczos).

    Example:
        >>> one, two = conjugate_gradient(lambda v: 2 * v, torch.tensor([0.0, 4.0]), shifts=[0.0, 2.0])
        >>> one.value, two.value, one.status.value, one.iterations
        (tensor([0., 2.]), tensor([0., 1.]), 'converged', 1)
    """
    _check(rhs, preconditioner)
    scale = None if preconditioner is None else preconditioner.rsqrt()
    v = rhs.clone() if scale is None else rhs * scale
    norm = float(torch.linalg.vector_norm(v))
    if norm == 0.0:
        return [Solution(torch.zeros_like(rhs), Status.CONVERGED, 0, 0.0) for _ in shifts]

    states = [_Shifted(shift, v, norm) for shift in shifts]
    v.div_(norm)
    previous, beta = torch.zeros_like(v), 0.0
    for _ in range(max_iterations):
        active = [state for state in states if state.status is None]
        if not active:
            break
        w = operator(v) if scale is None else operator(v * scale).mul_(scale)
        alpha = float(torch.dot(v, w))
        w = w.sub(v, alpha=alpha).sub_(previous, alpha=beta)
        beta_next = float(torch.linalg.vector_norm(w))
        for state in active:
            state.advance(v, alpha, beta, beta_next, norm)
            if state.status is None and state.residual <= tolerance:
                state.status = Status.CONVERGED
        if beta_next == 0.0:
            break
        previous, v, beta = v, w.div_(beta_next), beta_next
    return [
        Solution(
            state.x if scale is None else state.x * scale,
            state.status or (Status.CONVERGED if state.residual <= tolerance else Status.MAX_ITERATIONS),
            state.iterations,
            state.residual,
        )
        for state in states
    ]


def _check(rhs: Tensor, preconditioner: Tensor | None) -> None:
    if rhs.dim() != 1 or not torch.isfinite(rhs).all():
        raise SolverError(
            f"conjugate_gradient got a right-hand side of shape {tuple(rhs.shape)} with "
            f"{int((~torch.isfinite(rhs)).sum())} values that are not finite; pass one finite vector."
        )
    if preconditioner is None:
        return
    if preconditioner.shape != rhs.shape:
        raise SolverError(
            f"conjugate_gradient got a preconditioner of shape {tuple(preconditioner.shape)} for a right-hand side of "
            f"shape {tuple(rhs.shape)}; pass the same shape."
        )
    if not bool((preconditioner > 0).all()):
        raise SolverError(
            f"conjugate_gradient got a preconditioner with smallest entry {float(preconditioner.min()):.3g}; "
            "every entry must be positive."
        )
