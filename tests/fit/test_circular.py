"""Fits of the von Mises distribution: angles outside (-pi, pi]."""

import numpy as np
import pytest
from scipy import stats

from kullback import families as f
from kullback import fit_forward
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
