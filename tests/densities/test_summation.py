"""Summation against 40-digit sums: the true error is below the bound, and probabilities are accurate for any count."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kullback.densities import from_scipy
from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.summation import kl_summation
from kullback.errors import DistributionTypeError, SupportError
from kullback.families import Bernoulli, Binomial, Geometric, Hypergeometric, NegativeBinomial, Poisson, Zipf, Zipfian
from kullback.measure import measure

mpf = mpmath.mpf
inf = math.inf
HONEST = settings(max_examples=20, deadline=None)


@pytest.fixture(autouse=True)
def forty_digits():
    with mpmath.workdps(40):
        yield


def measured(p, q):
    return kl_summation(as_density(p), as_density(q))


def assert_within_bound(estimate, truth):
    assert estimate.status == "bounded", estimate
    assert abs(mpf(estimate.value) - truth) <= estimate.error, (estimate, truth)


def decades(low, high):
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def phi(d):
    return mpmath.expm1(d) - d


def log_factorial(k):
    return mpmath.loggamma(k + 1)


# Probabilities.


def log_poisson(rate, k):
    return k * mpmath.log(rate) - rate - log_factorial(k)


def log_choose(n, k):
    return log_factorial(n) - log_factorial(k) - log_factorial(n - k)


@pytest.mark.parametrize("rate", [1e-5, 0.5, 20.0, 1e3, 1e6, 1e12])
def test_poisson_probabilities(rate):
    ks = {0, 1, 2, 14, 15, 16, 17, 100} | {max(0, int(rate + z * rate**0.5)) for z in (-30, -5, 0, 1, 5, 30)}
    assert_log_probabilities(Poisson(rate=rate), ks, lambda k: log_poisson(mpf(rate), k))


@pytest.mark.parametrize(("n", "logits"), [(15, 0.3), (1000, -3.0), (10**6, 0.0), (10**9, -10.0), (10, 40.0)])
def test_binomial_probabilities(n, logits):
    one = 1 / (1 + mpmath.exp(-mpf(logits)))
    ks = {0, 1, 2, n // 2, n - 1, n} | {min(n, int(n * one) + step) for step in (-2, 0, 3) if int(n * one) + step >= 0}

    def truth(k):
        rest = -mpf(logits) - mpmath.log1p(mpmath.exp(-mpf(logits)))
        return log_choose(mpf(n), k) + k * mpmath.log(one) + (n - k) * rest

    assert_log_probabilities(Binomial(total_count=n, logits=logits), ks, truth)


@pytest.mark.parametrize(("count", "logits"), [(0.5, 0.3), (1.0, -3.0), (1e3, 2.0), (1e6, 0.0), (2.5, 20.0)])
def test_negative_binomial_probabilities(count, logits):
    one = 1 / (1 + mpmath.exp(-mpf(logits)))
    ks = {0, 1, 2, 17} | {int(count * math.exp(logits) * part) for part in (0.5, 0.99, 1, 1.01, 2, 10)}

    def truth(k):
        r = mpf(count)
        rest = -mpf(logits) - mpmath.log1p(mpmath.exp(-mpf(logits)))
        return mpmath.loggamma(k + r) - log_factorial(k) - mpmath.loggamma(r) + k * mpmath.log(one) + r * rest

    assert_log_probabilities(NegativeBinomial(total_count=count, logits=logits), ks, truth)


@pytest.mark.parametrize(
    ("n", "good", "draws"), [(10, 4, 3), (100, 30, 20), (10**6, 3 * 10**5, 10**5), (10**9, 7, 10**8)]
)
def test_hypergeometric_probabilities(n, good, draws):
    low, high = max(0, draws - (n - good)), min(draws, good)
    ks = {low, low + 1, high, (low + high) // 2, min(high, draws * good // n)}

    def truth(k):
        return log_choose(mpf(good), k) + log_choose(mpf(n - good), draws - k) - log_choose(mpf(n), mpf(draws))

    # The sum of three logarithms, each larger than the result.
    assert_log_probabilities(Hypergeometric(population=n, successes=good, draws=draws), ks, truth, tolerance=2e-14)


def assert_log_probabilities(record, ks, truth, tolerance=4e-15):
    density = as_density(record)
    for k in sorted(ks):
        got = float(density.log_density(np.asarray(float(k)), np.asarray(0.0)))
        exact = truth(mpf(k))
        assert abs(got - exact) <= tolerance * max(1, abs(exact)), (k, got, exact)


# KL of small and large counts.


@HONEST
@given(decades(-6, 12), decades(-6, 12))
def test_poisson(a, b):
    truth = mpf(a) * phi(mpmath.log(mpf(b) / a))
    assert_within_bound(measured(Poisson(rate=a), Poisson(rate=b)), truth)


@HONEST
@given(st.floats(1.05, 6), st.floats(1.05, 6))
def test_zipf_with_extrapolated_tail(a, b):
    slope = -mpmath.zeta(mpf(a), derivative=1) / mpmath.zeta(a)
    truth = mpmath.log(mpmath.zeta(b) / mpmath.zeta(a)) + (mpf(b) - a) * slope
    estimate = measured(Zipf(exponent=a), Zipf(exponent=b))
    assert abs(mpf(estimate.value) - truth) <= estimate.error
    assert estimate.error < 1e-9 * max(1, truth)


@HONEST
@given(decades(-12, -0.1), decades(-12, -0.1))
def test_geometric(a, b):
    # The record stores logits.
    a, b = (1 / (1 + mpmath.exp(-mpf(math.log(p / (1 - p))))) for p in (a, b))
    truth = mpmath.log(a / b) + (1 - a) / a * mpmath.log((1 - a) / (1 - b))
    logits = [float(mpmath.log(p / (1 - p))) for p in (a, b)]
    estimate = measured(Geometric(logits=logits[0]), Geometric(logits=logits[1]))
    assert abs(mpf(estimate.value) - truth) <= estimate.error + 1e-13 * truth


@pytest.mark.parametrize(
    ("p", "q", "log_p", "log_q", "last"),
    [
        (
            NegativeBinomial(total_count=2.5, probs=0.25),
            NegativeBinomial(total_count=4.0, probs=0.5),
            lambda k: stats_nb(2.5, 0.25, k),
            lambda k: stats_nb(4, 0.5, k),
            200,
        ),
        (
            Binomial(total_count=10, probs=0.5),
            Poisson(rate=4.0),
            lambda k: log_choose(mpf(10), k) - 10 * mpmath.log(2),
            lambda k: log_poisson(mpf(4), k),
            10,
        ),
        (
            Hypergeometric(population=20, successes=8, draws=5),
            Binomial(total_count=6, probs=0.375),
            lambda k: log_choose(mpf(8), k) + log_choose(mpf(12), 5 - k) - log_choose(mpf(20), mpf(5)),
            lambda k: log_choose(mpf(6), k) + k * mpmath.log(mpf(0.375)) + (6 - k) * mpmath.log(mpf(0.625)),
            5,
        ),
    ],
    ids=["negative binomials of two counts", "binomial and Poisson", "hypergeometric and binomial"],
)
def test_pairs_without_a_closed_form(p, q, log_p, log_q, last):
    ks = [mpf(k) for k in range(last + 1)]
    truth = mpmath.fsum(mpmath.exp(log_p(k)) * (log_p(k) - log_q(k)) for k in ks)
    assert_within_bound(measured(p, q), truth)


def stats_nb(r, one, k):
    r, one = mpf(r), mpf(one)
    choose = mpmath.loggamma(k + r) - log_factorial(k) - mpmath.loggamma(r)
    return choose + k * mpmath.log(one) + r * mpmath.log(1 - one)


def test_wide_distributions_are_summed_by_integrals():
    """Poisson(1e5) against a negative binomial: the sum of 4e5 terms of SciPy's probabilities agrees."""
    k = np.arange(95_000, 105_001)
    p, q = stats.poisson(1e5).logpmf(k), stats.nbinom(1e6, 1e6 / 1.1e6).logpmf(k)
    naive = math.fsum(np.exp(p) * (p - q))
    estimate = measured(Poisson(rate=1e5), NegativeBinomial(total_count=1e6, probs=1e5 / 1.1e6))
    assert estimate.value == pytest.approx(naive, abs=1e-9)
    assert estimate.error < 1e-12


