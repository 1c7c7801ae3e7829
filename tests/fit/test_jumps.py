"""Reverse fits to log-densities that jump to -inf, whose support is not passed."""

import math

import numpy as np
import pytest

from kullback import fit_reverse
from kullback.errors import SupportError
from kullback.families import Laplace, Normal, Uniform


def truncated(low: float, high: float):
    """The log-density -|x - low| between two points, and -inf outside."""
    return lambda x: np.where((x > low) & (x < high), -abs(x - low), -np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("low", [0.0, 100.0, -3.7])
def test_a_uniform_fit_to_an_exponential_target(low: float) -> None:
    fit = fit_reverse(Uniform, log_prob=truncated(low, math.inf))
    # KL(Uniform(0, b) || Exponential(1)) = b/2 - log b, at its minimum for b = 2
    assert fit.kl == pytest.approx(1 - math.log(2), rel=1e-9)
    assert fit.estimate.status == "bounded"
    assert fit.diagnostics["log_evidence"] == pytest.approx(0.0, abs=1e-10)


@pytest.mark.slow
def test_a_target_between_two_jumps() -> None:
    fit = fit_reverse(Uniform, log_prob=truncated(2.0, 5.0))
    assert fit.diagnostics["log_evidence"] == pytest.approx(math.log(-math.expm1(-3.0)), rel=1e-12)
    assert fit.kl == pytest.approx(math.log(-math.expm1(-3.0)) + 1 - math.log(2), rel=1e-9)  # the optimum is (2, 4)


@pytest.mark.parametrize("family", [Normal, Laplace])
@pytest.mark.parametrize(("low", "support"), [(0.0, r"\(0\.0, inf\)"), (100.0, r"\(100\.0, inf\)")])
def test_a_family_beyond_the_jump_is_refused_with_the_support(family: type, low: float, support: str) -> None:
    with pytest.raises(SupportError, match=f"mass outside the target's support {support}"):
        fit_reverse(family, log_prob=truncated(low, math.inf))


def test_a_density_that_underflows_has_no_jump() -> None:
    with np.errstate(divide="ignore"):
        fit = fit_reverse(Normal, log_prob=lambda x: np.log(np.exp(-x * x / 2)))
    assert fit.kl < 1e-20
