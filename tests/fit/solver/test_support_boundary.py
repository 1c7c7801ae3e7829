"""Fits at the bounds of the target's support, and fits without a minimum or with infinite KL."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse, measure
from kullback.errors import ParameterError, ShapeError, SupportError


@pytest.mark.slow
def test_uniform_has_the_bounds_of_the_target() -> None:
    uniform = fit_reverse(f.Uniform, target=stats.uniform(2, 3))
    assert (uniform.distribution.low, uniform.distribution.high, uniform.kl) == (2.0, 5.0, 0.0)
    arcsine = fit_reverse(f.Uniform, target=stats.beta(0.5, 0.5))
    assert (arcsine.distribution.low, arcsine.distribution.high) == (0.0, 1.0)
    assert arcsine.kl == pytest.approx(math.log(math.pi) - 1, abs=1e-12)
    # -log(b - 5) + (b - 5)/2 has its minimum at b = 7.
    shifted = fit_reverse(f.Uniform, target=stats.expon(5))
    assert (shifted.distribution.low, shifted.distribution.high) == pytest.approx((5, 7), abs=1e-9)
    assert shifted.kl == pytest.approx(1 - math.log(2), abs=1e-12)
    # -log b + 0.7 log b + b/2 has its minimum at b = 0.6.
    steep = fit_reverse(f.Uniform, target=stats.gamma(0.3))
    assert (steep.distribution.low, steep.distribution.high) == pytest.approx((0, 0.6), abs=1e-9)


@pytest.mark.slow
def test_uniform_fitted_to_a_smooth_target_has_one_minimum() -> None:
    """At both ends of the uniform, the log-density of the target is its mean over the uniform minus 1."""
    law = stats.skewnorm(5, 2, 3)
    fit = fit_reverse(f.Uniform, target=law)
    assert fit.converged
    assert len(fit.minima) == 1
    low, high = fit.distribution.low, fit.distribution.high
    x, w = np.polynomial.legendre.leggauss(200)
    mean = law.logpdf(low + (high - low) * (x + 1) / 2) @ w / 2
    assert law.logpdf([low, high]) == pytest.approx([mean - 1, mean - 1], abs=1e-7)


@pytest.mark.slow
def test_pareto_has_the_lower_bound_of_the_target() -> None:
    law = stats.pareto(1.5, scale=2.0)
    for fit in (fit_forward(f.Pareto, target=law), fit_reverse(f.Pareto, target=law)):
        assert fit.distribution.scale == 2.0
        assert fit.distribution.alpha == pytest.approx(1.5, abs=1e-10)
        assert fit.kl == pytest.approx(0, abs=1e-12)
    shifted = stats.gamma(2, loc=2)
    mean_log = stats.gamma(2).expect(lambda x: math.log1p(x / 2))
    assert fit_forward(f.Pareto, target=shifted).distribution.alpha == pytest.approx(1 / mean_log, rel=1e-8)


def test_forward_fit_of_two_components_to_three() -> None:
    three = f.NormalMixture(weights=[0.2, 0.3, 0.5], locs=[-6.0, 0.0, 7.0], scales=[0.5, 1.0, 2.0])
    near = f.NormalMixture(weights=[0.48, 0.52], locs=[-2.5, 7.0], scales=[3.0, 2.0])
    fit = fit_forward(f.NormalMixture, target=three, start=near)
    x = np.linspace(-20, 25, 4_501)

    def log_density(weights, locs, scales) -> np.ndarray:
        return np.log(np.exp(stats.norm.logpdf(x[:, None], locs, scales)) @ np.asarray(weights) + 1e-300)

    log_p = log_density(three.weights, three.locs, three.scales)
    fitted = fit.distribution

    def kl(at) -> float:
        weight = 1 / (1 + math.exp(-at[0]))
        log_q = log_density([weight, 1 - weight], at[1:3], np.exp(at[3:5]))
        return float(np.trapezoid(np.exp(log_p) * (log_p - log_q), x))

    at_fit = [math.log(fitted.weights[0] / fitted.weights[1]), *fitted.locs, *np.log(fitted.scales)]
    assert fit.kl == pytest.approx(kl(at_fit), abs=1e-9)
    assert optimize.approx_fprime(at_fit, kl, 1e-5) == pytest.approx(np.zeros(5), abs=2e-5)


def test_minimum_between_modes_of_unequal_weight_is_found() -> None:
    target = f.NormalMixture(
        weights=[0.17604778, 0.63766796, 0.18628426],
        locs=[-6.78211913, 4.6832683, 1.80587143],
        scales=[3.18141813, 0.36711982, 0.60222303],
    )
    minima = [(one.distribution.loc, one.kl) for one in fit_reverse(f.Normal, target=target).minima]
    assert any(
        loc == pytest.approx(3.0228765, abs=1e-4) and kl == pytest.approx(1.2833594, abs=1e-6) for loc, kl in minima
    )


def test_starts_are_members_of_the_family() -> None:
    fit = fit_reverse(f.Beta, target=stats.t(3))
    assert fit.converged
    assert fit.kl == pytest.approx(measure(fit.distribution, stats.t(3)).value, rel=1e-10)
    u, w = np.polynomial.legendre.leggauss(400)
    x = np.sin((u + 1) * math.pi / 4) ** 2  # nodes concentrated near both bounds
    w = w * math.pi / 4 * np.sin((u + 1) * math.pi / 2)

    def kl(at) -> float:
        log_q = stats.beta.logpdf(x, *np.exp(at))
        return float(w @ (np.exp(log_q) * (log_q - stats.t.logpdf(x, 3))))

    best = optimize.minimize(kl, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    assert fit.kl == pytest.approx(best.fun, abs=1e-9)


@pytest.mark.slow
def test_fit_to_a_limit_of_the_family_does_not_converge() -> None:
    """The Poisson distribution is the limit of negative binomials with an infinite total_count."""
    fit = fit_reverse(f.NegativeBinomial, target=stats.poisson(5))
    assert not fit.converged
    assert len(fit.minima) == 1
    assert fit.distribution.total_count > 1000


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: fit_reverse(f.Poisson, target=stats.t(3)), "the family is discrete and the target is continuous"),
        (lambda: fit_alpha(f.Poisson, target=stats.norm(3, 1), alpha=0.5), "the family is discrete"),
        (lambda: fit_reverse(f.Normal, target=stats.poisson(5)), "the target is discrete and the family is continuous"),
        (lambda: fit_forward(f.Beta, target=stats.t(3)), r"within Beta's support \(0.0, 1.0\).*inf for every member"),
        (lambda: fit_forward(f.Gamma, target=stats.norm(9, 1)), "within Gamma's support"),
        (lambda: fit_reverse(f.Beta, target=stats.uniform(2, 3)), "with mass within Beta's support"),
        (lambda: fit_forward(f.Pareto, target=stats.norm()), "above 0"),
        (lambda: fit_forward(f.Logistic, target=stats.cauchy()), "is finite, but"),
        (lambda: fit_reverse(f.StudentT, target=stats.gumbel_r()), "tails too heavy"),
    ],
)
def test_errors_of_infinite_kl(fit, message) -> None:
    with pytest.raises(SupportError, match=message):
        fit()


def test_forward_fit_to_multivariate_samples() -> None:
    x = np.random.default_rng(0).normal(size=(400, 3)) @ np.asarray([[1.0, 0.5, 0.2], [0.0, 1.0, 0.3], [0.0, 0.0, 0.5]])
    full = fit_forward(f.MultivariateNormal, samples=x)
    law = stats.multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True))
    assert full.diagnostics["cross_entropy"] == pytest.approx(-law.logpdf(x).mean(), rel=1e-12)
    low = fit_forward(f.LowRankMultivariateNormal, samples=x, components=1)
    fitted = low.distribution
    covariance = fitted.cov_factor @ fitted.cov_factor.T + np.diag(fitted.cov_diag)
    assert low.diagnostics["cross_entropy"] == pytest.approx(
        -stats.multivariate_normal(fitted.loc, covariance).logpdf(x).mean(), rel=1e-10
    )
    # In three dimensions a factor of rank one plus a diagonal has as many parameters as a covariance.
    assert low.diagnostics["cross_entropy"] == pytest.approx(full.diagnostics["cross_entropy"], abs=1e-6)


@pytest.mark.parametrize("fit", [fit_forward, fit_reverse])
def test_errors_of_unknown_fixed_parameters(fit) -> None:
    with pytest.raises(ParameterError, match="to name parameters of Normal"):
        fit(f.Normal, target=stats.norm(), fixed={"foo": 1.0})


def test_errors_of_missing_arguments() -> None:
    with pytest.raises(ShapeError, match=r"\(n, d\) for the multivariate family MultivariateNormal"):
        fit_forward(f.MultivariateNormal, samples=[1.0, 2.0, 4.0])
    with pytest.raises(ParameterError, match="components="):
        fit_forward(f.NormalMixture, target=stats.norm())
