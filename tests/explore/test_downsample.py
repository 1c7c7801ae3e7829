"""Metrics as columns: blocks against NumPy, growth, repeated steps, values that are not finite, and long runs."""

import base64
import math

import numpy as np
import pytest

from kullback.explore.downsample import MetricColumns, finite


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text))


def assert_blocks_are_right(columns: MetricColumns, values: np.ndarray, view: dict, key: str = "x") -> None:
    """Compare every block with the mean, the minimum and the maximum of its rows."""
    size, first = 2 ** view["k"], view["first"]
    parts = [values[(first + i) * size : (first + i + 1) * size] for i in range(len(unpacked(view["x"])))]
    column = view["columns"][key]
    for name, reduce in (("mean", np.nanmean), ("low", np.nanmin), ("high", np.nanmax)):
        expected = [float(reduce(part)) if np.isfinite(part).any() else math.nan for part in parts]
        np.testing.assert_allclose(unpacked(column[name]), expected, rtol=1e-12)
    starts = [columns.steps[(first + i) * size] for i in range(len(parts))]
    np.testing.assert_array_equal(unpacked(view["from"]), starts)


def test_blocks_have_mean_minimum_and_maximum_of_every_part_of_a_run():
    values = np.random.default_rng(0).normal(size=100_003)
    values[50_000:50_600] = np.nan
    rows = [{"step": 2 * i + 1, "x": None if np.isnan(v) else v} for i, v in enumerate(values)]
    columns = MetricColumns(rows)
    for low, high in ((None, None), (5_001, 195_001), (99_001, 103_001), (20_001, 40_001)):
        view = columns.view(low, high)
        assert 300 < len(unpacked(view["x"])) <= 802
        assert_blocks_are_right(columns, values, view)
    assert columns.view(40_001, 40_021)["k"] == 0
    assert unpacked(columns.view(40_001, 40_021)["x"]).tolist() == list(range(39_999, 40_025, 2))
    assert columns.last("x") == (200_005.0, values[-1])


def test_a_view_since_a_row_has_the_remaining_blocks():
    values = np.random.default_rng(1).normal(size=90_000)
    grown, whole = MetricColumns(), MetricColumns({"step": i, "x": v} for i, v in enumerate(values))
    seen = 0
    for start in range(0, 90_000, 7_000):
        grown.append({"step": i, "x": values[i]} for i in range(start, min(start + 7_000, 90_000)))
        view = grown.view(since=seen)
        assert view["first"] in (0, seen >> view["k"])
        seen = grown.count
    assert grown.view() == whole.view()
    grown.append([{"step": 90_000, "x": 2.0}])
    added = grown.view(since=90_000)
    assert (added["first"], len(unpacked(added["x"]))) == (90_000 >> 7, 1)


def test_values_that_are_not_finite_are_counted_and_absent_values_are_not():
    rows = [{"step": 1, "x": 1.0}, {"step": 2, "x": float("nan")}, {"step": 3, "x": None}, {"step": 4}, {"step": 5}]
    rows[4]["x"] = "Infinity"  # as Weights & Biases writes it
    assert MetricColumns(rows).not_finite("x") == [2.0, 5.0]
    columns = MetricColumns(rows, is_missing=lambda _key: False)
    assert columns.not_finite("x") == [2.0, 3.0, 5.0]
    assert columns.view()["columns"]["x"]["bad"] == [1, 2, 4]
    assert columns.last("x") == (1.0, 1.0)
    assert np.isnan(unpacked(columns.view()["columns"]["x"]["mean"])).tolist() == [False, True, True, True, True]


def test_one_lost_value_marks_its_block_in_a_long_run():
    rows = [{"step": i, "x": None if i == 123_456 else 0.5} for i in range(200_000)]
    view = MetricColumns(rows, is_missing=lambda _key: False).view()
    assert view["columns"]["x"]["bad"] == [123_456 >> view["k"]]


def test_the_last_row_of_a_repeated_step_is_used():
    columns = MetricColumns([{"step": 2, "x": 1.0}, {"step": 1, "x": 0.0}, {"step": 2, "x": 5.0, "y": 1.0}])
    assert (columns.steps.tolist(), columns.column("x").tolist()) == ([1.0, 2.0], [0.0, 5.0])
    version = columns.version
    columns.append([{"step": 2, "x": 7.0}])
    assert columns.column("x").tolist() == [0.0, 7.0]
    assert columns.last_row == {"step": 2, "x": 7.0}
    assert columns.version > version  # the page requests all rows again


def test_rows_of_one_step_are_joined_where_values_are_logged_separately():
    columns = MetricColumns([{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}, {"step": 1, "b": 3.0}], merge=True)
    columns.append([{"step": 2, "b": 4.0}, {"step": 3, "a": 5.0}])
    assert columns.column("a").tolist() == [1.0, 2.0, 5.0]
    np.testing.assert_array_equal(columns.column("b"), [3.0, 4.0, math.nan])


def test_rows_without_a_step_are_omitted_and_counted():
    columns = MetricColumns([{"x": 1.0}, {"step": None, "x": 1.0}, {"step": 1, "x": 2.0}])
    assert (columns.count, columns.omitted) == (1, 2)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), None, "0.5", True, 10**400, 1e305, [], np.float64("nan")]
)
def test_finite_returns_none_for_other_values(value):
    assert finite(value) is None


def test_finite_accepts_numpy_numbers():
    assert finite(np.float32(0.5)) == 0.5
    assert finite(np.int64(3)) == 3.0
