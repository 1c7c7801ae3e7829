"""Fits to samples whose spread is small beside their values, against arithmetic with 50 digits."""

import mpmath
import numpy as np
import pytest

from kullback import fit_forward
from kullback.densities.from_families import as_density
from kullback.errors import SupportError
from kullback.families import (
    Beta,
    Cauchy,
    ChiSquared,
    Dirichlet,
    F,
    Gamma,
    Gumbel,
    HalfCauchy,
    Independent,
    InverseGamma,
    Logistic,
    LogNormal,
    MultivariateNormal,
    Normal,
    Pareto,
    TanhNormal,
    VonMises,
    Weibull,
    Zipf,
)

Z = np.random.default_rng(3).normal(size=200)


def log_gamma_density(x, a, rate):
    return a * mpmath.log(rate) + (a - 1) * mpmath.log(x) - rate * x - mpmath.loggamma(a)


def log_beta_density(x, a, b):
    log_normaliser = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    return (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log1p(-x) - log_normaliser


def exact_gamma_fit(samples) -> tuple[float, float]:
    """The concentration of the maximum likelihood, and the mean of minus the log-density there."""
    x = [mpmath.mpf(float(value)) for value in samples]
    mean = mpmath.fsum(x) / len(x)
    gap = mpmath.log(mean) - mpmath.fsum(mpmath.log(value) for value in x) / len(x)
    a = mpmath.exp(mpmath.findroot(lambda u: u - mpmath.digamma(mpmath.exp(u)) - gap, mpmath.log(0.5 / gap)))
    return float(a), float(-mpmath.fsum(log_gamma_density(value, a, a / mean) for value in x) / len(x))


@pytest.mark.parametrize("samples", [1.7e9 + 10 * Z, 1e6 + Z, np.exp(Z), 1e-200 * np.exp(5 * Z)])
def test_gamma_fits_have_all_digits(samples):
    with mpmath.workdps(50):
        concentration, cross_entropy = exact_gamma_fit(samples)
        inverse, _ = exact_gamma_fit([1 / mpmath.mpf(float(value)) for value in 1 / samples])
    fit = fit_forward(Gamma, samples=samples)
    assert fit.distribution.concentration == pytest.approx(concentration, rel=1e-12)
    assert fit.diagnostics["cross_entropy"] == pytest.approx(cross_entropy, abs=1e-13 * max(1, abs(cross_entropy)))
    inverse_fit = fit_forward(InverseGamma, samples=1 / samples)
    assert inverse_fit.distribution.concentration == pytest.approx(inverse, rel=1e-12)


@pytest.mark.parametrize(("center", "width"), [(0.5, 1e-8), (0.25, 1e-5), (0.6, 0.05)])
def test_beta_and_dirichlet_fits_have_zero_scores(center, width):
    """The derivatives by the two means of the logarithms, relative to their standard deviations, and the entropy."""
    x = center + width * Z
    fit = fit_forward(Beta, samples=x)
    a, b = fit.distribution.concentration1, fit.distribution.concentration0
    with mpmath.workdps(50):
        a, b = mpmath.mpf(float(a)), mpmath.mpf(float(b))
        values = [mpmath.mpf(float(value)) for value in x]
        scores = [
            mpmath.digamma(end) - mpmath.digamma(a + b) - mpmath.fsum(map(mpmath.log, part)) / len(x)
            for end, part in ((a, values), (b, [1 - value for value in values]))
        ]
        exact = -mpmath.fsum(log_beta_density(value, a, b) for value in values) / len(x)
        assert max(abs(score) for score in scores) < 1e-9 * width + 2**-52  # the rounding of a / (a + b)
    assert fit.diagnostics["cross_entropy"] == pytest.approx(float(exact), abs=1e-7)
    pair = fit_forward(Dirichlet, samples=np.stack([x, 1 - x], axis=1)).distribution.concentration
    np.testing.assert_allclose(pair, [float(a), float(b)], rtol=1e-3 if width < 1e-6 else 1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-6, 1e-8])
def test_the_gamma_nearest_to_a_narrow_log_normal(scale):
    """KL(LogNormal(0, s) || Gamma) = s^2/12 for small s: the skewness of the gamma is 2 s, of the log-normal 3 s."""
    fit = fit_forward(Gamma, target=LogNormal(loc=0.0, scale=scale))
    assert fit.converged
    assert fit.kl == pytest.approx(scale**2 / 12, rel=1e-3)


def test_a_narrow_weibull_does_not_depend_on_the_place():
    """-log x is a Gumbel: with x = c e^y, log-likelihoods of y and x differ by the mean of log x."""
    narrow = fit_forward(Weibull, samples=1.7e9 * (1 + 1e-8 * Z))
    wide = fit_forward(Gumbel, samples=-np.log1p(1e-8 * Z))
    assert narrow.distribution.concentration == pytest.approx(1 / float(wide.distribution.scale), rel=1e-6)
    assert narrow.diagnostics["cross_entropy"] == pytest.approx(
        wide.diagnostics["cross_entropy"] + np.log(1.7e9), abs=1e-7
    )


