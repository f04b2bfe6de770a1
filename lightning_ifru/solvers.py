r"""Preconditioned conjugate gradients for one matrix under several dampings, and a :class:`Solution` for each.

A solver knows a matrix only as a product with a vector; it never knows whether that is a Hessian.
"""

from __future__ import annotations

import math
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


class KrylovSpace:
    r"""Solutions of :math:`(A + \sigma M)\, x = b` in one Krylov space, which grows as shifts :math:`\sigma` need it.

    With the diagonal :math:`M` as preconditioner all shifts share one space, so that a whole ladder of dampings costs
    the products of its smallest, and one whose smaller dampings nobody asks for does not cost theirs. The recurrence
    is conjugate gradients in Lanczos' form. Where :math:`A + \sigma M` turns out not to be positive definite along a
    search direction, that shift stops *before* using the direction and says so: conjugate gradients on an indefinite
    matrix return numbers without a meaning.

    One vector ``[P]`` is kept for each product; an iterate is put together from them when it is asked for.

    Args:
        operator: ``v [P] -> A v [P]``.
        rhs: the right-hand side ``b [P]``.
        preconditioner: the diagonal ``[P]`` of ``M``, positive; the identity if ``None``.
        tolerance: a shift has converged when its residual is at most ``tolerance`` times that of ``x = 0``.
        max_iterations: products with ``A`` at most.
        agree: ``scalar -> scalar``, called with every number that decides or scales, where several processes compute
            alike: gives all of them one of theirs. By default a number stays as it is.

    Attributes:
        finite: whether all products so far had finite values; a shift ends at one that has not.

    Raises:
        SolverError: shapes that do not fit, values that are not finite, a preconditioner that is not positive.

    Source: Saad, *Iterative Methods for Sparse Linear Systems*, algorithm 6.17 (D-Lanczos).

    Example:
        >>> space = KrylovSpace(lambda v: 2 * v, torch.tensor([0.0, 4.0]))
        >>> space.solve(2.0).value, space.products
        (tensor([0., 1.]), 1)
    """

    def __init__(
        self,
        operator: Callable[[Tensor], Tensor],
        rhs: Tensor,
        *,
        preconditioner: Tensor | None = None,
        tolerance: float = 1e-5,
        max_iterations: int = 100,
        agree: Callable[[Tensor], Tensor] = lambda number: number,
    ) -> None:
        _check(rhs, preconditioner)
        self._operator, self._tolerance, self._most, self._agree = operator, tolerance, max_iterations, agree
        self._scale = None if preconditioner is None else preconditioner.rsqrt()
        start = rhs if self._scale is None else rhs * self._scale
        norm = agree(torch.linalg.vector_norm(start))
        self._norm, self._eps = float(norm), torch.finfo(rhs.dtype).eps
        self._basis = [start / norm] if self._norm else [torch.zeros_like(rhs)]
        self._beta = norm.new_zeros(())
        self.finite = True
        # Lanczos' tridiagonal matrix, row by row: its diagonal and what follows it.
        self._rows: list[tuple[float, float]] = []

    @property
    def products(self) -> int:
        """Products with ``A`` so far."""
        return len(self._rows)

    def solve(self, shift: float) -> Solution:
        """Return the solution for a shift, in units of ``M``, after as many products as it needs and are allowed."""
        if self._norm == 0.0:
            return Solution(self._basis[0], Status.CONVERGED, 0, 0.0)
        state = _Shifted(shift, self._eps)
        while state.status is None:
            if state.iterations == len(self._rows) and not self._grow():
                break
            before = self._rows[state.iterations - 1][1] if state.iterations else 0.0
            state.advance(*self._rows[state.iterations], before)
            if state.status is None and state.residual <= self._tolerance:
                state.status = Status.CONVERGED
        value = torch.zeros_like(self._basis[0])
        for coefficient, vector in zip(state.coefficients(), self._basis, strict=False):
            value.add_(vector, alpha=self._norm * coefficient)
        if self._scale is not None:
            value.mul_(self._scale)
        return Solution(value, state.status or Status.MAX_ITERATIONS, state.iterations, state.residual)

    def _grow(self) -> bool:
        """Multiply once more; a few times on an accelerator, which is then not waited for after each product."""
        at_once = 1 if self._basis[0].device.type == "cpu" else 4
        rows: list[Tensor] = []
        for _ in range(min(at_once, self._most - len(self._rows))):
            v = self._basis[-1]
            w = self._operator(v) if self._scale is None else self._operator(v * self._scale).mul_(self._scale)
            alpha = self._agree(torch.dot(v, w))
            w = torch.addcmul(w, v, alpha, value=-1)
            if len(self._basis) > 1:
                w.addcmul_(self._basis[-2], self._beta, value=-1)
            self._beta = self._agree(torch.linalg.vector_norm(w))
            self._basis.append(w.div_(self._beta.clamp(min=torch.finfo(w.dtype).tiny)))
            rows += [alpha, self._beta]
        if not rows or (self._rows and self._rows[-1][1] == 0.0):
            return False
        values = torch.stack(rows).tolist()
        self.finite = self.finite and all(map(math.isfinite, values))
        for alpha, beta in zip(values[::2], values[1::2], strict=True):
            self._rows.append((alpha, beta))
            if beta == 0.0:  # the space is all there is
                break
        return True


class _Shifted:
    """The recurrence for one shift: the LU factors of Lanczos' tridiagonal matrix plus the shift, row by row."""

    def __init__(self, shift: float, eps: float) -> None:
        self.iterations, self.residual = 0, 1.0
        self.status: Status | None = None
        self._shift, self._eps = shift, eps
        self._rows: list[tuple[float, float, float]] = []

    def advance(self, alpha: float, beta_next: float, beta: float) -> None:
        pivot, zeta = alpha + self._shift, 1.0
        rounding = abs(pivot)
        if self._rows:
            above, _, last = self._rows[-1]
            factor = beta / above
            pivot -= factor * beta
            zeta = -factor * last
            rounding += abs(factor * beta)
        rounding *= 4 * self._eps
        # The pivot is the curvature along the direction that conjugate gradients would now use.
        if pivot < -rounding:
            self.status = Status.NEGATIVE_CURVATURE
        elif not pivot > rounding:
            self.status = Status.BREAKDOWN
        else:
            self._rows.append((pivot, beta_next, zeta))
            self.iterations += 1
            self.residual = beta_next * abs(zeta) / pivot

    def coefficients(self) -> list[float]:
        """The iterate in terms of Lanczos' vectors, for a right-hand side of norm 1."""
        found = list[float]()
        for pivot, beta_next, zeta in reversed(self._rows):
            found.append((zeta - (beta_next * found[-1] if found else 0.0)) / pivot)
        return found[::-1]


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    shifts: Sequence[float] = (0.0,),
    preconditioner: Tensor | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> list[Solution]:
    r"""Solve :math:`(A + \sigma M)\, x = b` for a symmetric :math:`A` and all shifts :math:`\sigma`.

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
        SolverError: see :class:`KrylovSpace`, in which they are found.

    Example:
        >>> one, two = conjugate_gradient(lambda v: 2 * v, torch.tensor([0.0, 4.0]), shifts=[0.0, 2.0])
        >>> one.value, two.value, one.status.value, one.iterations
        (tensor([0., 2.]), tensor([0., 1.]), 'converged', 1)
    """
    space = KrylovSpace(
        operator, rhs, preconditioner=preconditioner, tolerance=tolerance, max_iterations=max_iterations
    )
    return [space.solve(shift) for shift in shifts]


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
