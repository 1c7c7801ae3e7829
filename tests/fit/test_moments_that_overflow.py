"""Samples for which a moment is 0 or overflows are refused or fitted, without an exception of arithmetic."""

import pytest

from kullback import families as f
from kullback import fit_forward
from kullback.errors import KullbackError, SupportError


@pytest.mark.parametrize("family", [f.Gamma, f.Exponential, f.InverseGamma, f.NegativeBinomial, f.Weibull])
def test_samples_with_a_mean_of_zero_are_outside_the_support(family: type[f.Distribution]) -> None:
    with pytest.raises(SupportError, match=r"samples\[0\] is -1\.0"):
        fit_forward(family, samples=[-1.0, 1.0])


@pytest.mark.parametrize("samples", [[1e200, 2e200], [1e-300, 1e300]])
def test_the_square_of_a_mean_may_overflow(samples: list[float]) -> None:
    with pytest.raises(KullbackError):
        fit_forward(f.NegativeBinomial, samples=samples)
