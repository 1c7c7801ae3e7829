"""Tails in which a density of another library underflows before the integrand is negligible."""

from math import inf

import mpmath
import numpy as np
import pytest
from mpmath import mpf
from scipy import stats

from kullback.measure import measure


def gamma_to_inverse_weibull(k, scale, a, other):
    """KL(Gamma(k, scale) || Frechet(a, other)) by moments; `inf` where E[x^-a] is infinite."""
    if k <= a:
        return inf
    with mpmath.workdps(30):
        k, scale, a, other = map(mpf, (k, scale, a, other))
        log_x = mpmath.digamma(k) + mpmath.log(scale)
        entropy = k + mpmath.log(scale) + mpmath.loggamma(k) + (1 - k) * mpmath.digamma(k)
        power = (other / scale) ** a * mpmath.gamma(k - a) / mpmath.gamma(k)
        return float(-entropy - mpmath.log(a / other) + (a + 1) * (log_x - mpmath.log(other)) + power)


@pytest.mark.parametrize("seed", range(12))
def test_no_error_bound_excludes_the_kl(seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        k, scale, a, other = rng.uniform((0.5, 0.3, 0.5, 0.3), (6.0, 3.0, 4.0, 3.0))
        estimate = measure(stats.gamma(k, scale=scale), stats.invweibull(a, scale=other))
        truth = gamma_to_inverse_weibull(k, scale, a, other)
        assert estimate.interval[0] * (1 - 1e-12) <= truth <= estimate.interval[1] * (1 + 1e-12), (k, scale, a, other)
        assert truth < inf or estimate.value == inf or estimate.error == inf


def test_a_tail_that_is_extrapolated_has_no_error_bound():
    # SciPy's log-density of the Frechet distribution is -inf below 0.0525, where 0.2 nats of the integral are.
    estimate = measure(stats.chi2(5.0), stats.invweibull(1 / 0.45))
    assert gamma_to_inverse_weibull(2.5, 2.0, 1 / 0.45, 1.0) == pytest.approx(1.8005801050943582, rel=1e-14)
    assert estimate.error == inf
    assert estimate.status == "unreliable"
    assert "cannot be evaluated in a tail" in estimate.warnings[0]
    assert type(estimate.value) is float


def test_a_density_that_does_not_decrease_gives_no_exact_infinity():
    # SciPy's density of Tukey's lambda is a constant of 3e-16 for |x| > 300. The KL by its quantile function is 0.0218.
    estimate = measure(stats.tukeylambda(-0.1), stats.logistic())
    assert estimate.status == "unreliable"
    assert "its density is wrong there" in estimate.warnings[0]
