"""Monte Carlo: the coverage of the interval, and the status of estimates with heavy tails."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kullback import families as f
from kullback.errors import KullbackError, ShapeError, SupportError
from kullback.measure import measure
from kullback.samples.monte_carlo import Sampler, hill_index, kl_monte_carlo


def sampler(frozen):
    log_density = frozen.logpdf if hasattr(frozen, "logpdf") else frozen.logpmf
    return Sampler(lambda count, rng: frozen.rvs(size=count, random_state=rng), log_density)


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
    with pytest.raises(SupportError, match="the log-density of q is inf"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.full(x.shape, np.inf)))
    with pytest.raises(ShapeError, match="got the error IndexError: index 3 is out of bounds"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.zeros(3)[np.full(x.shape, 3)]))
    with pytest.raises(ShapeError, match=r"65536 draws of p along the first axis, got an array of shape \(3,\)"):
        kl_monte_carlo(Sampler(lambda count, rng: np.zeros(3), NORMAL.log_density), NORMAL)
    with pytest.raises(SupportError, match="expected a sampler of p, got a log-density alone"):
        kl_monte_carlo(Sampler(None, NORMAL.log_density), NORMAL)
    with pytest.raises(ShapeError, match=r"65536 draws, got shapes \(65536,\) of p and \(65536, 2\)"):
        kl_monte_carlo(NORMAL, Sampler(NORMAL.sample, lambda x: np.zeros((x.size, 2))))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draws": 1}, "draws to be a whole number >= 2, got 1"),
        ({"draws": 2.5}, "draws to be a whole number"),
        ({"seed": -1}, "seed to be a whole number >= 0, got -1"),
        ({"confidence": 1.0}, "0 < confidence < 1, got 1.0"),
        ({"confidence": math.nan}, "0 < confidence < 1"),
    ],
)
def test_options_outside_their_domain_raise(options, words):
    with pytest.raises(SupportError, match=words):
        kl_monte_carlo(NORMAL, NORMAL, **options)


# Draws that contradict the log-densities.


def scaled(frozen, factor):
    """A log-density with the integral `factor`, and the draws of the normalized distribution."""
    return Sampler(sampler(frozen).sample, lambda x: frozen.logpdf(x) + math.log(factor))


@pytest.mark.parametrize("factor", [0.5, 0.95, 1.05, 2.0, 1e6, 1e-6])
@pytest.mark.parametrize("q", [stats.norm(0, 1), stats.norm(0.5, 1.2), stats.t(3)], ids=["equal", "near", "heavy"])
def test_density_that_is_not_normalized_is_unreliable(q, factor):
    for first, second in ((NORMAL, scaled(q, factor)), (scaled(q, factor), NORMAL)):
        estimate = kl_monte_carlo(first, second)
        assert estimate.status == "unreliable"
        assert "not normalized" in estimate.warnings[0]
        assert estimate.value >= 0
        assert estimate.interval == (0.0, math.inf)


def test_draws_that_do_not_follow_the_density_are_unreliable():
    wrong = Sampler(sampler(stats.norm(1, 1)).sample, stats.norm(0, 1).logpdf)
    for first, second in ((wrong, sampler(stats.norm(0, 2))), (sampler(stats.norm(0, 2)), wrong)):
        estimate = kl_monte_carlo(first, second)
        assert estimate.status == "unreliable"
        assert "the draws do not follow it" in estimate.warnings[0]


def test_log_density_without_a_sampler_is_checked_by_draws_of_p():
    plain = kl_monte_carlo(NORMAL, Sampler(None, stats.norm(1, 1).logpdf))
    assert plain.status == "estimated"
    assert abs(plain.value - 0.5) < 5 * plain.std_error
    for factor in (0.5, 2.0):
        estimate = kl_monte_carlo(NORMAL, scaled(stats.norm(0.1, 1), factor)._replace(sample=None))
        assert estimate.status == "unreliable"
        assert "normalized" in estimate.warnings[0]


WIDE = [stats.norm(0, 10.0**k) for k in (1, 3, 6, 9)] + [stats.norm(10.0**k, 1) for k in (0.5, 1, 1.5)]


@pytest.mark.parametrize("q", [*WIDE, stats.t(1), stats.uniform(-50, 100), stats.norm(0, 0.01)])
def test_normalized_densities_with_little_overlap_are_not_accused(q):
    for seed in range(20):
        for first, second in ((NORMAL, sampler(q)), (sampler(q), NORMAL)):
            with np.errstate(all="ignore"):
                estimate = kl_monte_carlo(first, second, draws=5000, seed=seed)
            assert not any("normalized" in warning for warning in estimate.warnings), estimate


def test_negative_mean_is_replaced_by_the_mean_of_non_negative_terms():
    p, q = stats.norm(0, 1), stats.norm(0.01, 1.005)
    for seed in range(200):
        estimate = kl_monte_carlo(sampler(p), sampler(q), draws=20, seed=seed)
        assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1]
        assert estimate.value > 0


@pytest.mark.parametrize(("p", "q", "_truth"), PAIRS)
def test_false_alarms_are_rare(p, q, _truth):
    for seed in range(100):
        estimate = kl_monte_carlo(sampler(p), sampler(q), draws=1000, seed=seed)
        assert not any("normalized" in warning for warning in estimate.warnings), estimate


HEALTHY = [
    (f.Normal(loc=0.0, scale=1.0), f.NormalMixture(weights=[0.5, 0.5], locs=[0.0, 1.0], scales=[1.0, 1.0])),
    (f.NormalMixture(weights=[0.5, 0.5], locs=[-1.0, 1.0], scales=[1.0, 1.0]), f.Normal(loc=0.0, scale=1.0)),
    (f.NormalMixture(weights=[0.3, 0.7], locs=[-1.0, 1.0], scales=[1.0, 1.0]), f.Normal(loc=1.0, scale=1.0)),
    (f.Normal(loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=0.6)),
    (f.Normal(loc=0.0, scale=1.0), f.Normal(loc=1.5, scale=1.0)),
]


@pytest.mark.parametrize(("p", "q"), HEALTHY)
@pytest.mark.parametrize("draws", [1_000, 65_536])
def test_finite_gaussian_tails_are_not_called_heavy(p, q, draws):
    truth = measure(p, q).value
    for seed in range(3):
        estimate = measure(p, q, method="Monte Carlo", draws=draws, seed=seed)
        assert not any("heavy" in warning for warning in estimate.warnings)
        assert estimate.status == ("estimated" if draws > 2000 else "unreliable")
        assert abs(estimate.value - truth) < 4.5 * estimate.std_error


HEAVY = [
    (f.StudentT(df=2.5, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0)),  # the terms have no variance for df <= 4
    (f.StudentT(df=3.5, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0)),
    (f.Laplace(loc=0.0, scale=0.7), f.Gumbel(loc=0.0, scale=1.0)),  # none for a scale >= 1/2
    (f.Pareto(scale=1.0, alpha=1.2), f.Exponential(rate=1.0)),  # none for alpha <= 2
]


@pytest.mark.parametrize(("p", "q"), HEAVY)
def test_terms_without_a_variance_are_unreliable(p, q):
    for seed in range(3):
        estimate = measure(p, q, method="Monte Carlo", seed=seed)
        assert estimate.status == "unreliable"
        assert "heavy tail" in estimate.warnings[-1]


class _Own:
    """An object with the two methods of a sampler, whose results are given."""

    def __init__(self, sample: Any, log_prob: Any) -> None:
        self.sample, self.log_prob = sample, log_prob


@pytest.mark.parametrize(
    ("sample", "log_prob"),
    [
        (lambda count: ["a"] * count, lambda x: "x"),
        (lambda count: np.zeros(count), lambda x: ["x"] * len(x)),
        (lambda count: np.zeros(count), lambda x: x.missing),
        (lambda: 1.0, lambda x: x),
        (lambda count: count.missing, lambda x: x),
        (lambda count: 1 / 0, lambda x: x),
        (lambda count: None, lambda x: x),
    ],
)
def test_errors_of_the_users_methods_are_one_sentence(sample: Any, log_prob: Any) -> None:
    with pytest.raises(KullbackError, match="expected"):
        measure(_Own(sample, log_prob), f.Normal(loc=0.0, scale=1.0), draws=100)


@pytest.mark.parametrize("draws", [2, 3, 5, 30, 300, 1000, 2000])
@pytest.mark.filterwarnings("error")
def test_an_interval_from_few_draws_of_skewed_terms_is_unreliable(draws):
    p, q = stats.multivariate_normal([0.0] * 3), stats.multivariate_normal([0.1] * 3, 1.2 * np.eye(3))
    truth = 0.5 * (3 / 1.2 + 3 * 0.01 / 1.2 - 3 + 3 * math.log(1.2))
    seen = [kl_monte_carlo(sampler(p), sampler(q), draws=draws, seed=seed) for seed in range(200)]
    reliable = [estimate.interval for estimate in seen if estimate.status == "estimated"]
    assert len(reliable) == 0 or draws >= 2000
    assert sum(low <= truth <= high for low, high in reliable) >= 0.9 * len(reliable)


def test_draws_of_one_outcome_do_not_determine_an_interval():
    rare, common = stats.bernoulli(0.0005), stats.bernoulli(0.2)
    truth = 0.0005 * math.log(0.0005 / 0.2) + 0.9995 * math.log(0.9995 / 0.8)
    for draws in (100, 1000, 2000, 20_000):
        seen = [kl_monte_carlo(sampler(rare), sampler(common), draws=draws, seed=seed) for seed in range(100)]
        assert {estimate.status for estimate in seen} == {"unreliable" if draws < 2000 else "estimated"}
        held = sum(low <= truth <= high for low, high in (estimate.interval for estimate in seen))
        assert held >= 88 or draws < 2000
    without_sampler = Sampler(None, common.logpmf)
    seen = [kl_monte_carlo(sampler(rare), without_sampler, draws=2000, seed=seed) for seed in range(20)]
    assert {estimate.status for estimate in seen} == {"unreliable"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "q"),
    [
        (f.Poisson(rate=1.0), f.Geometric(probs=0.5)),
        (f.Poisson(rate=2.0), f.NegativeBinomial(total_count=2.0, probs=0.5)),
        (f.Gamma(concentration=2.0, rate=1.0), f.LogNormal(loc=0.4, scale=0.8)),
        (f.Normal(loc=0.0, scale=1.0), f.StudentT(df=3.0, loc=0.0, scale=1.0)),
    ],
)
def test_intervals_cover_where_the_ratio_has_no_variance(p, q):
    # E_p[(q/p)^2] is infinite, although few of the draws show it.
    truth = measure(p, q).value
    seen = [measure(p, q, method="Monte Carlo", draws=16_384, seed=seed) for seed in range(200)]
    intervals = [estimate.interval for estimate in seen if estimate.status == "estimated"]
    held = sum(low <= truth <= high for low, high in intervals)
    assert held >= 0.9 * len(intervals) or len(intervals) < 20  # the others have the status "unreliable"
    assert sum(abs(estimate.value - truth) < 5 * estimate.std_error for estimate in seen) >= 195
