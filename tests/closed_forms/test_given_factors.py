"""Multivariate normals given by a Cholesky factor keep it, also against another parametrisation and in float32."""

import jax
import mpmath
import numpy as np
import numpyro.distributions as numpyro
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl
from kullback.errors import ParameterError

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


@pytest.mark.slow
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


def as_float32_jax(x):
    return jax.numpy.asarray(x, dtype=jax.numpy.float32)


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["family", "torch", "numpyro"])
def test_wishart_with_a_given_factor_in_float32(origin):
    # For equal df, KL is df times KL of the multivariate normals with mean 0.
    rounded = np.float64(np.float32(FACTOR))
    expected = 25 * truth(rounded @ rounded.T, np.eye(20))
    factor, identity = LIBRARIES["torch"](FACTOR), torch.eye(20)
    pairs = {
        "family": lambda: (
            f.Wishart(df=25.0, scale_tril=np.float32(FACTOR)),
            f.Wishart(df=25.0, covariance_matrix=np.float32(np.eye(20))),
        ),
        "torch": lambda: (
            torch.distributions.Wishart(torch.tensor(25.0), scale_tril=factor),
            torch.distributions.Wishart(torch.tensor(25.0), covariance_matrix=identity),
        ),
        "numpyro": lambda: (
            numpyro.Wishart(25.0, scale_tril=as_float32_jax(FACTOR)),
            numpyro.Wishart(25.0, scale_matrix=as_float32_jax(np.eye(20))),
        ),
    }
    assert float(kl(*pairs[origin]())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_matrix_normal_with_given_factors_in_float32():
    loc, identity = as_float32_jax(np.zeros((20, 3))), as_float32_jax(np.eye(20))
    p = numpyro.MatrixNormal(loc, as_float32_jax(FACTOR), as_float32_jax(np.eye(3)))
    q = f.MatrixNormal(loc=loc, row_covariance=identity, column_covariance=as_float32_jax(np.eye(3)))
    rounded = np.float64(np.float32(FACTOR))
    assert float(kl(p, q)) == pytest.approx(3 * truth(rounded @ rounded.T, np.eye(20)), rel=1e-5)


BAD_FACTORS = [[[1.0, 5.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]]


@pytest.mark.parametrize("factor", BAD_FACTORS)
def test_an_invalid_factor_is_refused(factor):
    identity, loc = np.eye(2), np.zeros((2, 2))
    pairs = [
        (f.Wishart(df=3.0, scale_tril=factor), f.Wishart(df=3.0, covariance_matrix=identity)),
        (
            f.MatrixNormal(loc=loc, row_scale_tril=factor, column_covariance=identity),
            f.MatrixNormal(loc=loc, row_covariance=identity, column_covariance=identity),
        ),
        (
            f.MatrixNormal(loc=loc, row_covariance=identity, column_scale_tril=factor),
            f.MatrixNormal(loc=loc, row_covariance=identity, column_covariance=identity),
        ),
    ]
    for pair in pairs:
        for sides in (pair, pair[::-1]):
            with pytest.raises(ParameterError, match="scale_tril to be lower triangular with a positive diagonal"):
                kl(*sides)


def test_a_matrix_and_its_factor_together_are_refused():
    with pytest.raises(ParameterError, match="exactly one of covariance_matrix, scale_tril"):
        f.Wishart(df=3.0, covariance_matrix=np.eye(2), scale_tril=np.eye(2))
    with pytest.raises(ParameterError, match="exactly one of row_covariance, row_scale_tril"):
        f.MatrixNormal(loc=np.zeros((2, 2)), column_covariance=np.eye(2))
