"""Monte Carlo: the coverage of the interval, and the status of estimates with heavy tails."""

import math

import numpy as np
import pytest
from scipy import stats

from kullback.errors import ShapeError, SupportError
from kullback.samples.monte_carlo import Sampler, hill_index, kl_monte_carlo


def sampler(frozen):
    return Sampler(lambda count, rng: frozen.rvs(size=count, random_state=rng), frozen.logpdf)


NORMAL = sampler(stats.norm())
PAIRS = [
    (stats.norm(0, 1), stats.norm(1, 2), 0.4431471805599453),
    (stats.norm(0, 1), stats.norm(1e-3, 1), 5e-7),
    (stats.norm(0, 1), stats.norm(0, 10), math.log(10) - 0.495),
    (stats.expon(), stats.expon(scale=12.0), math.log(12) + 1 / 12 - 1),
    (stats.uniform(1, 1), stats.uniform(0, 4), math.log(4)),
    (stats.norm(0, 1), stats.norm(6, 1), 18.0),
    (
        stats.uniform(0, 1),
        stats.norm(0, 1),
        math.log(2 * math.pi) / 2 + 1 / 6,
    ),  # two thirds of the mass of q are outside the support of p
    (stats.beta(2, 3), stats.uniform(-0.01, 1.02), math.log(1.02) - stats.beta(2, 3).entropy()),
]


@pytest.mark.parametrize(("p", "q", "truth"), PAIRS)
def test_interval_has_nominal_coverage(p, q, truth):
    seen = [kl_monte_carlo(sampler(p), sampler(q), draws=2000, seed=seed, confidence=0.9) for seed in range(200)]
    held = sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in (estimate.interval for estimate in seen))
    assert held >= 165  # 180 expected, standard deviation 4
    assert {estimate.status for estimate in seen} == {"estimated"}


def test_nearly_equal_distributions_have_second_order_error():
    """The standard deviation of -log r is 1e-3 per draw, and of phi(log r) 1e-6."""
    estimate = kl_monte_carlo(NORMAL, sampler(stats.norm(1e-3, 1)), draws=10_000)
    assert estimate.std_error < 2e-8
    assert estimate.value == pytest.approx(5e-7, abs=5 * estimate.std_error)


@pytest.mark.parametrize("df", [1, 2, 3])
def test_heavy_tail_is_unreliable(df):
    """Against a normal, the variance of log p/q is the variance of x^2, infinite for df <= 4."""
    estimate = kl_monte_carlo(sampler(stats.t(df)), NORMAL)
    assert estimate.status == "unreliable"
    assert "heavy tail" in estimate.warnings[0]


def test_draw_outside_the_support_of_q_gives_inf():
    estimate = kl_monte_carlo(NORMAL, sampler(stats.uniform(-2, 4)))
    assert estimate.value == math.inf
    assert "q is 0 where p is not" in estimate.warnings[0]


def test_seed_determines_the_estimate():
    first, again, other = (
        kl_monte_carlo(NORMAL, sampler(stats.norm(1, 2)), draws=100, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_hill_index_of_a_power_law():
    rng = np.random.default_rng(0)
    assert hill_index(rng.pareto(2.0, 200_000) + 1) == pytest.approx(0.5, abs=0.05)
    assert hill_index(np.zeros(100)) == 0.0


def test_bad_log_densities():
    with pytest.raises(SupportError, match="the log-density of q is nan"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.full(x.shape, np.nan)))
    with pytest.raises(SupportError, match="the log-density of p is -inf"):
        kl_monte_carlo(Sampler(NORMAL.sample, stats.uniform().logpdf), NORMAL)
    with pytest.raises(ShapeError, match=r"65536 draws, got shapes \(65536,\) of p and \(65536, 2\)"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.zeros((x.size, 2))))
