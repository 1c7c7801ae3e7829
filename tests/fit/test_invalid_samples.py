"""Samples and weights that have no fit: each raises an error of one line, or gives the right value."""

import numpy as np
import pandas as pd
import pytest

from kullback import families as f
from kullback.errors import ArrayTypeError, LabelError, ShapeError, SupportError
from kullback.fit import fit_forward

INVALID = {
    "zero in gamma": (f.Gamma, [0.0, 2.0, 3.0], SupportError, r"samples\[0\] is 0.0, at an end"),
    "zero in weibull": (f.Weibull, [1.0, 0.0, 3.0], SupportError, r"samples\[1\] is 0.0, at an end"),
    "zero in beta": (f.Beta, [0.5, 0.0, 0.25], SupportError, r"samples\[1\] is 0.0, at an end"),
    "two in beta": (f.Beta, [0.5, 2.0, 0.25], SupportError, r"samples\[1\] is 2.0, outside"),
    "negative category": (f.Categorical, [1, -1], SupportError, r"samples\[1\] is -1.0"),
    "fractional category": (f.Categorical, [0.5, 1], SupportError, r"samples\[0\] is 0.5"),
    "huge category": (f.Categorical, [1, 1e12], SupportError, r"samples\[1\] is 1000000000000.0"),
    "no columns": (f.MultivariateNormal, np.zeros((3, 0)), ShapeError, "d > 0"),
    "complex": (f.Normal, [1j, 2.0], ArrayTypeError, "real samples"),
    "nan": (f.Normal, [1.0, np.nan], SupportError, r"samples\[1\] is nan"),
    "two in bernoulli": (
        f.Bernoulli,
        [0, 1, 2],
        SupportError,
        r"support \(0.0, 1.0\) of whole numbers, but samples\[2\]",
    ),
    "negative count": (f.Poisson, [-1, 1], SupportError, r"support \(0.0, inf\) of whole numbers, but samples\[0\]"),
    "one sample": (f.Normal, [1.0], SupportError, "samples that differ"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_samples(name):
    family, samples, error, message = INVALID[name]
    with pytest.raises(error, match=message) as raised:
        fit_forward(family, samples=samples)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [0.0] * 3, [1.0, np.nan, 0.0], [1.0, np.inf, 0.0]], ids=str)
def test_invalid_weights(weights):
    with pytest.raises(SupportError, match="finite weights"):
        fit_forward(f.Normal, samples=[1.0, 2.0, 3.0], weights=weights)


def test_weights_whose_sum_overflows():
    fit = fit_forward(f.Normal, samples=[1.0, 2.0, 3.0], weights=[1e308, 1e308, 1e308])
    assert fit.distribution.loc == pytest.approx(2.0, rel=1e-15)


def test_weights_with_labels_are_matched_with_the_samples():
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0.0, 1.0, 5.0], "weight": [1.0, 1.0, 2.0]})
    weights = table["weight"].iloc[::-1]
    fit = fit_forward(f.Normal, samples=table["x"], weights=weights)
    assert fit.distribution == fit_forward(f.Normal, samples=[1.0, 2.0, 3.0], weights=[1.0, 1.0, 2.0]).distribution
    vectors = fit_forward(f.MultivariateNormal, samples=table[["x", "y"]], weights=weights)
    np.testing.assert_allclose(vectors.distribution.loc, [2.25, 2.75], rtol=1e-15)
    with pytest.raises(LabelError, match="label 0 is missing"):
        fit_forward(f.Normal, samples=table["x"], weights=weights.set_axis([5, 6, 7]))
    with pytest.raises(ArrayTypeError, match="expected weights without labels"):
        fit_forward(f.Normal, samples=[1.0, 2.0, 3.0], weights=weights)
