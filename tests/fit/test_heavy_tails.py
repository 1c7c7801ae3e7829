"""Reverse and tempered fits to targets with heavy tails, against SciPy's quadrature, closed forms and mpmath."""

import math

import mpmath
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse, fit_tempered
from kullback.densities.tails import mass_beyond_reach
from kullback.errors import SupportError
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise
from kullback.fit.solver.trust_region import fisher_basis
from kullback.fit.targets import normalise, power, univariate_density


def best_normal_for_student(df: float, exponent: float = 1.0) -> tuple[float, float]:
    """The scale and the KL of the normal with mean 0 that is nearest to the power of a Student t, by SciPy."""
    degrees = exponent * (df + 1) - 1  # the power of a Student t is a scaled Student t
    log_norm = float(stats.t(degrees).logpdf(0)) + math.log((degrees / df) ** 0.5)

    def log_target(x: float) -> float:
        return log_norm - exponent * (df + 1) / 2 * math.log1p(x * x / df)

    def kl(log_scale: float) -> float:
        scale = math.exp(log_scale)
        mean, _ = integrate.quad(
            lambda z: stats.norm.pdf(z) * log_target(scale * z), -38, 38, points=[-1, 0, 1], epsabs=1e-13, limit=400
        )
        return -log_scale - 0.5 * math.log(2 * math.pi * math.e) - mean

    found = optimize.minimize_scalar(kl, bracket=(0.0, 1.0), tol=1e-9)
    return math.exp(found.x), float(found.fun)


@pytest.mark.slow
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (3.0, 1e-6), (-1e6, 1.0), (1e3, 1e9), (0.0, 1e-100)])
@pytest.mark.parametrize("df", [0.5, 1.0, 2.0, 3.0])
def test_student_targets_at_any_location_and_unit(df: float, loc: float, scale: float) -> None:
    best_scale, best_kl = best_normal_for_student(df)
    fit = fit_reverse(f.Normal, target=f.StudentT(df=df, loc=loc, scale=scale))
    assert fit.converged
    assert fit.distribution.scale == pytest.approx(best_scale * scale, rel=1e-6)
    assert fit.distribution.loc == pytest.approx(loc, abs=1e-6 * scale)
    assert fit.kl == pytest.approx(best_kl, abs=1e-10)
    assert fit.estimate.status == "bounded"


def test_the_values_of_a_cauchy() -> None:
    assert best_normal_for_student(1.0) == pytest.approx((1.633978, 0.1827583), abs=1e-6)
    fits = [
        fit_reverse(f.Normal, target=f.Cauchy(loc=0.0, scale=1.0)),
        fit_reverse(f.Normal, log_prob=lambda x: -np.log1p(x**2)),
        fit_reverse(f.Normal, log_prob=lambda x: -np.log1p(((x - 3) / 1e-6) ** 2)),
        fit_tempered(f.Normal, target=f.Cauchy(loc=0.0, scale=1.0), exponents=[0.75, 1.0])[-1],
    ]
    for fit, unit in zip(fits, (1.0, 1.0, 1e-6, 1.0), strict=True):
        assert fit.converged
        assert fit.distribution.scale == pytest.approx(1.6339784 * unit, rel=1e-6)
        assert fit.kl == pytest.approx(0.1827583087, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.55, 0.6, 0.75])
def test_powers_of_a_cauchy(exponent: float) -> None:
    best_scale, best_kl = best_normal_for_student(1.0, exponent)
    first, last = fit_tempered(f.Normal, target=f.Cauchy(loc=0.0, scale=1.0), exponents=[exponent, 1.0])
    assert first.converged
    assert last.converged
    assert first.distribution.scale == pytest.approx(best_scale, rel=1e-6)
    assert first.kl == pytest.approx(best_kl, abs=1e-9)
    # The integral of (1 + x^2)^-t is B(1/2, t - 1/2).
    evidence = mpmath.log(mpmath.beta(0.5, mpmath.mpf(exponent) - 0.5)) - exponent * mpmath.log(mpmath.pi)
    assert first.diagnostics["log_evidence"] == pytest.approx(float(evidence), abs=1e-11)
    assert last.distribution.scale == pytest.approx(1.6339784, rel=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 0.4, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e100])
