"""Second derivatives of KL between distributions with matrices, also where eigenvalues of S2^-1 S1 coincide."""

import jax
import mpmath as mp
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl

EYE = np.eye(3)
FULL = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.2], [0.1, 0.2, 0.9]])
DIRECTION = np.array([[0.3, -0.2, 0.5], [-0.2, 0.7, 0.1], [0.5, 0.1, -0.4]])
# The matrices of p and q: equal, proportional, and without a common eigenvalue; near and far from each other.
CASES = [(EYE, EYE), (FULL, FULL), (EYE, 1.2 * EYE), (EYE, 2 * EYE), (FULL, 5 * FULL), (EYE, FULL), (FULL, EYE)]


def log_det_ratio(p, q):
    return mp.log(mp.det(p) / mp.det(q))


def of_normals(p, q):
    """2 KL of two normal distributions with equal means."""
    return mp.fsum((mp.inverse(q) * p)[i, i] for i in range(3)) - 3 - log_det_ratio(p, q)


def of_matrix_normals(p, q):
    """2 KL of two matrix normal distributions whose rows and columns have one covariance matrix."""
    trace = mp.fsum((mp.inverse(q) * p)[i, i] for i in range(3))
    return trace**2 - 9 - 6 * log_det_ratio(p, q)


FAMILIES = {
    "covariance": (lambda s: f.MultivariateNormal(loc=0 * s[0], covariance_matrix=s), of_normals, 0.5),
    "precision": (lambda s: f.MultivariateNormal(loc=0 * s[0], precision_matrix=s), lambda p, q: of_normals(q, p), 0.5),
    "low rank": (
        lambda s: f.LowRankMultivariateNormal(loc=0 * s[0], cov_factor=s, cov_diag=0 * s[0] + 1e-3),
        lambda p, q: of_normals(p * p.T + 1e-3 * mp.eye(3), q * q.T + 1e-3 * mp.eye(3)),
        0.5,
    ),
    "Wishart": (lambda s: f.Wishart(df=5.0, covariance_matrix=s), of_normals, 2.5),
    "InverseWishart": (lambda s: f.InverseWishart(df=5.0, scale_matrix=s), lambda p, q: of_normals(q, p), 2.5),
    "MatrixNormal": (
        lambda s: f.MatrixNormal(loc=0 * s, row_covariance=s, column_covariance=s),
        of_matrix_normals,
        0.5,
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # from forward mode
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_second_derivative_along_a_symmetric_direction(name, case):
    make, formula, factor = FAMILIES[name]
    p, q = CASES[case]
    with mp.workdps(40):
        of_p, of_q, step = (mp.matrix(array.tolist()) for array in (p, q, DIRECTION))
        truth = float(factor * mp.diff(lambda t: formula(of_p, of_q + t * step), 0, 2))
    p, q, step = (torch.tensor(array) for array in (p, q, DIRECTION))
    fixed = make(p)

    def along(t):
        return kl(fixed, make(q + t * step))

    t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(along(t), t, create_graph=True)
    [twice] = torch.autograd.grad(slope, t)
    assert float(twice) == pytest.approx(truth, rel=1e-9)
    assert float(torch.func.hessian(along)(torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(truth, rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # from forward mode
@pytest.mark.parametrize("name", FAMILIES)
def test_second_derivatives_can_be_mapped(name):
    make = FAMILIES[name][0]
    p, q = (torch.tensor(np.stack(side)) for side in zip(*CASES, strict=True))
    step = torch.tensor(DIRECTION)

    def second(p, q):
        return torch.func.hessian(lambda t: kl(make(p), make(q + t * step)))(torch.tensor(0.0, dtype=torch.float64))

    alone = [float(second(*case)) for case in zip(p, q, strict=True)]
    np.testing.assert_allclose(torch.func.vmap(second)(p, q), alone, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["covariance", "Wishart", "MatrixNormal"])
def test_hessian_of_equal_distributions_in_jax(name):
    make, formula, factor = FAMILIES[name]
    with mp.workdps(40):
        of_p, step = mp.matrix(EYE.tolist()), mp.matrix(DIRECTION.tolist())
        truth = float(factor * mp.diff(lambda t: formula(of_p, of_p + t * step), 0, 2))
    with jax.enable_x64(True):
        hessian = jax.hessian(lambda t: kl(make(jax.numpy.asarray(EYE)), make(jax.numpy.asarray(EYE) + t * DIRECTION)))
        assert float(hessian(0.0)) == pytest.approx(truth, rel=1e-9)
