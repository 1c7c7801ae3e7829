"""Counts at the limits of float64, against arithmetic with more digits and published formulas."""

import math

import mpmath as mp
import numpy as np
import pytest
from scipy import special, stats

from kullback import families as f
from kullback import kl, measure
from kullback.densities.count_pmfs import zipfian
from kullback.densities.entropy import entropy_of
from kullback.densities.from_families import as_density
from kullback.errors import NoClosedFormError, SupportError
from kullback.fit import fit_forward

NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
LARGE = {
    "poisson": f.Poisson(rate=1e300),
    "binomial": f.Binomial(total_count=1e300, probs=0.5),
    "largest binomial": f.Binomial(total_count=1.7e308, probs=1e-8),
    "negative binomial": f.NegativeBinomial(total_count=1e300, probs=0.5),
    "zipfian": f.Zipfian(exponent=0.5, total_count=1e300),
}


@pytest.mark.parametrize("name", LARGE)
def test_counts_that_float64_does_not_distinguish_are_refused(name):
    p, q = LARGE[name], f.Geometric(probs=0.5)
    with pytest.raises(SupportError, match="float64 distinguishes"):
        measure(p, q)
    if as_density(p).support[1] == math.inf:
        with pytest.raises(SupportError, match="float64 distinguishes"):
            measure(q, p)
    with pytest.raises(SupportError, match="float64 distinguishes"):
        fit_forward(f.Geometric, target=LARGE[name])


@pytest.mark.parametrize("name", LARGE)
def test_the_support_decides_between_large_counts_and_a_continuous_distribution(name):
    for pair in ((LARGE[name], f.Exponential(rate=3.0)), (f.Exponential(rate=3.0), LARGE[name])):
        estimate = measure(*pair)
        assert (estimate.value, estimate.status) == (math.inf, "exact")


@pytest.mark.parametrize("exponent", [-2.0, 0.0, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("total_count", [2**20 + 1, 10**8, 10**12])
def test_the_constant_of_a_long_zipfian_distribution(exponent, total_count):
    density = zipfian(exponent, float(total_count))
    constant = -float(density.log_density(np.asarray([1.0]), np.zeros(1))[0])
    with mp.workdps(40):
        exact = mp.zeta(exponent) - mp.zeta(exponent, total_count + 1) if exponent != 1 else mp.harmonic(total_count)
        assert constant == pytest.approx(float(mp.log(exact)), rel=1e-13)


def test_kl_of_long_zipfian_distributions():
    a, b, n = 0.5, 0.7, 10**8
    estimate = measure(f.Zipfian(exponent=a, total_count=n), f.Zipfian(exponent=b, total_count=n))
    with mp.workdps(40):
        za, zb = (mp.zeta(s) - mp.zeta(s, n + 1) for s in (a, b))
        mean_log = -(mp.zeta(a, 1, 1) - mp.zeta(a, n + 1, 1)) / za
        exact = float((b - a) * mean_log + mp.log(zb / za))
    assert estimate.value == pytest.approx(exact, rel=1e-11)
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(f.Zipfian(exponent=a, total_count=n), f.Zipfian(exponent=b, total_count=n))


def test_kl_of_binomials_of_many_trials():
    # The next term of the expansion in 1/n is smaller by 1e-8.
    p, q = f.Binomial(total_count=10**8, probs=0.5), f.Binomial(total_count=10**8 + 1, probs=0.5)
    estimate = measure(p, q)
    with mp.workdps(40):
        # KL = E log((n + 1 - k) / (n + 1)) + log 2, by the central moments of k
        n = mp.mpf(10**8)
        u = n / 4 / (n / 2 + 1) ** 2
        exact = mp.log(2) + mp.log((n / 2 + 1) / (n + 1)) - u / 2 - (3 * u**2 * (1 - 2 / (3 * n))) / 4
    assert estimate.value == pytest.approx(float(exact), rel=1e-6)


ENTROPIES = {
    "poisson(1e8)": (f.Poisson(rate=1e8), NORMAL_ENTROPY + 0.5 * math.log(1e8) - 1 / 12e8),
    "poisson(1e12)": (f.Poisson(rate=1e12), NORMAL_ENTROPY + 0.5 * math.log(1e12)),
    "binomial(1e8)": (f.Binomial(total_count=1e8, probs=0.5), NORMAL_ENTROPY + 0.5 * math.log(2.5e7)),
    "hypergeometric": (
        f.Hypergeometric(population=1e10, successes=5e9, draws=2e9),
        NORMAL_ENTROPY + 0.5 * math.log(2e9 * 0.25 * 0.8),
    ),
    "zipf(1.5)": (
        f.Zipf(exponent=1.5),
        float(mp.log(mp.zeta(1.5)) - 1.5 * mp.zeta(1.5, 1, 1) / mp.zeta(1.5)),
    ),
    "geometric(1e-9)": (
        f.Geometric(probs=1e-9),
        float((special.entr(1e-9) - (1 - 1e-9) * math.log1p(-1e-9)) / 1e-9),
    ),
    "zipfian(.5, 1e6)": (
        f.Zipfian(exponent=0.5, total_count=1e6),
        float(stats.entropy(np.arange(1.0, 1e6 + 1) ** -0.5)),
    ),
}


@pytest.mark.parametrize("name", ENTROPIES)
def test_entropies_of_wide_distributions_of_counts(name):
    record, exact = ENTROPIES[name]
    assert entropy_of(as_density(record)).value == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(
    "record",
    [f.Pareto(scale=1.0, alpha=1e-3), f.StudentT(df=1e-3, loc=0.0, scale=1.0), f.Zipf(exponent=1.001)],
    ids=["pareto", "student_t", "zipf"],
)
def test_an_entropy_with_mass_beyond_float64_is_not_stated_as_certain(record):
    try:
        estimate = entropy_of(as_density(record))
    except SupportError:
        return
    assert estimate.status == "unreliable"


def test_a_fit_to_wide_counts():
    fit = fit_forward(f.Poisson, target=f.Binomial(total_count=1e8, probs=0.5))
    assert fit.distribution.rate == pytest.approx(5e7, rel=1e-9)
    fit = fit_forward(f.Geometric, target=f.Poisson(rate=1e8))
    assert fit.distribution.probs == pytest.approx(1 / (1 + 1e8), rel=1e-9)
