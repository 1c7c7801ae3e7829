"""Draws: the interval holds the truth as often as it says, and a mean that cannot be trusted says so."""

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
    (stats.uniform(0, 1), stats.norm(0, 1), math.log(2 * math.pi) / 2 + 1 / 6),  # two thirds of q lie outside p
    (stats.beta(2, 3), stats.uniform(-0.01, 1.02), math.log(1.02) - stats.beta(2, 3).entropy()),
]


@pytest.mark.parametrize(("p", "q", "truth"), PAIRS)
def test_the_interval_covers_the_truth_as_often_as_it_says(p, q, truth):
    seen = [kl_monte_carlo(sampler(p), sampler(q), draws=2000, seed=seed, confidence=0.9) for seed in range(200)]
    held = sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in (estimate.interval for estimate in seen))
    assert held >= 165  # 180 expected, standard deviation 4
    assert {estimate.status for estimate in seen} == {"estimated"}


def test_nearly_equal_ones_are_second_order():
    """The mean of -log r has a standard deviation of 1e-3 a draw; that of phi(log r) of 1e-6."""
    estimate = kl_monte_carlo(NORMAL, sampler(stats.norm(1e-3, 1)), draws=10_000)
    assert estimate.std_error < 2e-8
    assert estimate.value == pytest.approx(5e-7, abs=5 * estimate.std_error)


@pytest.mark.parametrize("df", [1, 2, 3])
def test_a_heavy_tail_is_not_trusted(df):
    """Against a normal, the variance of log p/q is that of x^2: infinite for df <= 4."""
    estimate = kl_monte_carlo(sampler(stats.t(df)), NORMAL)
    assert estimate.status == "unreliable"
    assert "heavy tail" in estimate.warnings[0]


def test_a_draw_where_q_is_0_makes_inf():
    estimate = kl_monte_carlo(NORMAL, sampler(stats.uniform(-2, 4)))
    assert estimate.value == math.inf
    assert "q is 0 where p is not" in estimate.warnings[0]


def test_the_seed_decides():
    first, again, other = (
        kl_monte_carlo(NORMAL, sampler(stats.norm(1, 2)), draws=100, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_hills_index_is_that_of_a_power_law():
    rng = np.random.default_rng(0)
    assert hill_index(rng.pareto(2.0, 200_000) + 1) == pytest.approx(0.5, abs=0.05)
    assert hill_index(np.zeros(100)) == 0.0


def test_bad_log_densities():
    with pytest.raises(SupportError, match="the log-density of q is nan"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.full(x.shape, np.nan)))
    with pytest.raises(SupportError, match="that of p is -inf at its draw"):
        kl_monte_carlo(Sampler(NORMAL.sample, stats.uniform().logpdf), NORMAL)
    with pytest.raises(ShapeError, match=r"65536 draws, got shapes \(65536,\) of p and \(65536, 2\)"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.zeros((x.size, 2))))
