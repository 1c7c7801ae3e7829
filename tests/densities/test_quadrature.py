"""Quadrature against reference values and 40-digit integration: the true error is below the bound in every case."""

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kullback import families
from kullback.densities.density import Density
from kullback.densities.from_families import as_density
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.summation import kl_summation
from kullback.errors import ShapeError, SupportError
from kullback.families import (
    Beta,
    Cauchy,
    ContinuousBernoulli,
    Exponential,
    F,
    Gamma,
    Gumbel,
    HalfCauchy,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    Normal,
    NormalMixture,
    Pareto,
    Rayleigh,
    StudentT,
    TanhNormal,
    Uniform,
    VonMises,
    Weibull,
)
from kullback.measure import measure

REFERENCE = Path(__file__).parents[1] / "data"
inf = math.inf
mpf = mpmath.mpf


def bound_of(p, q, **options):
    p, q = as_density(p), as_density(q)
    return (kl_summation if p.discrete else kl_quadrature)(p, q, **options)


def assert_within_bound(estimate, truth, status="bounded"):
    assert estimate.status == status, estimate
    assert abs(mpf(estimate.value) - truth) <= estimate.error, (estimate, truth)


# Reference values.


def reference(name):
    path = REFERENCE / name
    return json.loads(path.read_text())["cases"]


def record(parameters):
    kind = getattr(families, "".join(word.capitalize() for word in parameters["family"].split("_")))
    return kind(**{name: float(value) for name, value in parameters.items() if name != "family"})


def distance(p, q):
    """The relative difference of the parameters; 1 where the families differ."""
    if p["family"] != q["family"]:
        return 1.0
    pairs = [(float(p[name]), float(q[name])) for name in p if name != "family"]
    return max(abs(a - b) / max(abs(a), 1e-300) for a, b in pairs)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{c['p']['family']}-{i}") for i, c in enumerate(reference("families.json"))]
)
def test_error_is_within_the_bound_for_every_family(case):
    estimate, truth = bound_of(record(case["p"]), record(case["q"])), mpf(case["kl"])
    assert estimate.status == "bounded"
    assert estimate.error <= 1e-10 * max(1.0, float(truth))
    # Rounding the reference's decimals to float64 changes the true KL, by more the closer p is to q.
    rounding = (1e-15 + 4e-16 / distance(case["p"], case["q"])) * truth
    assert abs(mpf(estimate.value) - truth) <= estimate.error + rounding
    assert estimate.value == pytest.approx(float(truth), rel=1e-12 + 4e-16 / distance(case["p"], case["q"]), abs=0)


def mixture(parts):
    weights, locs, scales = ([float(part[name]) for part in parts] for name in ("weight", "loc", "scale"))
    return NormalMixture(weights=weights, locs=locs, scales=scales)


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in reference("mixtures.json")])
def test_mixtures_in_both_directions(case):
    p, q = mixture(case["p"]), mixture(case["q"])
    for first, second, truth in ((p, q, case["kl"]), (q, p, case["reverse_kl"])):
        estimate = bound_of(first, second)
        assert abs(mpf(estimate.value) - mpf(truth)) <= estimate.error + 1e-17  # the precision of the file
        assert estimate.value == pytest.approx(float(truth), rel=1e-12)


# Pairs without a closed form, against mpmath's quadrature.


def by_mpmath(log_p, log_q, points):
    with mpmath.workdps(25):
        points = [mpf(point) for point in points]
        return mpmath.quad(lambda x: mpmath.exp(log_p(x)) * (log_p(x) - log_q(x)), points)


def log_t(df, loc, scale):
    df, loc, scale = map(mpf, (df, loc, scale))
    with mpmath.workdps(40):
        constant = (
            mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(df * mpmath.pi) / 2 - mpmath.log(scale)
        )
    return lambda x: constant - (df + 1) / 2 * mpmath.log1p(((x - loc) / scale) ** 2 / df)


def log_normals(weights, locs, scales):
    def log_density(x):
        parts = zip(map(mpf, weights), map(mpf, locs), map(mpf, scales), strict=True)
        return mpmath.log(mpmath.fsum(w * mpmath.npdf(x, m, s) for w, m, s in parts))

    return log_density