def test_zipfian_is_a_truncated_zipf():
    partial = mpmath.fsum(mpf(1) / k**2 for k in range(1, 101))
    estimate = measured(Zipfian(exponent=2.0, total_count=100), Zipf(exponent=2.0))
    assert_within_bound(estimate, mpmath.log(mpmath.zeta(2) / partial))


# Infinite KL.


@pytest.mark.parametrize(
    ("p", "q", "where"),
    [
        (Binomial(total_count=12, probs=0.5), Binomial(total_count=10, probs=0.5), "11 <= x <= 12"),
        (Poisson(rate=2.0), Binomial(total_count=10, probs=0.5), "11 <= x <= inf"),
        (Poisson(rate=2.0), Zipf(exponent=3.0), "0 <= x <= 0"),
        (Binomial(total_count=10, probs=0.5), Binomial(total_count=10, probs=1.0), "0 <= x <= 9"),
        (Poisson(rate=1.0), Poisson(rate=0.0), "1 <= x <= inf"),
        (Zipf(exponent=2.0), Geometric(probs=0.5), "approaches +inf"),
    ],
)
def test_infinite_kl_states_where(p, q, where):
    estimate = measured(p, q)
    assert estimate.value == inf
    assert where in estimate.warnings[0]


def test_heavy_discrete_tail_diverges_where_the_mean_does():
    assert measured(Zipf(exponent=2.0), Geometric(probs=1e-3)).value == inf
    assert measured(Zipf(exponent=1.5), Geometric(probs=1e-3)).value == inf
    finite = measured(Zipf(exponent=2.5), Geometric(probs=0.5))
    slope = -mpmath.zeta(mpf(2.5), derivative=1) / mpmath.zeta(2.5)
    mean = mpmath.zeta(1.5) / mpmath.zeta(2.5)
    truth = -mpf(2.5) * slope - mpmath.log(mpmath.zeta(2.5)) + (mean + 1) * mpmath.log(2)
    assert_within_bound(finite, truth)


