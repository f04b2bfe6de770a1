import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ifru.errors import SolverError
from lightning_ifru.solvers import KrylovSpace, Status, conjugate_gradient


def spectrum(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues, and a right-hand side with a share of each eigenvector."""
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    matrix = q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T
    return (matrix + matrix.T) / 2, q @ (1 + torch.rand(n, generator=g, dtype=torch.float64))


def diagonal(n, seed=0):
    return 0.3 + 2 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(a, b, m, tolerance, max_iterations):
    """Preconditioned conjugate gradients as in the textbooks: x, the curvatures met, the relative residuals."""
    x, r = np.zeros_like(b), b.copy()
    z = r / m
    p, rz = z.copy(), r @ z
    first, curvatures, residuals = rz, [], []
    for _ in range(max_iterations):
        curvature = p @ a @ p
        curvatures.append(curvature)
        if curvature <= 0:
            break
        alpha = rz / curvature
        x, r = x + alpha * p, r - alpha * (a @ p)
        z = r / m
        rz, old = r @ z, rz
        residuals.append(math.sqrt(rz / first))
        if residuals[-1] <= tolerance:
            break
        p = z + rz / old * p
    return x, curvatures, residuals


SHIFTS = (0.0, 0.01, 0.3, 5.0)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_shift_equals_the_dense_solution_and_takes_as_many_iterations_as_textbook_cg(seed, preconditioned):
    n = 150  # far more than the iterations, so that rounding does not tell Lanczos from conjugate gradients
    a, b = spectrum(np.geomspace(0.3, 3, n), seed)
    m = diagonal(n, seed) if preconditioned else torch.ones(n, dtype=torch.float64)
    solutions = conjugate_gradient(
        lambda v: a @ v,
        b,
        shifts=SHIFTS,
        preconditioner=m if preconditioned else None,
        tolerance=1e-7,
        max_iterations=200,
    )
    counts = []
    for shift, solution in zip(SHIFTS, solutions, strict=True):
        shifted = (a + shift * torch.diag(m)).numpy()
        assert solution.status is Status.CONVERGED
        exact = np.linalg.solve(shifted, b.numpy())
        np.testing.assert_allclose(solution.value.numpy(), exact, rtol=0, atol=1e-5 * np.linalg.norm(exact))
        iterate, _, residuals = textbook(shifted, b.numpy(), m.numpy(), 1e-7, 200)
        assert solution.iterations == len(residuals)
        assert solution.residual == pytest.approx(residuals[-1], rel=0.05)
        np.testing.assert_allclose(solution.value.numpy(), iterate, rtol=0, atol=1e-6 * np.linalg.norm(exact))
        r = b - torch.from_numpy(shifted) @ solution.value
        true = float((r * r / m).sum().sqrt() / (b * b / m).sum().sqrt())
        assert true == pytest.approx(solution.residual, rel=1e-3, abs=1e-9)
        assert true <= 1.1e-7
        counts.append(solution.iterations)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] > 3, "the shifts should differ in difficulty"


@pytest.mark.parametrize("iterations", [1, 2, 5, 9])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_iterates_are_those_of_scipy(iterations, preconditioned):
    n = 20
    a, b = spectrum(np.geomspace(1e-2, 1, n), 1)
    m = diagonal(n, 1) if preconditioned else torch.ones(n, dtype=torch.float64)
    (mine,) = conjugate_gradient(
        lambda v: a @ v, b, preconditioner=m if preconditioned else None, tolerance=1e-14, max_iterations=iterations
    )
    inverse = np.diag(1 / m.numpy()) if preconditioned else None
    theirs, info = scipy.sparse.linalg.cg(a.numpy(), b.numpy(), rtol=1e-14, maxiter=iterations, M=inverse)
    assert info == iterations, "SciPy should not have converged either"
    assert (mine.status, mine.iterations) == (Status.MAX_ITERATIONS, iterations)
    np.testing.assert_allclose(mine.value.numpy(), theirs, rtol=0, atol=1e-9 * np.linalg.norm(theirs))
    exact = np.linalg.solve(a.numpy(), b.numpy())
    assert np.linalg.norm(theirs - exact) > 1e-3 * np.linalg.norm(exact)


@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 9999),
    condition=st.floats(1, 1e3),
    shifts=st.lists(st.floats(0, 10), min_size=1, max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_on_any_positive_definite_matrix_every_shift_converges_to_the_dense_solution(n, seed, condition, shifts):
    a, b = spectrum(np.geomspace(1 / condition, 1, n), seed)
    m = diagonal(n, seed)
    solutions = conjugate_gradient(
        lambda v: a @ v, b, shifts=shifts, preconditioner=m, tolerance=1e-9, max_iterations=20 * n + 20
    )
    assert len(solutions) == len(shifts)
    for shift, solution in zip(shifts, solutions, strict=True):
        exact = torch.linalg.solve(a + shift * torch.diag(m), b)
        assert solution.status is Status.CONVERGED
        assert float((solution.value - exact).norm()) <= 1e-8 * 50 * condition * float(exact.norm())


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-6])
def test_the_tolerance_is_what_decides_convergence(tolerance):
    a, b = spectrum(np.geomspace(1e-1, 1, 80))
    (solution,) = conjugate_gradient(lambda v: a @ v, b, tolerance=tolerance, max_iterations=100)
    _, _, residuals = textbook(a.numpy(), b.numpy(), np.ones(80), tolerance, 100)
    assert solution.status is Status.CONVERGED
    assert solution.iterations == len(residuals)
    assert solution.residual == pytest.approx(residuals[-1], rel=1e-4)
    assert solution.residual <= tolerance < residuals[-2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preconditioned", [False, True])
def test_negative_curvature_is_reported_for_exactly_the_shifts_that_are_indefinite(seed, preconditioned):
    n = 12
    a, b = spectrum([-2.0, -0.3, *np.linspace(0.5, 3, n - 2)], seed)
    m = diagonal(n, seed) if preconditioned else torch.ones(n, dtype=torch.float64)
    least = float(torch.linalg.eigvalsh(a / m.sqrt()[:, None] / m.sqrt()[None, :])[0])
    assert least < 0
    shifts = [0.0, -0.3 * least, -0.95 * least, -1.05 * least, -2.0 * least]
    solutions = conjugate_gradient(
        lambda v: a @ v,
        b,
        shifts=shifts,
        preconditioner=m if preconditioned else None,
        tolerance=1e-10,
        max_iterations=60,
    )
    statuses = [s.status for s in solutions]
    assert statuses == [Status.NEGATIVE_CURVATURE] * 3 + [Status.CONVERGED] * 2
    for shift, solution in zip(shifts, solutions, strict=True):
        shifted = (a + shift * torch.diag(m)).numpy()
        iterate, curvatures, _ = textbook(shifted, b.numpy(), m.numpy(), 1e-10, 60)
        if solution.status is Status.NEGATIVE_CURVATURE:
            # It stops where textbook CG would first use a direction of negative curvature, and does not use it.
            assert curvatures[-1] < 0 < min(curvatures[:-1], default=1)
            assert solution.iterations == len(curvatures) - 1
            np.testing.assert_allclose(solution.value.numpy(), iterate, rtol=0, atol=1e-8)


def test_negative_curvature_along_the_first_direction_leaves_zero():
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    (solution,) = conjugate_gradient(lambda v: -v, b)
    assert (solution.status, solution.iterations) == (Status.NEGATIVE_CURVATURE, 0)
    assert not solution.value.any()


BREAKDOWNS = {
    "no curvature at all": torch.zeros_like,
    "no curvature along the second direction": lambda v: v * torch.tensor([1.0, 0.0], dtype=torch.float64),
    "a product that is not a number": lambda v: v * math.nan,
    "a product that is infinite": lambda v: v * math.inf,
}


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_breakdown_is_reported_with_a_finite_iterate(name):
    b = torch.tensor([1.0, 1.0], dtype=torch.float64)
    (solution,) = conjugate_gradient(BREAKDOWNS[name], b, max_iterations=10)
    assert solution.status is Status.BREAKDOWN
    assert torch.isfinite(solution.value).all()
    assert not solution.value.any() or ("second" in name and solution.value.tolist() == pytest.approx([2.0, 2.0]))


def test_a_shift_heals_the_breakdown_of_a_singular_matrix_and_only_its_own():
    b = torch.tensor([1.0, 1.0], dtype=torch.float64)
    d = torch.tensor([1.0, 0.0], dtype=torch.float64)
    broken, fine = conjugate_gradient(lambda v: d * v, b, shifts=[0.0, 0.5], tolerance=1e-12)
    assert broken.status is Status.BREAKDOWN
    assert fine.status is Status.CONVERGED
    torch.testing.assert_close(fine.value, b / (d + 0.5), rtol=1e-12, atol=0)


def test_a_consistent_singular_system_is_solved():
    d = torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64)
    b = torch.tensor([2.0, 6.0, 0.0], dtype=torch.float64)
    (solution,) = conjugate_gradient(lambda v: d * v, b, tolerance=1e-12)
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value, torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64))


def test_products_that_run_out_are_reported_for_the_shifts_not_yet_converged():
    a, b = spectrum(np.geomspace(1e-3, 1, 40))
    products = []
    slow, quick = conjugate_gradient(
        lambda v: (products.append(1), a @ v)[1],
        b,
        shifts=[0.0, 100.0],
        tolerance=1e-6,
        max_iterations=6,
    )
    assert (slow.status, slow.iterations) == (Status.MAX_ITERATIONS, 6)
    assert slow.residual > 1e-6
    assert quick.status is Status.CONVERGED
    assert quick.iterations < 6
    assert len(products) == 6, "one product an iteration, whatever the number of shifts"


def test_products_end_when_every_shift_has_ended():
    a, b = spectrum(np.linspace(1, 2, 30))
    products = []
    solutions = conjugate_gradient(
        lambda v: (products.append(1), a @ v)[1], b, shifts=[0.0, 9.0], tolerance=1e-3, max_iterations=100
    )
    assert len(products) == max(s.iterations for s in solutions) < 15


def test_a_right_hand_side_of_zero_is_solved_by_zero_without_a_product():
    def never(v):
        raise AssertionError

    for solution in conjugate_gradient(never, torch.zeros(3), shifts=[0.0, 1.0]):
        assert (solution.status, solution.iterations, solution.residual) == (Status.CONVERGED, 0, 0.0)
        assert solution.value.tolist() == [0.0] * 3


def test_the_arguments_are_left_as_they_were():
    a, b = spectrum([1.0, 2.0, 3.0])
    m = diagonal(3)
    copies = b.clone(), m.clone()
    conjugate_gradient(lambda v: a @ v, b, preconditioner=m)
    conjugate_gradient(lambda v: v, b)
    assert torch.equal(b, copies[0])
    assert torch.equal(m, copies[1])


REFUSALS = {
    "two dimensions": (torch.ones(2, 3), None, r"shape \(2, 3\) .* pass one finite vector"),
    "not finite": (torch.tensor([1.0, math.nan, math.inf]), None, "2 values that are not finite"),
    "other shape": (torch.ones(3), torch.ones(2), r"preconditioner of shape \(2,\) .* \(3,\); pass the same shape"),
    "zero entry": (torch.ones(2), torch.tensor([1.0, 0.0]), "smallest entry 0; every entry must be positive"),
    "negative entry": (torch.ones(2), torch.tensor([1.0, -2.0]), "smallest entry -2; every entry must be positive"),
    "nan entry": (torch.ones(2), torch.tensor([1.0, math.nan]), "every entry must be positive"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_ill_posed_calls_are_refused_with_what_was_got_and_what_is_wanted(name):
    rhs, preconditioner, message = REFUSALS[name]
    with pytest.raises(SolverError, match=message):
        conjugate_gradient(lambda v: v, rhs, preconditioner=preconditioner)


def test_a_space_grows_only_as_far_as_a_shift_asks_for():
    a = torch.diag(torch.logspace(-3, 1, 40, dtype=torch.float64))
    b = torch.ones(40, dtype=torch.float64)
    space = KrylovSpace(lambda v: a @ v, b, tolerance=1e-10, max_iterations=200)
    quick = space.solve(10.0)
    few = space.products
    slow = space.solve(0.1)
    assert 2 < few == quick.iterations < slow.iterations == space.products
    again = space.solve(10.0)
    assert space.products == slow.iterations
    assert torch.equal(again.value, quick.value)
    for shift, solution in ((10.0, quick), (0.1, slow)):
        wanted = torch.linalg.solve(a + shift * torch.eye(40, dtype=torch.float64), b)
        torch.testing.assert_close(solution.value, wanted, rtol=0, atol=1e-8)
