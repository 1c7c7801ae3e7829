"""The entropy floor, against SciPy's entropy of each context's table and against what no model can go below."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kullback.tokens.entropy_floor import EmpiricalConditional, Prefixes

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40)


@given(PAIRS)
def test_it_is_the_conditional_entropy(pairs: list[tuple[int, int]]) -> None:
    seen = EmpiricalConditional()
    for pair in pairs:
        seen.add(*pair)
    floor = seen.floor()
    by_context = {c: [n for (d, _), n in Counter(pairs).items() if d == c] for c, _ in pairs}
    expected = sum(sum(counts) * stats.entropy(counts) for counts in by_context.values()) / len(pairs)
    assert floor.nats == pytest.approx(expected, abs=1e-12)
    assert floor.count == len(pairs)
    assert floor.seen_once == sum(sum(counts) == 1 for counts in by_context.values()) / len(pairs)


@given(PAIRS, st.integers(0, 2**32 - 1))
def test_no_model_is_below_it(pairs: list[tuple[int, int]], seed: int) -> None:
    seen = EmpiricalConditional()
    for pair in pairs:
        seen.add(*pair)
    model = np.random.default_rng(seed).dirichlet(np.ones(5), size=4)
    assert -np.mean([np.log(model[pair]) for pair in pairs]) >= seen.floor().nats - 1e-12


def test_what_never_followed_and_nothing_at_all() -> None:
    seen = EmpiricalConditional()
    assert seen.floor().nats == 0.0
    seen.add("a", 1)
    assert seen.surprise("a", 1) == 0.0
    assert seen.surprise("a", 2) == seen.surprise("b", 1) == np.inf
    assert seen.floor().count == 1  # looking adds nothing


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12))
def test_prefixes_are_told_apart(sequences: list[list[int]]) -> None:
    prefixes, known = Prefixes(), {}
    for ids in sequences:
        for t, number in enumerate(prefixes.along(ids)):
            assert known.setdefault(tuple(ids[:t]), number) == number
    assert len(set(known.values())) == len(known)
