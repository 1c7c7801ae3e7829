"""Tempered fits against closed forms, a grid of KL values, and reverse fits without annealing."""

import numpy as np
import pytest
from scipy import stats

from kullback import families as f
from kullback import fit_reverse, fit_tempered
from kullback.errors import SupportError

TWO_MODES = f.NormalMixture(weights=[0.7, 0.3], locs=[0.0, 6.0], scales=[1.0, 1.0])


def test_power_of_a_normal_is_a_wider_normal() -> None:
    path = fit_tempered(f.Normal, target=stats.norm(1, 2), exponents=[0.25, 1.0])
    for fit, t in zip(path, (0.25, 1.0), strict=True):
        assert fit.distribution.loc == pytest.approx(1, abs=1e-7)
        assert fit.distribution.scale == pytest.approx(2 / t**0.5, rel=1e-7)
        assert fit.kl == pytest.approx(0, abs=1e-10)
        assert fit.diagnostics["exponent"] == t


def test_fit_has_the_lowest_kl_on_a_grid() -> None:
    x = np.linspace(-40, 50, 20_001)
    log_p = np.log(0.7 * stats.norm.pdf(x) + 0.3 * stats.norm.pdf(x, 6) + 1e-300)
    [fit] = fit_tempered(f.Normal, target=TWO_MODES, exponents=[0.25])
    log_r = 0.25 * log_p
    log_r -= np.log(np.trapezoid(np.exp(log_r), x))

    def kl(loc: float, scale: float) -> float:
        log_q = stats.norm.logpdf(x, loc, scale)
        return float(np.trapezoid(np.exp(log_q) * (log_q - log_r), x))

    loc, scale = fit.distribution.loc, fit.distribution.scale
    assert fit.kl == pytest.approx(kl(loc, scale), abs=1e-8)
    on_grid = [kl(loc + a, scale + b) for a in np.linspace(-4, 4, 33) for b in np.linspace(-2, 4, 25)]
    assert min(on_grid) >= fit.kl - 1e-9


def test_annealing_leaves_the_minor_mode() -> None:
    start = f.Normal(loc=6.0, scale=1.0)
    assert fit_reverse(f.Normal, target=TWO_MODES, start=start).path[-1].distribution.loc > 5
    path = fit_tempered(f.Normal, target=TWO_MODES, exponents=[0.25, 1.0], start=start)
    last = path[-1]
    first, previous = last.path[0].distribution, path[0].path[-1].distribution
    assert (first.loc, first.scale) == pytest.approx((previous.loc, previous.scale), rel=1e-14)
    assert last.path[-1].distribution.loc == pytest.approx(0.0094602, abs=1e-6)
    # The fit also reports the other minimum.
    assert [round(minimum.distribution.loc) for minimum in last.minima] == [0, 6]


def test_unnormalised_log_prob_gives_the_same_fits() -> None:
    fits = [
        fit_tempered(f.Normal, exponents=[0.5, 1.0], **target)
        for target in ({"target": stats.logistic(2, 1)}, {"log_prob": lambda x: 7 + stats.logistic.logpdf(x, 2, 1)})
    ]
    for one, other in zip(*fits, strict=True):
        assert one.distribution.scale == pytest.approx(other.distribution.scale, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": TWO_MODES, "exponents": []}, "positive, finite and increasing exponents"),
        ({"target": TWO_MODES, "exponents": [1.0, 0.5]}, "positive, finite and increasing exponents"),
        ({"target": TWO_MODES, "exponents": [0.0, 1.0]}, "positive, finite and increasing exponents"),
        ({"target": TWO_MODES, "exponents": [1.0, float("inf")]}, "positive, finite and increasing exponents"),
        ({}, "either log_prob or target, got neither"),
        ({"target": f.Poisson(rate=3.0)}, "which is discrete"),
        ({"target": f.Cauchy(loc=0.0, scale=1.0), "exponents": [0.4, 1.0]}, "at exponent 0.4: .*finite integral"),
        ({"target": object()}, "with a density or a log_prob"),
    ],
)
def test_errors_of_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(SupportError, match=message):
        fit_tempered(f.Normal, **arguments)
