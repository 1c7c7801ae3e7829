"""The entropy floor agrees with SciPy's entropies and is a lower bound on the cross-entropy of every model."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kullback.tokens.entropy_floor import EmpiricalConditional, Prefixes

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40)


@given(PAIRS)
def test_the_floor_is_the_conditional_entropy(pairs: list[tuple[int, int]]) -> None:
    empirical = EmpiricalConditional()
    for pair in pairs:
        empirical.add(*pair)
    floor = empirical.floor()
    by_context = {c: [n for (d, _), n in Counter(pairs).items() if d == c] for c, _ in pairs}
    expected = sum(sum(counts) * stats.entropy(counts) for counts in by_context.values()) / len(pairs)
    assert floor.nats == pytest.approx(expected, abs=1e-12)
    assert floor.count == len(pairs)
    assert floor.seen_once == sum(sum(counts) == 1 for counts in by_context.values()) / len(pairs)


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_no_model_has_a_smaller_cross_entropy(pairs: list[tuple[int, int]], seed: int) -> None:
    empirical = EmpiricalConditional()
    for pair in pairs:
        empirical.add(*pair)
    model = np.random.default_rng(seed).dirichlet(np.ones(5), size=4)
    assert -np.mean([np.log(model[pair]) for pair in pairs]) >= empirical.floor().nats - 1e-12


def test_unobserved_outcomes_and_an_empty_sample() -> None:
    empirical = EmpiricalConditional()
    assert empirical.floor().nats == 0.0
    empirical.add("a", 1)
    assert empirical.surprise("a", 1) == 0.0
    assert empirical.surprise("a", 2) == empirical.surprise("b", 1) == np.inf
    assert empirical.floor().count == 1  # surprise does not add observations


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12))
def test_prefixes_have_distinct_numbers(sequences: list[list[int]]) -> None:
    prefixes, numbers = Prefixes(), {}
    for ids in sequences:
        for t, number in enumerate(prefixes.along(ids)):
            assert numbers.setdefault(tuple(ids[:t]), number) == number
    assert len(set(numbers.values())) == len(numbers)
