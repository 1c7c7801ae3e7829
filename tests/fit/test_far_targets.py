"""Reverse fits to log-densities far from 0 and of widths far from 1."""

import math

import numpy as np
import pytest

from kullback import families as f
from kullback import fit_reverse, fit_tempered
from kullback.fit.targets import normalise


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("family", [f.Normal, f.Laplace])
def test_widths_far_from_one(family, scale):
    power = 2 if family is f.Normal else 1
    fit = fit_reverse(family, log_prob=lambda z: -(np.abs(z / scale) ** power) / power)
    assert fit.converged
    assert fit.distribution.scale == pytest.approx(scale, rel=1e-9)
    assert fit.kl == pytest.approx(0.0, abs=1e-12)
    integral = scale * (math.sqrt(2 * math.pi) if power == 2 else 2)
    assert fit.diagnostics["log_evidence"] == pytest.approx(math.log(integral), rel=1e-12)


def test_the_integral_of_a_density_with_rounding_noise():
    def log_prob(u):
        return -np.abs((1e6 + 0.505 * u) - 1e6)

    assert normalise(log_prob, (-math.inf, math.inf)).log_evidence == pytest.approx(math.log(2 / 0.505), abs=1e-6)


@pytest.mark.slow
def test_a_location_of_a_million():
    fit = fit_reverse(f.Laplace, log_prob=lambda z: -np.abs(z - 1e6))
    assert fit.distribution.loc == pytest.approx(1e6, abs=1e-6)
    assert fit.distribution.scale == pytest.approx(1.0, rel=1e-6)
    assert fit.kl == pytest.approx(0.0, abs=1e-6)


def two_normals(distance: float):
    """The log-density of 0.3 N(0, 1) + 0.7 N(distance, 1)."""

    def log_prob(x):
        with np.errstate(over="ignore"):
            return np.logaddexp(math.log(0.3) - x**2 / 2, math.log(0.7) - (x - distance) ** 2 / 2)

    return log_prob


@pytest.mark.parametrize("distance", [20.0, 1e3, 1e4, 1e6, 1e9])
def test_modes_at_any_distance_of_a_tempered_target(distance):
    target = f.NormalMixture(weights=[0.3, 0.7], locs=[0.0, distance], scales=[1.0, 1.0])
    half, whole = fit_tempered(f.Normal, target=target, exponents=[0.5, 1.0])
    # The overlap of the components is negligible at a distance of 20 and more. The integral of p^(1/2) is then
    # (0.3^(1/2) + 0.7^(1/2)) times that of a normal density, and the best normal is the heavier component.
    root = 0.3**0.5 + 0.7**0.5
    assert half.kl == pytest.approx(math.log(root / 0.7**0.5), abs=1e-4)
    assert half.diagnostics["log_evidence"] == pytest.approx(math.log(root * (8 * math.pi) ** 0.25), abs=1e-4)
    assert whole.kl == pytest.approx(-math.log(0.7), abs=1e-9)
    assert whole.diagnostics["log_evidence"] == pytest.approx(0.0, abs=1e-12)
    assert whole.distribution.loc == pytest.approx(distance, rel=1e-9)
    assert half.converged
    assert whole.converged
    assert whole.estimate.status == "bounded"


def test_two_equal_modes_far_apart():
    target = f.NormalMixture(weights=[0.5, 0.5], locs=[0.0, 1e4], scales=[1.0, 1.0])
    [fit] = fit_tempered(f.Normal, target=target, exponents=[1.0])
    assert fit.kl == pytest.approx(math.log(2), rel=1e-12)
    assert fit.kl == pytest.approx(fit_reverse(f.Normal, target=target).kl, rel=1e-12)
    assert len(fit.minima) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("distance", [20.0, 1e3, 1e4, -1e4, 1e6])
def test_modes_at_any_distance_of_a_log_density(distance):
    fit = fit_reverse(f.Normal, log_prob=two_normals(distance))
    assert fit.diagnostics["log_evidence"] == pytest.approx(math.log(2 * math.pi) / 2, abs=1e-9)
    assert fit.kl == pytest.approx(-math.log(0.7), abs=1e-9)
    assert fit.distribution.loc == pytest.approx(distance, rel=1e-9)
    assert fit.converged


def test_modes_farther_than_float64_resolves_their_width_are_unreliable():
    fit = fit_reverse(f.Normal, log_prob=two_normals(1e9))
    assert fit.diagnostics["log_evidence"] == pytest.approx(math.log(2 * math.pi) / 2, abs=1e-6)
    assert fit.estimate.status == "unreliable"


@pytest.mark.parametrize("exponent", [0.1, 10.0, 1e4])
def test_powers_of_a_gamma_distribution_with_a_narrow_mode(exponent):
    [fit] = fit_tempered(f.Gamma, target=f.Gamma(concentration=3.0, rate=1.0), exponents=[exponent])
    concentration, rate = 1 + 2 * exponent, exponent
    assert fit.distribution.concentration == pytest.approx(concentration, rel=1e-6)
    assert fit.distribution.rate == pytest.approx(rate, rel=1e-6)
    evidence = math.lgamma(concentration) - concentration * math.log(rate) - exponent * math.log(2)
    assert fit.diagnostics["log_evidence"] == pytest.approx(evidence, rel=1e-11)