def test_degenerate_distributions():
    assert measured(Poisson(rate=0.0), Poisson(rate=1.0)).value == pytest.approx(1.0, rel=1e-15)
    assert measured(Binomial(total_count=10, probs=1.0), Binomial(total_count=10, probs=0.5)).value == pytest.approx(
        10 * math.log(2), rel=1e-15
    )
    assert measured(Bernoulli(probs=0.0), Bernoulli(probs=0.25)).value == pytest.approx(-math.log(0.75), rel=1e-15)


def test_gap_in_the_support_of_q_gives_inf_and_underflow_does_not():
    holed = Density(
        lambda k, offset: np.where(k == 3, -inf, stats.poisson(2.0).logpmf(k + offset)),
        (0.0, inf),
        ((2.0, 1.0),),
        discrete=True,
    )
    estimate = kl_summation(as_density(Poisson(rate=2.0)), holed)
    assert estimate.value == inf
    assert estimate.warnings == ("q is 0 where p is not: x = 3",)
    # SciPy's Zipf probabilities underflow where the Poisson probabilities are negligible.
    assert (
        kl_summation(*map(from_scipy.as_density, (stats.poisson(50.0), stats.zipf(30.0, loc=-1)))).status == "bounded"
    )


def test_nan_raises_and_states_where():
    broken = Density(lambda k, offset: np.where(k == 4, np.nan, -k), (0.0, inf), ((1.0, 1.0),), discrete=True)
    with pytest.raises(SupportError, match=r"nan at 4\.0"):
        kl_summation(as_density(Poisson(rate=2.0)), broken)


@pytest.mark.parametrize(
    ("s", "t"),
    [
        (1.0014287776725757, 1.0014288005186065),
        (1.005473996221306, 1.0054740243730227),
        (1.0015668133181501, 1.0015668243851217),
        (1.001, 1.2),
    ],
)
def test_the_bound_holds_where_much_of_the_mass_is_beyond_float64(s, t):
    with mpmath.workdps(40):
        a, b = mpmath.mpf(s), mpmath.mpf(t)
        slope = mpmath.zeta(a, derivative=1) / mpmath.zeta(a)
        truth = float(mpmath.log(mpmath.zeta(b) / mpmath.zeta(a)) - (b - a) * slope)
    estimate = measure(Zipf(exponent=s), Zipf(exponent=t), method="quadrature")
    assert estimate.status == "bounded"
    assert abs(estimate.value - truth) <= estimate.error


def test_quartiles_that_scipy_does_not_find_are_an_error_of_the_package():
    with pytest.raises(DistributionTypeError, match="yulesimon: expected a distribution whose quartiles"):
        measure(stats.yulesimon(0.01), Zipf(exponent=1.01))
