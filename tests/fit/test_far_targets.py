"""Reverse fits to log-densities far from 0 and of widths far from 1."""

import math

import numpy as np
import pytest

from kullback import families as f
from kullback import fit_reverse
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

    assert normalise(log_prob, (-math.inf, math.inf))[1] == pytest.approx(math.log(2 / 0.505), abs=1e-6)


@pytest.mark.slow
def test_a_location_of_a_million():
    fit = fit_reverse(f.Laplace, log_prob=lambda z: -np.abs(z - 1e6))
    assert fit.distribution.loc == pytest.approx(1e6, abs=1e-6)
    assert fit.distribution.scale == pytest.approx(1.0, rel=1e-6)
    assert fit.kl == pytest.approx(0.0, abs=1e-6)
