"""The estimate of KL from counts: its value, the coverage of its interval, and invalid counts."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import rel_entr

from kullback.errors import KullbackError, LabelError
from kullback.samples.counts import kl_counts


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("distance", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("events", [2, 5, 12])
def test_the_interval_contains_the_truth_in_most_samples(events: int, distance: float, known: bool) -> None:
    rng = np.random.default_rng(events)
    p = rng.dirichlet(np.full(events, 8.0))
    q = p ** (1 - distance) * rng.dirichlet(np.full(events, 8.0)) ** distance
    q /= q.sum()
    truth = float((p * np.log(p / q)).sum())
    values, covered = [], 0
    for _ in range(300):
        x, y = rng.multinomial(1000, p), rng.multinomial(700, q)
        estimate = kl_counts(x, q=q) if known else kl_counts(x, y)
        assert estimate.interval is not None
        low, high = estimate.interval
        assert 0 <= low <= estimate.value <= high
        covered += low <= truth + 1e-15 <= high + 1e-15
        values.append(estimate.value)
    assert covered >= 0.89 * 300
    # The positive part has a positive bias at p = q.
    assert np.mean(values) == pytest.approx(truth, abs=0.1 * truth + 0.006)


def test_a_known_q_is_the_limit_of_many_observations_of_q() -> None:
    known, counted = kl_counts([30, 50, 20], q=[0.5, 0.25, 0.25]), kl_counts([30, 50, 20], [2**40, 2**39, 2**39])
    assert known.value == pytest.approx(counted.value, rel=1e-6)
    assert known.interval == pytest.approx(counted.interval, rel=1e-6)


def test_events_that_were_not_observed_under_q() -> None:
    estimate = kl_counts([50, 40, 10], [60, 40, 0])
    assert estimate.value == math.inf
    assert estimate.status == "unreliable"
    assert "q may be positive there" in estimate.warnings[0]
    assert estimate.interval is not None
    assert estimate.interval[0] < estimate.interval[1] == math.inf
    exact = kl_counts([50, 40, 10], q=[0.6, 0.4, 0.0])
    assert (exact.value, exact.status) == (math.inf, "exact")


def test_few_observations_are_unreliable() -> None:
    assert kl_counts([1, 2, 3], [3, 2, 1]).status == "unreliable"
    assert kl_counts([100, 200, 300], [300, 200, 100]).status == "estimated"


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([1.5, 2], [1, 2], "p_counts\\[0\\] is 1.5"),
        ([-1, 2], [1, 2], "p_counts\\[0\\] is -1.0"),
        ([1, 2], [math.nan, 2], "q_counts\\[0\\] is nan"),
        ([0, 0], [1, 2], "all p_counts are 0"),
        ([1, 2], [1, 2, 3], "shapes"),
        ([[1, 2]], [[1, 2]], "vector"),
        ([1, 2], None, "q_counts or q"),
    ],
)
def test_invalid_counts(p: list, q: list | None, message: str) -> None:
    with pytest.raises(KullbackError, match=message):
        kl_counts(p, q)


def test_counts_with_labels_are_matched_by_label() -> None:
    p, q = pd.Series({"x": 50, "y": 30, "z": 20}), pd.Series({"z": 25, "x": 45, "y": 30})
    plain = kl_counts([50, 30, 20], [45, 30, 25])
    assert kl_counts(p, q) == plain
    assert kl_counts(p, [45, 30, 25]) == plain
    assert kl_counts(p, q=q / 100) == kl_counts([50, 30, 20], q=[0.45, 0.3, 0.25])
    words = pd.Series(["b", "a", "b", "c", "a", "b", *"abc" * 20]), pd.Series(["c", "b", "a", "c", "c", *"abc" * 20])
    counts = [words.value_counts() for words in words]
    orders = [list(count.index) for count in counts]
    assert orders[0] != orders[1]  # by decreasing count
    assert kl_counts(*counts).value == kl_counts(*(count.sort_index() for count in counts)).value
    with pytest.raises(LabelError, match="'x' is missing"):
        kl_counts(p, q.drop("x"))


@pytest.mark.parametrize(
    ("p", "q", "size"),
    [
        ([*[0.12] * 8, 0.039, 0.001], [*[0.12] * 8, 0.04 - 1e-9, 1e-9], 1000),  # often without the last event
        ([*[0.12] * 8, 0.037, 0.003], [*[0.12] * 8, 0.04 - 1e-9, 1e-9], 1000),
        ([0.99, 0.01], [0.999, 0.001], 1000),
    ],
)
def test_a_rare_event_with_most_of_the_kl_makes_the_interval_unreliable(p, q, size):
    """Of 600 intervals of each case, 69%, 84% and 86% contain the KL."""
    rng = np.random.default_rng(0)
    estimates = [kl_counts(rng.multinomial(size, p), q=q) for _ in range(100)]
    assert {estimate.status for estimate in estimates} == {"unreliable"}
    assert all("collect more observations" in estimate.warnings[0] for estimate in estimates)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("p", "q"),
    [([0.3, 0.5, 0.2], [0.45, 0.4, 0.15]), ([0.9, 0.05, 0.05], [0.8, 0.15, 0.05]), ([0.05] * 20, [0.05] * 20)],
)
def test_other_intervals_contain_the_kl(p, q, known):
    rng = np.random.default_rng(0)
    exact = float(rel_entr(p, q).sum())
    estimates = [
        kl_counts(x, q=q) if known else kl_counts(x, rng.multinomial(2000, q)) for x in rng.multinomial(2000, p, 300)
    ]
    assert {estimate.status for estimate in estimates} == {"estimated"}
    assert np.mean([low <= exact <= high for low, high in (estimate.interval for estimate in estimates)]) > 0.92


def test_the_lower_end_with_few_counts_for_each_of_many_events_is_0():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(1000, 0.5)), np.full(1000, 1e-3)
    estimate = kl_counts(rng.multinomial(1000, p), rng.multinomial(1000, q))
    assert estimate.value == np.inf
    assert estimate.interval == (0.0, np.inf)


@pytest.mark.parametrize(
    ("p", "q", "count"),
    [(0.5, 0.7, 50), (0.5, 0.3, 50), (0.1, 0.3, 50), (0.3, 0.1, 50), (0.5, 0.1, 50), (0.1, 0.05, 200), (0.3, 0.7, 200)],
)
def test_intervals_of_two_events_contain_the_kl_of_small_samples(p: float, q: float, count: int) -> None:
    rng = np.random.default_rng(0)
    exact = rel_entr([p, 1 - p], [q, 1 - q]).sum()
    estimates = [kl_counts(rng.multinomial(count, [p, 1 - p]), rng.multinomial(count, [q, 1 - q])) for _ in range(600)]
    estimates = [estimate for estimate in estimates if estimate.status == "estimated"]
    contained = [estimate.interval[0] <= exact <= estimate.interval[1] for estimate in estimates]
    assert len(contained) > 200
    assert np.mean(contained) > 0.9  # 0.86 to 0.89 by the normal intervals alone