def test_a_power_without_a_finite_integral(exponent: float, scale: float) -> None:
    message = f"at exponent {exponent:g}: .*finite integral.* diverges as x approaches"
    with pytest.raises(SupportError, match=message):
        fit_tempered(f.Normal, target=f.Cauchy(loc=0.0, scale=scale), exponents=[exponent, 1.0])
    if exponent == 1e-3:  # the square of x overflows before the function has decreased by one nat
        return
    with pytest.raises(SupportError, match=message), np.errstate(over="ignore"):
        fit_tempered(f.Normal, log_prob=lambda x: -np.log1p((x / scale) ** 2), exponents=[exponent, 1.0])


@pytest.mark.slow
def test_a_power_with_a_pole_that_is_not_integrable() -> None:
    gamma = f.Gamma(concentration=0.4, rate=1.0)  # x^(-0.6 t) diverges at 0 for t >= 5/3
    [fit] = fit_tempered(f.Gamma, target=gamma, exponents=[1.5])
    assert fit.distribution.concentration == pytest.approx(0.1, rel=1e-9)
    with pytest.raises(SupportError, match="diverges as x approaches 0"):
        fit_tempered(f.Gamma, target=gamma, exponents=[1.8])


@pytest.mark.parametrize("excess", [1e-3, 0.02])
def test_the_mass_beyond_float64_is_a_part_of_the_integral(excess: float) -> None:
    # x^-(1 + excess) for x > 1 has the integral 1 / excess, of which 500^-excess lies beyond the reach of the nodes.
    found = normalise(lambda x: -(1 + excess) * np.log(x), (1.0, math.inf))
    assert found.log_evidence == pytest.approx(-math.log(excess), abs=found.error + 1e-9)


@pytest.mark.slow
def test_an_integral_at_distances_beyond_float64_is_unreliable() -> None:
    # The integral of 1 / (x log(x)^2) beyond x is 1 / log(x): 0.14% of it lies beyond 1e308.
    with np.errstate(all="ignore"):
        fit = fit_reverse(f.Normal, log_prob=lambda x: -np.log(x * x + 8) / 2 - 2 * np.log(np.log(x * x + 8)))
    assert fit.estimate.status == "unreliable"
    assert not fit.converged


def test_the_mass_of_a_power_tail_beyond_its_reach() -> None:
    density = power(univariate_density(f.Cauchy(loc=0.0, scale=1.0)), 0.51).density
    mass, error = mass_beyond_reach(density, 0.0, 1.0, 1)
    farthest = mpmath.exp(690)
    with mpmath.workdps(30):
        norm = mpmath.beta(0.5, mpmath.mpf(0.51) - 0.5)
        exact = farthest ** (1 - 2 * mpmath.mpf(0.51)) / (2 * mpmath.mpf(0.51) - 1) / norm
    assert mass == pytest.approx(float(exact), rel=1e-9)
    assert error < 1e-9 * mass


# A Levy distribution is inverse gamma with concentration 1/2. Against an inverse gamma with concentration a and rate b,
# E_q[log p] of a lognormal and of a gamma distribution has a closed form: E[log x] and E[1/x] are known.


def kl_of_log_normal(loc: float, scale: float, a: float, b: float) -> float:
    log_p = a * math.log(b) - math.lgamma(a) - (a + 1) * loc - b * math.exp(-loc + scale**2 / 2)
    return -loc - math.log(scale) - 0.5 * math.log(2 * math.pi * math.e) - log_p