def log_f_density(x, df1, df2):
    a, b, ratio = df1 / 2, df2 / 2, df1 / df2
    log_normaliser = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
    return a * mpmath.log(ratio) + (a - 1) * mpmath.log(x) - (a + b) * mpmath.log1p(ratio * x) - log_normaliser


def log_weibull_density(x, scale, k):
    return mpmath.log(k / scale) + (k - 1) * mpmath.log(x / scale) - (x / scale) ** k


@pytest.mark.parametrize("a", [17.0, 1e3, 1e6, 1e10, 1e14])
def test_log_densities_of_large_concentrations(a):
    """The error is the rounding of the parameters, sqrt(a) 2^-53 at a standard deviation from the centre."""
    cases = [
        (Gamma(concentration=a, rate=3e-5), log_gamma_density, (a, 3e-5), a / 3e-5, a**-0.5),
        (ChiSquared(df=2 * a), log_gamma_density, (a, 0.5), 2 * a, a**-0.5),
        (
            InverseGamma(concentration=a, rate=3e5),
            lambda x, a, rate: log_gamma_density(1 / x, a, rate) - 2 * mpmath.log(x),
            (a, 3e5),
            3e5 / a,
            a**-0.5,
        ),
        (F(df1=a, df2=3 * a), log_f_density, (a, 3 * a), 1.0, (2 / a) ** 0.5),
        (F(df1=a, df2=20.0), log_f_density, (a, 20.0), 1.0, 0.3),
        (Beta(concentration1=a, concentration0=3 * a), log_beta_density, (a, 3 * a), 0.25, a**-0.5),
        (Weibull(scale=3e5, concentration=a), log_weibull_density, (3e5, a), 3e5, 1 / a),
    ]
    for member, exact_log_density, parameters, center, relative_width in cases:
        density = as_density(member)
        assert density is not None
        for z in (-1.5, -0.1, 0.0, 1.0, 3.0):
            offset = z * relative_width * center
            with mpmath.workdps(60):
                x = mpmath.mpf(center) + mpmath.mpf(offset)
                exact = float(exact_log_density(x, *map(mpmath.mpf, parameters)))
            value = float(density.log_density(np.asarray([center]), np.asarray([offset]))[0])
            assert value == pytest.approx(exact, abs=3e-15 * a**0.5 + 1e-13 + 1e-14 * abs(exact)), (member, z)


@pytest.mark.parametrize("constant", [1.0, 0.1, 1e9 + 0.1, 0.0])
@pytest.mark.parametrize("family", [Independent, MultivariateNormal])
def test_a_constant_entry_is_refused_whatever_its_value(family, constant):
    """The rounding of the mean is not a variance."""
    with pytest.raises(SupportError, match="an entry of the vectors is constant"):
        fit_forward(family, samples=np.stack([Z, np.full_like(Z, constant)], axis=1))


@pytest.mark.parametrize("family", [Beta, Cauchy, Gamma, InverseGamma, Normal, TanhNormal, VonMises, Weibull])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_equal_samples_are_refused(family, size):
    with pytest.raises(SupportError, match="samples that differ"):
        fit_forward(family, samples=[0.1] * size)


@pytest.mark.parametrize("unit", [1e-8, 1e-100, 1e50])
def test_units_of_entries_do_not_matter(unit):
    x = np.random.default_rng(0).normal(size=(200, 2))
    fits = [
        fit_forward(MultivariateNormal, samples=x * [1, factor]).diagnostics["cross_entropy"] for factor in (1, unit)
    ]
    assert fits[1] - np.log(unit) == pytest.approx(fits[0], rel=1e-12)


