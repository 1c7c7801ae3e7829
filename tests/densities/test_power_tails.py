"""Densities with integrable poles at the ends of their supports, most of whose mass is nearer than float64 resolves."""

from math import inf

import mpmath
import pytest
from mpmath import mpf
from scipy import stats

from kullback import families as f
from kullback.densities.from_families import as_density
from kullback.densities.nodes import line_nodes, mean_of
from kullback.fit.forward import fit_forward
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise
from kullback.measure import measure


def beta_to_laplace(a, b, loc, scale):
    """KL(Beta(a, b) || Laplace(loc, scale)) for 0 < loc < 1, from moments and incomplete beta functions."""
    with mpmath.workdps(40):
        a, b, loc, scale = map(mpf, (a, b, loc, scale))
        log_x, log_1_minus_x = (mpmath.digamma(c) - mpmath.digamma(a + b) for c in (a, b))
        below, first = (mpmath.betainc(c, b, 0, loc, regularized=True) for c in (a, a + 1))
        mean = a / (a + b)
        deviation = loc * below - mean * first + mean * (1 - first) - loc * (1 - below)
        negentropy = (a - 1) * log_x + (b - 1) * log_1_minus_x - mpmath.log(mpmath.beta(a, b))
        return float(negentropy + mpmath.log(2 * scale) + deviation / scale)


@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (1e-3, 2e-3), (1e-2, 1e-3), (0.1, 0.2), (1e-2, 3.0)])
def test_beta_distributions_with_poles(a, b):
    p = f.Beta(concentration1=a, concentration0=b)
    estimate = measure(p, f.Laplace(loc=0.4, scale=0.5))
    truth = beta_to_laplace(a, b, 0.4, 0.5)
    assert estimate.value == pytest.approx(truth, rel=1e-9)
    assert abs(estimate.value - truth) <= estimate.error + 1e-14 * truth
    assert estimate.status == "bounded"
    by_quadrature = measure(p, f.Normal(loc=0.4, scale=0.5), method="quadrature")
    assert by_quadrature.value == pytest.approx(measure(p, f.Normal(loc=0.4, scale=0.5)).value, rel=1e-9)


def test_an_end_that_float64_does_not_resolve_gives_no_exact_infinity():
    estimate = measure(stats.beta(1e-3, 1e-3, loc=3.0), f.Laplace(loc=3.5, scale=0.5))
    assert estimate.status == "unreliable"


@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (1e-3, 2e-3), (3e-2, 1e-3)])
def test_moments_of_beta_distributions_with_poles(a, b):
    density = as_density(f.Beta(concentration1=a, concentration0=b))
    mean = mean_of(density, line_nodes(density, density))
    assert mean(lambda x: x) == pytest.approx(a / (a + b), rel=1e-8)
    assert mean(lambda x: x * x) == pytest.approx(a * (a + 1) / ((a + b) * (a + b + 1)), rel=1e-8)


def test_a_location_in_the_unresolved_pole_does_not_seem_to_have_a_smaller_kl():
    # Half of the mass is nearer to the ends than 1e-300. A quadrature that misses a part gives 571 instead of 992.
    target = f.Beta(concentration1=1e-3, concentration0=1e-3)
    density = as_density(target)
    assert density is not None
    unresolved = f.Laplace(loc=3.7e-300, scale=0.5)
    assert measure(target, unresolved).status == "unreliable"
    objective = univariate_objective(parametrise(f.Laplace, unresolved, {}), density, alpha=1.0)
    vector = parametrise(f.Laplace, unresolved, {}).to_vector(unresolved)
    assert objective.quadratic_model(vector).value == inf


@pytest.mark.slow
def test_fits_to_a_target_with_poles_minimise_a_finite_kl():
    target = f.Beta(concentration1=1e-3, concentration0=1e-3)
    fit = fit_forward(f.Laplace, target=target)
    assert fit.converged
    assert fit.estimate.status == "bounded"
    # By symmetry the location is 1/2, and the best scale is the mean of |x - 1/2|. The KL of a location 1/2 + d exceeds
    # its minimum of 992 by 4e-3 d^2, so that its rounding of 1e-12 hides deviations up to 2e-5.
    assert fit.distribution.loc == pytest.approx(0.5, abs=5e-5)
    with mpmath.workdps(30):
        below = [mpmath.betainc(c, mpf(1e-3), 0, mpf(0.5), regularized=True) for c in (mpf(1e-3), 1 + mpf(1e-3))]
        scale = float(below[0] - below[1])  # E|x - 1/2| = 2 E max(1/2 - x, 0)
    assert fit.distribution.scale == pytest.approx(scale, rel=1e-5)
    assert fit.kl == pytest.approx(beta_to_laplace(1e-3, 1e-3, 0.5, scale), rel=1e-7)