def log_kumaraswamy(a, b):
    a, b = mpf(a), mpf(b)
    return lambda x: mpmath.log(a * b) + (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log1p(-(x**a))


def log_beta(a, b):
    a, b = mpf(a), mpf(b)
    return lambda x: (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log1p(-x) - mpmath.log(mpmath.beta(a, b))


def log_logistic(x):
    return -2 * mpmath.log(2 * mpmath.cosh(x / 2))


LINE = [-inf, -300, -30, -5, -1, 0, 1, 5, 30, 300, inf]
UNIT_LINE = [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1]
MODES = [-inf, -9, -4, -2.5, -2, -1.5, 0, 1, 2, 4, 9, inf]
TWO = NormalMixture(weights=[0.25, 0.75], locs=[-2.0, 1.0], scales=[0.125, 1.0])
HARD = {
    "t and Cauchy": (
        StudentT(df=2.5, loc=0.5, scale=0.25),
        Cauchy(loc=-3.0, scale=2.0),
        log_t(2.5, 0.5, 0.25),
        log_t(1, -3, 2),
        LINE,
    ),
    "logistic and t": (
        families.Logistic(loc=0.0, scale=1.0),
        StudentT(df=30.0, loc=1.0, scale=2.0),
        log_logistic,
        log_t(30, 1, 2),
        LINE,
    ),
    "a mixture and Cauchy": (
        TWO,
        Cauchy(loc=0.0, scale=1.0),
        log_normals([0.25, 0.75], [-2, 1], [0.125, 1]),
        log_t(1, 0, 1),
        MODES,
    ),
    "Kumaraswamy and beta": (
        Kumaraswamy(concentration1=1.5, concentration0=2.5),
        Beta(concentration1=0.75, concentration0=3.5),
        log_kumaraswamy(1.5, 2.5),
        log_beta(0.75, 3.5),
        UNIT_LINE,
    ),
    "beta and Kumaraswamy, infinite at both ends": (
        Beta(concentration1=2.5, concentration0=1.5),
        Kumaraswamy(concentration1=0.5, concentration0=0.5),
        log_beta(2.5, 1.5),
        log_kumaraswamy(0.5, 0.5),
        UNIT_LINE,
    ),
}


@pytest.mark.parametrize(("p", "q", "log_p", "log_q", "points"), HARD.values(), ids=HARD)
def test_pairs_without_a_closed_form(p, q, log_p, log_q, points):
    truth = by_mpmath(log_p, log_q, points)
    estimate = bound_of(p, q)
    assert estimate.status == "bounded"
    assert abs(mpf(estimate.value) - truth) <= estimate.error + 1e-15 * truth
    assert estimate.error < 1e-12


def test_tanh_normal_matches_transformed_normal():
    squashed = bound_of(TanhNormal(loc=0.5, scale=2.0), TanhNormal(loc=-1.0, scale=1.0))
    assert squashed.value == pytest.approx(2 - math.log(2) - 0.5 + 1.125, rel=1e-13)
    # In the tail, where 1 - tanh(x) is 1e-80.
    assert bound_of(TanhNormal(loc=92.0, scale=1.0), TanhNormal(loc=91.0, scale=1.0)).value == pytest.approx(
        0.5, rel=1e-12
    )


def test_von_mises():
    uniform, narrow = VonMises(loc=1.0, concentration=0.0), VonMises(loc=3.0, concentration=50.0)
    with mpmath.workdps(30):
        kappa = mpf(50)
        ratio = mpmath.besseli(1, kappa) / mpmath.besseli(0, kappa)
        log_i0 = mpmath.log(mpmath.besseli(0, kappa))
    assert_within_bound(bound_of(uniform, narrow), log_i0)
    assert_within_bound(bound_of(narrow, uniform), kappa * ratio - log_i0)
    assert_within_bound(bound_of(narrow, VonMises(loc=-3.0, concentration=50.0)), kappa * ratio * (1 - mpmath.cos(6)))
    # Many multiples of 2 pi.
    for loc, other in ((-553.7546934235062, 0.3), (88.61, -0.14), (1e6, 2.0)):
        far = bound_of(VonMises(loc=loc, concentration=50.0), VonMises(loc=other, concentration=50.0))
        with mpmath.workdps(30):
            assert_within_bound(far, kappa * ratio * (1 - mpmath.cos(mpf(loc) - mpf(other))))


def test_nearly_equal_f_variables():
    """E_p[log p - log q] as an integral over log x, in 40 digits."""
    for df1, df2 in ((10.99, 1.09), (8.32, 0.8), (10.47, 1.29)):
        delta = 1e-6
        p, q = (df1, df2), (df1 * (1 - delta), df2 * (1 + delta))
        with mpmath.workdps(40):
            a, b = ((mpf(d1) / 2, mpf(d2) / 2) for d1, d2 in (p, q))
            constants = [mpmath.log(m / n) * m - log_beta_function(m, n) for m, n in (a, b)]

            def term(t, a=a, b=b, constants=constants):
                logs = [
                    c + m * t - (m + n) * mpmath.log1p(m / n * mpmath.exp(t))
                    for c, (m, n) in zip(constants, (a, b), strict=True)
                ]
                return mpmath.exp(logs[0]) * (logs[0] - logs[1])

            truth = mpmath.quad(term, [-60, -20, -6, -2, 0, 2, 6, 20, 120])
        estimate = bound_of(F(df1=p[0], df2=p[1]), F(df1=q[0], df2=q[1]))
        assert_within_bound(estimate, truth)
        assert abs(estimate.value / float(truth) - 1) < 1e-9


# Random difficult cases, against the closed form in 40 digits.


def scales(low, high):
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def shifted(scale):
    return st.tuples(st.floats(-3, 3), scale).map(lambda pair: pair[0] * pair[1])


def log_beta_function(a, b):
    return mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)


def phi(d):
    return mpmath.expm1(d) - d


HONEST = settings(max_examples=25, deadline=None)
WIDE = scales(-8, 8)


@HONEST
@given(shifted(WIDE), WIDE, shifted(WIDE), WIDE)
def test_normals_of_any_scale(m1, s1, m2, s2):
    with mpmath.workdps(40):
        truth = phi(2 * mpmath.log(mpf(s1) / s2)) / 2 + ((mpf(m1) - m2) / s2) ** 2 / 2
    assert_within_bound(bound_of(Normal(loc=m1, scale=s1), Normal(loc=m2, scale=s2)), truth)


@HONEST
@given(st.floats(-10, -1), st.floats(-1, 1), st.floats(-1, 1))
def test_nearly_equal_normals_keep_their_accuracy(exponent, shift, stretch):
    delta = 10.0**exponent
    m2, s2 = 0.25 + delta * shift, 1.5 * (1 + delta * stretch)
    with mpmath.workdps(40):
        truth = phi(2 * mpmath.log(mpf(1.5) / s2)) / 2 + ((mpf(0.25) - m2) / s2) ** 2 / 2
    estimate = bound_of(Normal(loc=0.25, scale=1.5), Normal(loc=m2, scale=s2))
    assert_within_bound(estimate, truth)
    assert estimate.error <= (1e-12 + 2e-14 / delta) * delta**2


@HONEST
@given(shifted(WIDE), WIDE, shifted(WIDE), WIDE)
def test_heavy_tails(m1, s1, m2, s2):
    with mpmath.workdps(40):
        truth = mpmath.log(((mpf(s1) + s2) ** 2 + (mpf(m1) - m2) ** 2) / (4 * mpf(s1) * s2))
    assert_within_bound(bound_of(Cauchy(loc=m1, scale=s1), Cauchy(loc=m2, scale=s2)), truth)


@HONEST
@given(shifted(WIDE), WIDE, shifted(WIDE), WIDE)
def test_densities_with_kinks(m1, s1, m2, s2):
    with mpmath.workdps(40):
        gap = abs(mpf(m1) - m2)
        truth = (s1 * mpmath.exp(-gap / s1) + gap) / s2 + mpmath.log(mpf(s2) / s1) - 1
    assert_within_bound(bound_of(Laplace(loc=m1, scale=s1), Laplace(loc=m2, scale=s2)), truth)


@HONEST
@given(*[scales(-1.3, 3)] * 4)
def test_poles_at_both_ends(a, b, c, d):
    with mpmath.workdps(40):
        psi, (a_, b_, c_, d_) = mpmath.digamma, map(mpf, (a, b, c, d))
        truth = log_beta_function(c_, d_) - log_beta_function(a_, b_) + (a_ - c_) * psi(a_) + (b_ - d_) * psi(b_)
        truth += (c_ - a_ + d_ - b_) * psi(a_ + b_)
    p, q = Beta(concentration1=a, concentration0=b), Beta(concentration1=c, concentration0=d)
    assert_within_bound(bound_of(p, q), truth)


@HONEST
@given(scales(-1.3, 3), scales(-1.3, 3), scales(-6, 6), scales(-6, 6))
def test_a_pole_at_one_end(a, b, r1, r2):
    with mpmath.workdps(40):
        a_, b_, r1_, r2_ = map(mpf, (a, b, r1, r2))
        truth = b_ * mpmath.log(r1_ / r2_) - mpmath.loggamma(a_) + mpmath.loggamma(b_)
        truth += (a_ - b_) * mpmath.digamma(a_) - (r1_ - r2_) * a_ / r1_
    estimate = bound_of(Gamma(concentration=a, rate=r1), Gamma(concentration=b, rate=r2))
    assert abs(mpf(estimate.value) - truth) <= estimate.error


@HONEST
@given(scales(-2, 2), scales(-2, 2), scales(-3, 3), st.floats(0.01, 1))
def test_power_law_tails(alpha1, alpha2, scale, part):
    with mpmath.workdps(40):
        a1, a2, s1, s2 = map(mpf, (alpha1, alpha2, scale, scale * part))
        truth = mpmath.log(a1 / a2) + a2 * mpmath.log(s1 / s2) + a2 / a1 - 1
    estimate = bound_of(Pareto(scale=scale, alpha=alpha1), Pareto(scale=scale * part, alpha=alpha2))
    # Below an exponent of 0.1, a part of the mass is outside the float64 range, and the bound must include it.
    assert abs(mpf(estimate.value) - truth) <= estimate.error


@HONEST
@given(st.floats(-20, 20), scales(-2, 1.5), st.floats(-20, 20), scales(-2, 1.5))
def test_scales_of_many_orders_of_magnitude(m1, s1, m2, s2):
    with mpmath.workdps(40):
        # SciPy's parameter is e^loc, rounded.
        distance = mpmath.log(mpf(math.exp(m1)) / mpf(math.exp(m2)))
        truth = phi(2 * mpmath.log(mpf(s1) / s2)) / 2 + (distance / s2) ** 2 / 2
    assert_within_bound(bound_of(LogNormal(loc=m1, scale=s1), LogNormal(loc=m2, scale=s2)), truth)


# Infinite and nearly infinite KL.

NORMAL, UNIT = Normal(loc=0.0, scale=1.0), Uniform(low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("p", "q", "where"),
    [
        (NORMAL, UNIT, "-inf < x < 0 and 1 < x < inf"),
        (Exponential(rate=1.0), Pareto(scale=0.5, alpha=2.0), "0 < x < 0.5"),
        (Uniform(low=2.0, high=3.0), UNIT, "2 < x < 3"),
        (Cauchy(loc=0.0, scale=1.0), NORMAL, "approaches -inf"),
        (StudentT(df=2.0, loc=3e5, scale=1e-5), NORMAL, "approaches -inf"),
        (StudentT(df=1.9999, loc=0.0, scale=1.0), NORMAL, "approaches -inf"),
        (StudentT(df=0.9, loc=0.0, scale=1.0), Laplace(loc=0.0, scale=1e8), "approaches -inf"),
        (Laplace(loc=0.0, scale=1.0), Gumbel(loc=0.0, scale=1.0), "approaches -inf"),
        (
            StudentT(df=3.0, loc=0.0, scale=1.0),
            Gumbel(loc=0.0, scale=1.0),
            "approaches -inf",
        ),  # log q overflows at -710
        (StudentT(df=30.0, loc=0.0, scale=0.01), Gumbel(loc=5.0, scale=3.0), "approaches -inf"),
        (Pareto(scale=1.0, alpha=1.0), Exponential(rate=1.0), "approaches +inf"),
        (F(df1=3.0, df2=4.0), Rayleigh(scale=1.0), "approaches +inf"),
        (Exponential(rate=1.0), InverseGamma(concentration=1.0, rate=1.0), "approaches 0"),
        (Gamma(concentration=0.99, rate=1.0), InverseGamma(concentration=1.0, rate=1.0), "approaches 0"),
    ],
)
def test_infinite_kl_states_where(p, q, where):
    estimate = bound_of(p, q)
    assert estimate.value == inf
    assert estimate.interval == (inf, inf)
    assert where in estimate.warnings[0]


def test_nearly_infinite_tails_are_finite():
    """E_p[x^2] = df/(df - 2), E_p[x] and E_p[1/x] close to divergence."""
    for df in (2.5, 2.01, 2.0001):
        with mpmath.workdps(30):
            nu = mpf(df)
            entropy = (nu + 1) / 2 * (mpmath.digamma((nu + 1) / 2) - mpmath.digamma(nu / 2))
            entropy += mpmath.log(mpmath.sqrt(nu) * mpmath.beta(nu / 2, mpf(1) / 2))
            truth = nu / (nu - 2) / 2 + mpmath.log(2 * mpmath.pi) / 2 - entropy
        estimate = bound_of(StudentT(df=df, loc=0.0, scale=1.0), NORMAL)
        assert abs(mpf(estimate.value) - truth) <= estimate.error < 1e-3
    alpha = mpf(1.0001)
    estimate = bound_of(Pareto(scale=1.0, alpha=1.0001), Exponential(rate=1.0))
    assert abs(mpf(estimate.value) - (mpmath.log(alpha) - (alpha + 1) / alpha + alpha / (alpha - 1))) <= estimate.error
    a = mpf(1.01)
    estimate = bound_of(Gamma(concentration=1.01, rate=1.0), InverseGamma(concentration=1.0, rate=1.0))
    truth = (a + 1) * mpmath.digamma(a) - a - mpmath.loggamma(a) + 1 / (a - 1)
    assert_within_bound(estimate, truth)


@pytest.mark.parametrize("scale", [0.5, 0.9, 0.999])
def test_an_exponential_tail_against_an_exponential_of_an_exponential(scale):
    """E_p[e^-x] = 1 / (1 - scale^2), but log q overflows for x < -710."""
    estimate = bound_of(Laplace(loc=0.0, scale=scale), Gumbel(loc=0.0, scale=1.0))
    b = mpf(scale)
    truth = 1 / (1 - b**2) - 1 - mpmath.log(2 * b)
    assert abs(mpf(estimate.value) - truth) <= min(estimate.error, 3.0)
    assert estimate.status == ("unreliable" if scale > 0.99 else "bounded")


def test_tails_beyond_float64_are_unreliable():
    estimate = bound_of(Normal(loc=0.0, scale=1000.0), Gumbel(loc=0.0, scale=1.0))  # e^500000
    assert estimate.status == "unreliable"
    assert estimate.error == inf


# Detection of invalid densities.


def density(log_density, **options):
    return Density(lambda origin, offset: log_density(origin + offset), **options)


def normal(x, loc=0.0, scale=1.0):
    return -(((x - loc) / scale) ** 2) / 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def test_missed_mode_is_detected():
    hidden = density(lambda x: np.logaddexp(normal(x), normal(x, 1234.5, 1e-7)) - np.log(2), anchors=((0.0, 1.0),))
    plain = density(normal, anchors=((0.0, 1.0),))
    estimate = kl_quadrature(plain, hidden)
    assert estimate.status == "unreliable"
    assert "q integrates to 0.5" in estimate.warnings[0]


def test_unnormalized_density_is_detected():
    double = density(lambda x: normal(x) + np.log(2), anchors=((0.0, 1.0),))
    estimate = kl_quadrature(double, density(normal, anchors=((0.0, 1.0),)))
    assert estimate.status == "unreliable"
    assert "p integrates to 2" in estimate.warnings[0]


def test_masses_equal_to_one_up_to_rounding_keep_accuracy():
    off = density(lambda x: normal(x, 1e-3) + 1e-13, anchors=((0.0, 1.0),))
    assert kl_quadrature(density(normal, anchors=((0.0, 1.0),)), off).value == pytest.approx(5e-7, rel=1e-9)


def test_underflow_is_not_reported_as_a_support_gap():
    """log of exp(-x^2/2) is -inf from x = 39 on, where a Cauchy distribution has 1.6% of its mass."""

    def underflowing(x):
        with np.errstate(all="ignore"):
            return np.log(np.exp(normal(x)))

    poor = density(underflowing, anchors=((0.0, 1.0),))
    assert kl_quadrature(as_density(NORMAL), poor).status == "bounded"
    estimate = kl_quadrature(as_density(StudentT(df=5.0, loc=0.0, scale=1.0)), poor)
    truth = bound_of(StudentT(df=5.0, loc=0.0, scale=1.0), NORMAL).value
    assert estimate.status == "unreliable"
    assert estimate.value == pytest.approx(truth, abs=1e-3)


def test_unreachable_tolerance_is_unreliable():
    estimate = bound_of(NORMAL, Cauchy(loc=0.0, scale=1.0), error=1e-18)
    assert estimate.status == "unreliable"
    assert "above the acceptable error 1e-18" in estimate.warnings[0]


def test_nan_raises_and_states_where():
    broken = density(lambda x: np.where(x > 1, np.nan, normal(x)), anchors=((0.0, 1.0),))
    with pytest.raises(SupportError, match=r"nan at x = 1\.\d+"):
        kl_quadrature(broken, as_density(NORMAL))


def test_batch_raises():
    with pytest.raises(ShapeError, match=r"Normal's loc has shape \(2,\)"):
        as_density(Normal(loc=[0.0, 1.0], scale=1.0))


def test_ends_of_a_continuous_bernoulli():
    half, steep = ContinuousBernoulli(probs=0.5), ContinuousBernoulli(logits=700.0)
    truth = mpmath.log(mpf(700)) - mpmath.log1p(-mpmath.exp(-700)) - 1 + 700 / mpmath.expm1(700)
    assert_within_bound(bound_of(steep, half), truth)


def test_half_lines():
    """|x| of a Cauchy variable is sqrt of F(1, 1): KL equals the KL of the squares."""
    with mpmath.workdps(30):
        truth = mpmath.log((1 + mpf(2)) ** 2 / (4 * mpf(2)))
    assert_within_bound(bound_of(HalfCauchy(scale=1.0), HalfCauchy(scale=2.0)), truth)
    assert_within_bound(bound_of(F(df1=1.0, df2=1.0), F(df1=1.0, df2=1.0)), 0)


def test_steep_weibulls():
    p, q = Weibull(scale=1.0, concentration=0.1), Weibull(scale=2.0, concentration=5.0)
    with mpmath.workdps(40):
        k1, k2, ratio = mpf(0.1), mpf(5), mpf(1) / 2
        truth = mpmath.log(k1) - mpmath.log(k2 / mpf(2) ** k2) - (k1 - k2) * mpmath.euler / k1
        truth += ratio**k2 * mpmath.gamma(k2 / k1 + 1) - 1
    assert_within_bound(bound_of(p, q), truth)


@pytest.mark.parametrize("alpha", [0.0005, 0.002, 0.003, 0.05])
@pytest.mark.parametrize("scipy_objects", [False, True])
def test_a_tail_that_decays_slowly_is_not_infinite(alpha, scipy_objects):
    if scipy_objects:
        p, q = stats.pareto(alpha), stats.halfcauchy()
    else:
        p, q = families.Pareto(scale=1.0, alpha=alpha), families.HalfCauchy(scale=1.0)
    with mpmath.workdps(30):
        a = mpmath.mpf(alpha)
        # x = e^t, where t is exponential with the rate alpha.
        mean = mpmath.quad(lambda t: a * mpmath.exp(-a * t) * mpmath.log1p(mpmath.exp(-2 * t)), [0, 1, 10, 100]) + 2 / a
        truth = float(mpmath.log(a) - (a + 1) / a - mpmath.log(2 / mpmath.pi) + mean)
    estimate = measure(p, q)
    assert estimate.status == "bounded"
    assert abs(estimate.value - truth) <= estimate.error + 1e-14 * truth
    assert estimate.value == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (families.Weibull(scale=2.0, concentration=0.0048), families.Weibull(scale=2.0, concentration=0.00481)),
        (families.InverseGamma(concentration=0.0017, rate=2.0), families.InverseGamma(concentration=0.5, rate=2.0)),
        (families.Gumbel(loc=0.37, scale=0.72), families.Gumbel(loc=0.0, scale=0.0048)),
        (families.Normal(loc=0.0, scale=60.0), families.Gumbel(loc=0.0, scale=2.0)),
        (families.StudentT(df=0.01, loc=0.0, scale=1.0), families.StudentT(df=0.01, loc=0.0, scale=2.0)),
    ],
)
def test_an_integral_that_is_finite_beyond_float64_is_not_called_infinite(p, q):
    estimate = measure(p, q, method="quadrature")
    exact = measure(p, q)
    assert estimate.status in ("bounded", "unreliable")
    if estimate.status == "bounded":
        assert abs(estimate.value - exact.value) <= estimate.error + exact.error
    else:
        assert len(set(estimate.warnings)) == len(estimate.warnings) > 0


