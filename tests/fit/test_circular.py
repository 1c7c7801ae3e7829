"""Fits of the von Mises distribution: angles outside (-pi, pi], and locations on the circle."""

import numpy as np
import pytest
from scipy import optimize, stats

from kullback import families as f
from kullback import fit_forward, fit_reverse
from kullback.errors import SupportError


def test_angles_outside_the_circle_are_refused_with_the_way_to_wrap_them():
    x = np.random.default_rng(0).vonmises(3.0, 2.0, 50)
    with pytest.raises(SupportError, match=r"wrap the angles into \(-pi, pi\], by \(x \+ pi\) % \(2 \* pi\) - pi$"):
        fit_forward(f.VonMises, samples=x % (2 * np.pi))
    wrapped = fit_forward(f.VonMises, samples=(x % (2 * np.pi) + np.pi) % (2 * np.pi) - np.pi).distribution
    concentration, loc, _ = stats.vonmises.fit(x, fscale=1)
    assert wrapped.loc == pytest.approx(loc, abs=1e-6)
    assert wrapped.concentration == pytest.approx(concentration, rel=1e-6)


def test_a_target_outside_the_circle_is_refused_with_the_way_to_wrap_it():
    with pytest.raises(SupportError, match=r"got a target with support \(0.0, 6.28.*wrapped into \(-pi, pi\]"):
        fit_forward(f.VonMises, target=f.Uniform(low=0.0, high=2 * np.pi))


@pytest.mark.parametrize("loc", [1.0, -1.0, 3.1415, np.pi, 4.0])
def test_a_location_is_on_the_circle_and_its_minimum_is_listed_once(loc):
    fit = fit_reverse(f.VonMises, target=stats.vonmises(1.5, loc))
    assert len(fit.minima) == 1
    assert -np.pi < fit.distribution.loc <= np.pi
    assert np.cos(fit.distribution.loc - loc) == pytest.approx(1, abs=1e-12)
    assert all(-np.pi < step.distribution.loc <= np.pi for step in fit.path)


def test_a_minimum_on_both_sides_of_pi_is_listed_once():
    """The optimum of a bimodal target that is symmetric about pi, by SciPy."""
    z = np.linspace(-np.pi, np.pi, 4001)[1:]

    def log_prob(x):
        return np.logaddexp(2 * np.cos(x - 2.6), 2 * np.cos(x + 2.6))

    fit = fit_reverse(f.VonMises, log_prob=log_prob, support=(-np.pi, np.pi))
    log_p = log_prob(z) - np.log(np.exp(log_prob(z)).mean() * 2 * np.pi)

    def kl(v):
        q = stats.vonmises(np.exp(v[1]), v[0])
        return float((q.pdf(z) * (q.logpdf(z) - log_p)).mean() * 2 * np.pi)

    expected = optimize.minimize(kl, [3.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14})
    assert fit.kl == pytest.approx(expected.fun, abs=1e-9)
    near = [m for m in fit.minima if np.cos(m.distribution.loc) < -0.99]
    assert len(near) == 1