def kl_of_gamma(shape: float, rate: float, a: float, b: float) -> float:
    mean_log = float(mpmath.digamma(shape)) - math.log(rate)
    log_p = a * math.log(b) - math.lgamma(a) - (a + 1) * mean_log - b * rate / (shape - 1)
    return -float(stats.gamma(shape, scale=1 / rate).entropy()) - log_p


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e9])
@pytest.mark.parametrize("concentration", [0.3, 0.5, 1.0])
def test_inverse_gamma_targets(concentration: float, unit: float) -> None:
    target = stats.levy(scale=2 * unit) if concentration == 0.5 else stats.invgamma(concentration, scale=unit)
    fit = fit_reverse(f.LogNormal, target=target)
    found = optimize.minimize(
        lambda v: kl_of_log_normal(v[0], math.exp(v[1]), concentration, 1.0), [1.0, 0.0], tol=1e-12
    )
    assert fit.converged
    assert (fit.distribution.loc - math.log(unit), math.log(fit.distribution.scale)) == pytest.approx(found.x, abs=1e-4)
    assert fit.kl == pytest.approx(found.fun, abs=1e-9)
    fit = fit_reverse(f.Gamma, target=target)
    found = optimize.minimize(
        lambda v: kl_of_gamma(1 + math.exp(v[0]), math.exp(v[1]), concentration, 1.0), [0.0, 0.0], tol=1e-12
    )
    assert fit.converged
    assert fit.distribution.concentration == pytest.approx(1 + math.exp(found.x[0]), rel=1e-4)
    assert fit.distribution.rate * unit == pytest.approx(math.exp(found.x[1]), rel=1e-4)
    assert fit.kl == pytest.approx(found.fun, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_pareto_targets(alpha: float) -> None:
    target = f.Pareto(scale=1e-5, alpha=alpha)
    fit = fit_reverse(f.Pareto, target=target)
    assert fit.converged
    assert fit.distribution.alpha == pytest.approx(alpha, rel=1e-9)
    uniform = fit_reverse(f.Uniform, target=target)

    def kl(log_ratio: float) -> float:  # of the uniform on (1, b) in units of the scale
        b = math.exp(log_ratio)
        mean_log = b * log_ratio / (b - 1) - 1
        return -math.log(b - 1) - math.log(alpha) + (alpha + 1) * mean_log

    found = optimize.minimize_scalar(kl, bounds=(0.01, 20), method="bounded", options={"xatol": 1e-10})
    assert uniform.converged
    assert uniform.distribution.high == pytest.approx(1e-5 * math.exp(found.x), rel=1e-4)
    assert uniform.kl == pytest.approx(found.fun, abs=1e-9)


@pytest.mark.slow
def test_a_tempered_levy_of_which_most_mass_is_far_away() -> None:
    # The power 0.7 is an inverse gamma distribution with concentration 0.05 and rate 0.35.
    fits = fit_tempered(f.LogNormal, target=stats.levy(), exponents=[0.7, 1.0])
    for fit, (a, b) in zip(fits, [(0.05, 0.35), (0.5, 0.5)], strict=True):
        # At the minimum, scale^2 = 1 / a and b exp(-loc + scale^2 / 2) = a.
        loc, scale = math.log(b / a) + 1 / (2 * a), a**-0.5
        assert fit.converged
        assert (fit.distribution.loc, fit.distribution.scale) == pytest.approx((loc, scale), rel=1e-6)
        assert fit.kl == pytest.approx(kl_of_log_normal(loc, scale, a, b), abs=1e-9)


def test_a_family_whose_kl_is_infinite_everywhere() -> None:
    with pytest.raises(SupportError, match="inf at each"):  # E[1/x] of a half-normal is infinite
        fit_reverse(f.HalfNormal, target=stats.levy())


# A start of any scale, and coordinates of any unit


@pytest.mark.slow
@pytest.mark.parametrize("family", [f.Normal, f.Laplace, f.StudentT])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_start_of_another_scale(family: type, scale: float) -> None:
    fixed = {"df": 4.0} if family is f.StudentT else {}
    target = f.Cauchy(loc=0.0, scale=1.0)
    expected = fit_reverse(family, target=target, fixed=fixed, start=family(loc=0.1, scale=1.5, **fixed))
    fit = fit_reverse(family, target=target, fixed=fixed, start=family(loc=0.0, scale=scale, **fixed))
    assert fit.converged
    assert fit.distribution.scale == pytest.approx(expected.distribution.scale, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-250, 1e-30, 1.0, 1e30, 1e250])
