"""Tempered paths: against powers that are known, a brute grid at each exponent, and what plain descents end in."""

import numpy as np
import pytest
from scipy import stats

from kullback import families as f
from kullback import fit_reverse, fit_tempered
from kullback.errors import SupportError

TWO = f.NormalMixture(weights=[0.7, 0.3], locs=[0.0, 6.0], scales=[1.0, 1.0])


def test_a_power_of_a_normal_is_a_wider_normal() -> None:
    path = fit_tempered(f.Normal, target=stats.norm(1, 2), exponents=[0.25, 1.0])
    for fit, t in zip(path, (0.25, 1.0), strict=True):
        assert fit.distribution.loc == pytest.approx(1, abs=1e-7)
        assert fit.distribution.scale == pytest.approx(2 / t**0.5, rel=1e-7)
        assert fit.kl == pytest.approx(0, abs=1e-10)
        assert fit.diagnostics["exponent"] == t


def test_each_fit_is_the_least_on_a_grid() -> None:
    x = np.linspace(-40, 50, 20_001)
    log_p = np.log(0.7 * stats.norm.pdf(x) + 0.3 * stats.norm.pdf(x, 6) + 1e-300)
    [fit] = fit_tempered(f.Normal, target=TWO, exponents=[0.25])
    log_r = 0.25 * log_p
    log_r -= np.log(np.trapezoid(np.exp(log_r), x))

    def kl(loc: float, scale: float) -> float:
        log_q = stats.norm.logpdf(x, loc, scale)
        return float(np.trapezoid(np.exp(log_q) * (log_q - log_r), x))

    at = fit.distribution.loc, fit.distribution.scale
    assert fit.kl == pytest.approx(kl(*at), abs=1e-8)
    around = [kl(at[0] + a, at[1] + b) for a in np.linspace(-4, 4, 33) for b in np.linspace(-2, 4, 25)]
    assert min(around) >= fit.kl - 1e-9


def test_it_leads_out_of_the_lesser_mode() -> None:
    start = f.Normal(loc=6.0, scale=1.0)
    assert fit_reverse(f.Normal, target=TWO, start=start).path[-1].distribution.loc > 5
    path = fit_tempered(f.Normal, target=TWO, exponents=[0.25, 1.0], start=start)
    last = path[-1]
    begun, ended = last.path[0].distribution, path[0].path[-1].distribution
    assert (begun.loc, begun.scale) == pytest.approx((ended.loc, ended.scale), rel=1e-14)
    assert last.path[-1].distribution.loc == pytest.approx(0.0094602, abs=1e-6)
    # The other minimum is told all the same.
    assert [round(minimum.distribution.loc) for minimum in last.minima] == [0, 6]


def test_a_log_density_without_its_constant_will_do() -> None:
    fits = [
        fit_tempered(f.Normal, exponents=[0.5, 1.0], **target)
        for target in ({"target": stats.logistic(2, 1)}, {"log_prob": lambda x: 7 + stats.logistic.logpdf(x, 2, 1)})
    ]
    for one, other in zip(*fits, strict=True):
        assert one.distribution.scale == pytest.approx(other.distribution.scale, rel=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"target": TWO, "exponents": []}, "exponents that rise above 0"),
        ({"target": TWO, "exponents": [1.0, 0.5]}, "exponents that rise above 0"),
        ({"target": TWO, "exponents": [0.0, 1.0]}, "exponents that rise above 0"),
        ({"target": TWO, "exponents": [1.0, float("inf")]}, "exponents that rise above 0"),
        ({}, "either log_prob or target, got neither"),
        ({"target": f.Poisson(rate=3.0)}, "which is of counts"),
        ({"target": f.Cauchy(loc=0.0, scale=1.0), "exponents": [0.4, 1.0]}, "at exponent 0.4: .*finite integral"),
        ({"target": object()}, "with a density or a log_prob"),
    ],
)
def test_what_cannot_be_tempered(words: dict, said: str) -> None:
    with pytest.raises(SupportError, match=said):
        fit_tempered(f.Normal, **words)