@pytest.mark.parametrize("q", [stats.gumbel_l(), stats.gumbel_r(), stats.loggamma(2)])
def test_an_integral_above_float64_has_no_finite_interval(q):
    # The mean of e^x is e^1800, and the right value is above the largest float64.
    estimate = measure(stats.norm(0, 60), q, method="quadrature")
    assert estimate.status == "unreliable"
    assert estimate.error == math.inf
    assert any("exceeds the float64 range" in warning for warning in estimate.warnings)


@pytest.mark.parametrize("concentration", [1e8, 1e12, 1e14])
@pytest.mark.parametrize("family", [Gamma, InverseGamma])
def test_the_bound_holds_for_narrow_distributions_at_a_small_distance(family, concentration):
    """KL is a phi(log(r)) for equal concentrations a and the ratio r of the rates."""
    rate, other = 7.0, 7.0 * (1 + 1 / concentration**0.5 / 10)
    estimate = measure(
        family(concentration=concentration, rate=rate),
        family(concentration=concentration, rate=other),
        method="quadrature",
    )
    with mpmath.workdps(50):
        ratio = mpmath.mpf(other) / mpmath.mpf(rate)
        truth = mpmath.mpf(concentration) * (ratio - 1 - mpmath.log(ratio))
        assert abs(mpmath.mpf(estimate.value) - truth) <= estimate.error + 1e-15 * truth


