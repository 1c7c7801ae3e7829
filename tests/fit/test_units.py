"""A fit does not depend on the unit of the samples or of the target: its parameters scale with the unit."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kullback import fit_forward, fit_reverse
from kullback.errors import SupportError
from kullback.families import (
    Cauchy,
    Gamma,
    Gumbel,
    HalfNormal,
    InverseGaussian,
    Logistic,
    Maxwell,
    Normal,
    NormalMixture,
    Pareto,
    Rayleigh,
)

SAMPLES = np.random.default_rng(0).gamma(3.0, 1.0, 60)
UNITS = [2.0**-1000, 2.0**-70, 2.0**-20, 2.0**70, 2.0**1000]  # powers of 2, by which products are exact


def scaled(distribution: Any, unit: float) -> list[float]:
    """The parameters of a distribution in the unit; all parameters of these families are lengths."""
    return [float(getattr(distribution, name)) / unit for name in distribution.__dataclass_fields__]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", [Cauchy, Gumbel, HalfNormal, InverseGaussian, Logistic, Maxwell, Normal, Rayleigh])
def test_fits_to_samples_scale_with_the_unit(family: type, unit: float) -> None:
    expected, fit = fit_forward(family, samples=SAMPLES), fit_forward(family, samples=SAMPLES * unit)
    assert fit.converged
    assert scaled(fit.distribution, unit) == pytest.approx(scaled(expected.distribution, 1.0), rel=1e-6)
    assert fit.cross_entropy == pytest.approx(expected.cross_entropy + np.log(unit), rel=1e-9)


@pytest.mark.parametrize("unit", [2.0**-300, 2.0**-70, 2.0**-20, 2.0**70, 2.0**300])
@pytest.mark.parametrize("fit", [fit_forward, fit_reverse])
@pytest.mark.parametrize(
    ("family", "target"),
    [
        (Gumbel, lambda unit: Normal(loc=1.3 * unit, scale=2 * unit)),
        (Normal, lambda unit: Gumbel(loc=1.3 * unit, scale=2 * unit)),
        (Logistic, lambda unit: NormalMixture(weights=[0.5, 0.5], locs=[0, 9 * unit], scales=[unit, unit])),
    ],
)
def test_fits_to_targets_scale_with_the_unit(
    family: type, target: Callable[[float], Any], fit: Callable[..., Any], unit: float
) -> None:
    expected, found = fit(family, target=target(1.0)), fit(family, target=target(unit))
    assert found.converged
    assert found.kl == pytest.approx(expected.kl, rel=1e-7)
    assert scaled(found.distribution, unit) == pytest.approx(scaled(expected.distribution, 1.0), rel=1e-5, abs=1e-5)


def test_the_scale_of_samples_whose_squares_overflow_is_exact() -> None:
    fit = fit_forward(Normal, samples=[-1e308, 1e308])
    assert (fit.distribution.loc, fit.distribution.scale) == (0.0, 1e308)


@pytest.mark.parametrize("samples", [[-1.7e308, 1.7e308, 1.7e308], [5e-324, 1e-323]])
def test_samples_whose_spread_float64_does_not_resolve_are_refused(samples: list[float]) -> None:
    with pytest.raises(SupportError, match="change the unit of the samples"):
        fit_forward(Normal, samples=samples)


def test_the_repr_of_a_fit_omits_its_path() -> None:
    assert len(repr(fit_forward(Cauchy, samples=SAMPLES))) < 1500


@pytest.mark.filterwarnings("error")
def test_a_start_at_the_limits_of_float64_is_refused_without_a_warning() -> None:
    with pytest.raises(SupportError, match="finite at a start"):
        fit_forward(Normal, target=Normal(loc=0.0, scale=1.0), start=Normal(loc=1e300, scale=1e-300))


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-100, 1e-12, 1e-9, 1e12, 1e100, 1e200, 1e300])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_fits_to_log_densities_scale_with_the_unit(unit: float, shift: float) -> None:
    def log_prob(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return -((x / unit - shift) ** 2) / 2

    fit = fit_reverse(Normal, log_prob=log_prob)
    assert fit.converged
    assert scaled(fit.distribution, unit) == pytest.approx([shift, 1.0], rel=1e-9, abs=1e-9)
    assert fit.diagnostics["log_evidence"] == pytest.approx(np.log(unit) + np.log(2 * np.pi) / 2, rel=1e-12)

    def log_prob_of_gamma(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", divide="ignore"):
            u = np.minimum(x / unit, 1e300)
            return np.log(u) - u

    if unit < 1e-290:  # x has fewer digits near the smallest numbers
        return
    gamma = fit_reverse(Gamma, log_prob=log_prob_of_gamma, support=(0, np.inf))
    assert gamma.diagnostics["log_evidence"] == pytest.approx(np.log(unit), rel=1e-12)
    assert gamma.distribution.concentration == pytest.approx(2.0, rel=1e-6)
    assert gamma.distribution.rate * unit == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_a_log_density_without_a_finite_integral_is_named_in_every_unit(unit: float) -> None:
    with pytest.raises(SupportError, match="a function with a finite integral"):
        fit_reverse(Normal, log_prob=lambda x: -np.abs(x) / (unit + np.abs(x)))


def test_a_pareto_fit_to_samples_whose_ratio_overflows() -> None:
    fit = fit_forward(Pareto, samples=[1e-300, 1e300])
    assert fit.distribution.alpha == pytest.approx(2 / (600 * math.log(10)), rel=1e-12)
