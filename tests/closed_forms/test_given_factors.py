"""Multivariate normals given by a Cholesky factor keep it, also against another parametrisation and in float32."""

import jax
import mpmath
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl

POINTS = np.linspace(0, 1, 20)
KERNEL = np.exp(-((POINTS[:, None] - POINTS) ** 2) / (2 * 0.5**2)) + 1e-7 * np.eye(20)
FACTOR = np.linalg.cholesky(KERNEL)
LIBRARIES = {"numpy": np.float32, "torch": lambda x: torch.tensor(x, dtype=torch.float32), "jax": jax.numpy.float32}


def truth(matrix_p, matrix_q):
    with mpmath.workdps(50):
        p, q = mpmath.matrix(matrix_p.tolist()), mpmath.matrix(matrix_q.tolist())
        inverse = q**-1
        trace = sum((inverse * p)[i, i] for i in range(p.rows))
        return float((trace - p.rows + mpmath.log(mpmath.det(q) / mpmath.det(p))) / 2)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_a_given_factor_in_float32_against_each_parametrisation(library, name):
    array = LIBRARIES[library]
    loc, identity = array(np.zeros(20)), np.eye(20)
    p = f.MultivariateNormal(loc=loc, scale_tril=array(FACTOR))
    q = f.MultivariateNormal(loc=loc, **{name: array(identity)})
    rounded = np.float64(np.float32(FACTOR))
    expected = truth(rounded @ rounded.T, identity)
    assert expected == pytest.approx(116.388391, rel=1e-6)
    assert float(kl(p, q)) == pytest.approx(expected, rel=1e-6)
    # The other direction is of size 1e7 and amplifies rounding by the condition number of the factor, 1e4.
    assert float(kl(q, p)) == pytest.approx(truth(identity, rounded @ rounded.T), rel=1e-4)


@pytest.mark.parametrize("other", ["covariance_matrix", "precision_matrix"])
def test_gradients_through_a_factor_and_another_matrix(other):
    rng = np.random.default_rng(0)
    root, noise = rng.normal(size=(2, 3, 3))
    matrix = torch.tensor(noise @ noise.T + np.eye(3), requires_grad=True)
    factor = torch.tensor(np.linalg.cholesky(root @ root.T + np.eye(3)), requires_grad=True)
    loc = torch.tensor(rng.normal(size=3))
    p = f.MultivariateNormal(loc=loc, **{other: matrix})
    covariance = matrix if other == "covariance_matrix" else torch.linalg.inv(matrix)
    for swap in (False, True):
        pairs = [
            (p, f.MultivariateNormal(loc=0 * loc, scale_tril=factor)),
            (
                f.MultivariateNormal(loc=loc, covariance_matrix=(covariance + covariance.mT) / 2),
                f.MultivariateNormal(loc=0 * loc, covariance_matrix=factor.tril() @ factor.tril().mT),
            ),
        ]
        values = [kl(*(pair[::-1] if swap else pair)) for pair in pairs]
        torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=0)
        slopes = [torch.autograd.grad(value, [matrix, factor], retain_graph=True) for value in values]
        for of_matrix in slopes:
            assert all(torch.isfinite(slope).all() for slope in of_matrix)
        torch.testing.assert_close(slopes[0][1], slopes[1][1], rtol=1e-8, atol=1e-10)
        symmetric = [slope[0] + slope[0].mT for slope in slopes]
        torch.testing.assert_close(symmetric[0], symmetric[1], rtol=1e-8, atol=1e-10)