KINKS = [
    (Laplace, (-5.764743958602443, 0.38518716163232763), [0.24383778, 0.75616222], [-5.79620966, 2.61510864]),
    (Normal, (-0.5970996088090578, 2.9929521135443835), [0.73253, 0.26747], [9.003502043765847, -6.168992094911255]),
    (Laplace, (1.6306995733361234, 0.9908411488938067), [0.27023, 0.72977], [4.312157233453729, 12.718078311193901]),
    (Laplace, (-3.3, 5.38), [0.8928, 0.1072], [-2.8630470253133913, 0.6610776559113187]),
]


@pytest.mark.parametrize(("family", "p", "weights", "locs"), KINKS)
@pytest.mark.parametrize("scales", [(0.02314849, 0.023235), (0.013, 0.013), (0.0116, 0.01155)])
def test_kink_of_a_mixture_near_an_end_of_a_panel(family, p, weights, locs, scales):
    """log q of two narrow components is nearly two parabolas, whose crossing lies between two of their anchors."""
    q = NormalMixture(weights=weights, locs=locs, scales=scales)
    got = kl_quadrature(as_density(family(loc=p[0], scale=p[1])), as_density(q))
    with mpmath.workdps(30):
        loc, scale = map(mpmath.mpf, p)
        parts = [list(map(mpmath.mpf, values)) for values in (weights, locs, scales)]

        def component(x, k):
            weight, at, width = (values[k] for values in parts)
            return mpmath.log(weight / width) - ((x - at) / width) ** 2 / 2

        def integrand(x):
            z = abs(x - loc) / scale
            log_p = -z - mpmath.log(2) if family is Laplace else -z * z / 2 - mpmath.log(2 * mpmath.pi) / 2
            logs = sorted(component(x, k) for k in (0, 1))
            log_q = logs[1] + mpmath.log1p(mpmath.exp(logs[0] - logs[1])) - mpmath.log(2 * mpmath.pi) / 2
            return mpmath.exp(log_p) / scale * (log_p - mpmath.log(scale) - log_q)

        kink = mpmath.findroot(
            lambda x: component(x, 0) - component(x, 1), (parts[1][0], parts[1][1]), solver="anderson"
        )
        width = 1 / abs(mpmath.diff(lambda x: component(x, 0) - component(x, 1), kink))
        edges = {loc + k * scale for k in (-70, -30, -10, -3, 0, 3, 10, 30, 70)}
        edges |= {kink + k * width for k in (-60, -20, -5, 0, 5, 20, 60)} | set(parts[1])
        truth = mpmath.quad(integrand, sorted(edges))
    assert got.status == "bounded"
    assert abs(got.value - truth) <= got.error