@pytest.mark.parametrize(
    ("family", "fixed", "name", "value"),
    [
        (Normal, {"scale": 1.0}, "loc", 2.0),
        (Normal, {"loc": 0.0}, "scale", 2.0),
        (Gamma, {"concentration": 3.0}, "rate", 1.5),
        (Weibull, {"concentration": 2.0}, "scale", 2.0),
        (HalfCauchy, {}, "scale", 2.0),
        (Zipf, {}, "exponent", 1.8791006722784591),  # log(2) = -zeta'(s)/zeta(s)
    ],
)
def test_equal_samples_are_fitted_where_the_likelihood_has_a_maximum(family, fixed, name, value):
    fit = fit_forward(family, samples=[2.0, 2.0, 2.0], fixed=fixed)
    assert fit.converged
    assert float(getattr(fit.distribution, name)) == pytest.approx(value, rel=1e-9)
    if family is Zipf:
        assert float(-mpmath.diff(mpmath.zeta, value) / mpmath.zeta(value)) == pytest.approx(np.log(2), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_light_tails_are_fitted_to_samples_with_heavy_tails(seed):
    """The log-density is concave in 1/scale and loc/scale, so that the likelihood has one maximum."""
    from scipy import stats

    rng = np.random.default_rng(seed)
    heavy = {"t": stats.t(2).rvs(500, random_state=rng), "cauchy": stats.cauchy(5, 0.1).rvs(300, random_state=rng)}
    for x in heavy.values():
        for family, peer in ((Gumbel, stats.gumbel_r), (Logistic, stats.logistic)):
            fit = fit_forward(family, samples=x)
            assert fit.converged
            best = -float(np.mean(peer.logpdf(x, *peer.fit(x))))
            assert fit.diagnostics["cross_entropy"] <= best + 1e-9 * abs(best)


def test_two_values_are_fitted_by_a_logistic():
    x = np.random.default_rng(0).integers(0, 2, 300).astype(float)
    fit = fit_forward(Logistic, samples=x)
    with mpmath.workdps(30):
        ones, u, s = float(x.mean()), *map(float, (fit.distribution.loc, fit.distribution.scale))

        def loss(loc, scale):
            values = [(1 - loc) / scale, -loc / scale]
            logs = [-value - 2 * mpmath.log1p(mpmath.exp(-value)) - mpmath.log(scale) for value in values]
            return -(ones * logs[0] + (1 - ones) * logs[1])

        slopes = mpmath.diff(loss, (u, s), (1, 0)), mpmath.diff(loss, (u, s), (0, 1))
    assert fit.converged
    assert max(map(abs, slopes)) < 1e-7


def test_the_log_density_of_a_narrow_dirichlet_has_digits():
    """For vectors whose sum is exactly 1, which float64 has up to rounding."""
    x = np.array([0.2, 0.3, 0.5]) + 1e-8 * np.random.default_rng(0).normal(size=(20, 3))
    x /= x.sum(1, keepdims=True)
    fit = fit_forward(Dirichlet, samples=x)
    with mpmath.workdps(60):
        a = [mpmath.mpf(float(value)) for value in fit.distribution.concentration]
        log_normaliser = mpmath.fsum(map(mpmath.loggamma, a)) - mpmath.loggamma(mpmath.fsum(a))
        logs = []
        for row in x:
            values = [mpmath.mpf(float(value)) for value in row]
            total = mpmath.fsum(values)
            logs.append(mpmath.fsum((c - 1) * mpmath.log(v / total) for c, v in zip(a, values, strict=True)))
        exact = float(log_normaliser - mpmath.fsum(logs) / len(logs))
    assert fit.diagnostics["cross_entropy"] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "fixed", "scale", "alpha"),
    [
        ([2.0, 3.0, 5.0], {"alpha": 2.0}, 2.0, 2.0),
        ([2.0, 4.0], {"scale": 1.0}, 1.0, 2 / np.log(8)),
        ([2.0, 2.0], {"scale": 1.0}, 1.0, 1 / np.log(2)),
    ],
)
def test_a_pareto_with_a_fixed_parameter(samples, fixed, scale, alpha):
    member = fit_forward(Pareto, samples=samples, fixed=fixed).distribution
    assert (member.scale, member.alpha) == pytest.approx((scale, alpha))
    with pytest.raises(SupportError, match=r"but samples\[0\] is 2.0"):
        fit_forward(Pareto, samples=samples, fixed={"scale": 2.5})
    with pytest.raises(SupportError, match="samples that differ"):
        fit_forward(Pareto, samples=[2.0, 2.0], fixed={"scale": 2.0})


@pytest.mark.parametrize(("family", "exponent"), [(Gamma, 170), (InverseGamma, 160), (Weibull, 250)])
def test_the_log_density_of_samples_over_hundreds_of_powers_of_ten(family, exponent):
    """Of the fitted member, by the usual formula with 50 digits."""
    samples = [10.0**-exponent, 10.0**exponent, 1.0, 2.0]
    fit = fit_forward(family, samples=samples)
    with mpmath.workdps(50):
        x = [mpmath.mpf(value) for value in samples]
        a = mpmath.mpf(float(fit.distribution.concentration))
        if family is Weibull:
            logs = [log_weibull_density(value, mpmath.mpf(float(fit.distribution.scale)), a) for value in x]
        else:
            rate = mpmath.mpf(float(fit.distribution.rate))
            inverse = family is InverseGamma
            logs = [
                log_gamma_density(1 / value, a, rate) - 2 * mpmath.log(value)
                if inverse
                else log_gamma_density(value, a, rate)
                for value in x
            ]
        exact = float(-mpmath.fsum(logs) / 4)
    assert fit.diagnostics["cross_entropy"] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e250])
def test_a_weibull_of_samples_that_differ_in_the_last_digits(unit):
    z = np.random.default_rng(0).normal(size=400)
    x = unit * (1 + 1e-12 * z)
    wide = fit_forward(Gumbel, samples=-np.log1p((x - unit) / unit) * 1e12)
    narrow = fit_forward(Weibull, samples=x)
    assert float(narrow.distribution.concentration) == pytest.approx(1e12 / float(wide.distribution.scale), rel=1e-3)


@pytest.mark.parametrize("family", [Independent, MultivariateNormal])
@pytest.mark.parametrize("unit", [1e160, 1e-160])
def test_variances_outside_of_float64_are_refused(family, unit):
    with pytest.raises(SupportError, match="the variance of entry 1 is"):
        fit_forward(family, samples=np.random.default_rng(0).normal(size=(20, 2)) * [1, unit])
