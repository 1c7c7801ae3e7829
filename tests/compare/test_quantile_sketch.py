"""Quantiles from a histogram: their relative error, special numbers, merges and stored states."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.compare.quantile_sketch import QuantileSketch
from kullback.compare.statistics import QUANTILES
from kullback.errors import InputError, SupportError


@given(
    st.lists(st.floats(0, 1e300) | st.floats(0, 1).map(lambda x: x**40), min_size=1, max_size=60),
    st.floats(0, 1),
)
@settings(max_examples=300)
def test_quantiles_have_a_bounded_relative_error(values: list[float], q: float) -> None:
    sketch = QuantileSketch()
    sketch.add(values)
    ordered = sorted(x if x >= 2.0**-1022 else 0.0 for x in values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    weight = position - below
    above = ordered[min(below + 1, len(ordered) - 1)]
    expected = (1 - weight) * ordered[below] + weight * above
    assert sketch.quantile(q) == pytest.approx(expected, rel=2.0**-8 + 1e-12, abs=1e-320)
    assert sketch.quantile(0) == ordered[0]
    assert sketch.quantile(1) == ordered[-1]


def test_quantiles_match_numpy_on_a_large_sample() -> None:
    rng = np.random.default_rng(3)
    values = np.exp(rng.normal(-6, 3, 50_000))
    sketch, mirrored = QuantileSketch(), QuantileSketch()
    sketch.add(values)
    mirrored.add(-values)
    for q in QUANTILES:
        assert sketch.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.004)
        assert mirrored.quantile(1 - q) == pytest.approx(-np.quantile(values, q), rel=0.004)
    assert len(sketch.state()["bins"]) < 4000


def test_signs_zeros_and_infinities() -> None:
    sketch = QuantileSketch()
    sketch.add([-math.inf, -1.0, -0.0, 0.0, 5e-324, 1.0, math.inf])
    found = [sketch.quantile(q / 6) for q in range(7)]
    assert found == [-math.inf, pytest.approx(-1, rel=0.004), 0, 0, 0, pytest.approx(1, rel=0.004), math.inf]
    assert QuantileSketch.from_state(json.loads(json.dumps(sketch.state(), allow_nan=False))) == sketch
    assert math.isnan(QuantileSketch().quantile(0.5))
    empty = QuantileSketch()
    empty.add([])
    assert QuantileSketch.from_state(json.loads(json.dumps(empty.state()))) == empty


def test_largest_numbers_stay_finite() -> None:
    sketch = QuantileSketch()
    sketch.add([1.7e308, 1.75e308, 1.79e308])
    assert sketch.quantile(0.5) == pytest.approx(1.75e308, rel=0.004)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_invalid_quantiles_raise(q: float) -> None:
    with pytest.raises(SupportError, match="from 0 to 1"):
        QuantileSketch().quantile(q)


def test_nan_raises() -> None:
    with pytest.raises(SupportError, match="nan at index 1"):
        QuantileSketch().add([1.0, math.nan])


def test_merged_sketches_equal_the_sketch_of_all_numbers() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(size=1000) * 10.0 ** rng.integers(-9, 9, 1000)
    whole, merged = QuantileSketch(), QuantileSketch()
    whole.add(values)
    for part in np.array_split(rng.permutation(values), 7):
        sketch = QuantileSketch()
        sketch.add(part)
        merged.merge(sketch)
    merged.merge(QuantileSketch())
    assert merged == whole
    assert [merged.quantile(q) for q in QUANTILES] == [whole.quantile(q) for q in QUANTILES]


@pytest.mark.parametrize(
    "state", [{}, None, {"bins": {"a": 1}, "ends": [0, 1]}, {"bins": {}, "ends": [0]}, {"bins": [], "ends": []}]
)
def test_damaged_states_raise(state) -> None:
    with pytest.raises(InputError, match="quantile sketch"):
        QuantileSketch.from_state(state)