@pytest.mark.parametrize("family", [f.Normal, f.StudentT])
def test_the_model_does_not_depend_on_the_unit_of_the_coordinates(family: type, scale: float) -> None:
    fixed = {"df": 4.0} if family is f.StudentT else {}
    member = family(loc=0.3, scale=1.1, **fixed)
    target = univariate_density(f.Cauchy(loc=0.0, scale=1.0))
    models = []
    for unit in (1.0, scale):
        parametrisation = parametrise(family, family(loc=0.0, scale=unit, **fixed), fixed)
        objective = univariate_objective(parametrisation, target, alpha=0.0)
        models.append(objective.quadratic_model(parametrisation.to_vector(member)))
    first, second = models
    newton = [np.linalg.solve(model.hessian, model.gradient) for model in models]
    assert second.value == pytest.approx(first.value, rel=1e-12)
    assert float(second.gradient @ newton[1]) == pytest.approx(float(first.gradient @ newton[0]), rel=1e-6)


def test_the_fisher_basis_of_coordinates_of_any_units() -> None:
    metric = np.asarray([[2.0, 0.6], [0.6, 1.0]])
    for unit in (1e-20, 1.0, 1e20):
        units = np.diag([unit, 1.0])
        basis = fisher_basis(units @ metric @ units)
        np.testing.assert_allclose(basis.T @ units @ metric @ units @ basis, np.eye(2), atol=1e-12)


def laplace_to_gumbel(loc, scale):
    """KL(Laplace(0, 1) || Gumbel(loc, scale)), which is infinite for scale <= 1."""
    return -1 - math.log(2) + math.log(scale) - loc / scale + math.exp(loc / scale) / (1 - scale**-2)


@pytest.mark.parametrize(("center", "unit"), [(0.0, 1.0), (-3.0, 0.01), (1e5, 40.0)])
def test_members_with_lighter_tails_than_the_target_are_no_starts(center, unit):
    # KL(Laplace || Gumbel) is finite only if the scale of the Gumbel is larger, and matched quantiles give less.
    target = f.Laplace(loc=center, scale=unit)
    loc, scale = -0.7022861679397482, math.sqrt(3)  # the roots of the derivatives
    for fit in (fit_forward(f.Gumbel, target=target), fit_alpha(f.Gumbel, target=target, alpha=1.0)):
        assert fit.converged
        assert fit.kl == pytest.approx(laplace_to_gumbel(loc, scale), rel=1e-9)
        assert (fit.distribution.loc - center) / unit == pytest.approx(loc, abs=1e-5)
        assert fit.distribution.scale / unit == pytest.approx(scale, rel=1e-5)
    moved = [laplace_to_gumbel(loc + x, scale + y) for x, y in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))]
    assert min(moved) > laplace_to_gumbel(loc, scale)


@pytest.mark.parametrize(("family", "target", "alpha"), [(f.Logistic, f.Cauchy, 1.0), (f.Cauchy, f.Logistic, 0.0)])
def test_a_divergence_that_is_infinite_for_every_member_is_refused(family, target, alpha):
    target = target(loc=0.0, scale=1.0)
    with pytest.raises(SupportError, match=r"diverges to \+inf"):
        fit_alpha(family, target=target, alpha=alpha)
    assert fit_alpha(family, target=target, alpha=1 - alpha).estimate.status == "bounded"
