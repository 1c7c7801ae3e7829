"""Estimate: its representation, its conversion to a float, its immutability."""

import copy
import dataclasses
import importlib.metadata
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

import kullback
from kullback.result import Estimate


def test_repr_omits_default_fields():
    assert repr(Estimate(0.5)) == "Estimate(value=0.5, unit='nats', status='estimated')"
    assert repr(Estimate(math.nan)) == "Estimate(value=nan, unit='nats', status='estimated')"
    bounded = Estimate(0.5, error=0.0, interval=(0.5, 0.5), method="closed form", status="exact")
    assert repr(bounded) == (
        "Estimate(value=0.5, unit='nats', method='closed form', error=0.0, interval=(0.5, 0.5), status='exact')"
    )
    assert "std_error=0.0" in repr(Estimate(0.5, std_error=0.0))
    assert "warnings=('a gap',)" in repr(Estimate(math.inf, warnings=("a gap",)))


def test_it_is_a_number_and_frozen():
    estimate = Estimate(0.25, std_error=0.01, count=7)
    assert float(estimate) == 0.25
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate.value = 1.0


@pytest.mark.parametrize(
    ("estimate", "specification", "text"),
    [
        (Estimate(0.12345, std_error=0.004, count=9), ".3f", "0.123 ± 0.004 nats (estimated)"),
        (Estimate(0.12345, error=1e-12, status="bounded"), ".3f", "0.123 ± 1e-12 nats (bounded)"),
        (Estimate(0.12345, error=0.0, status="exact"), ".3f", "0.123 ± 0.000 nats (exact)"),
        (Estimate(0.12345, unit="bits", status="unreliable"), ".3f", "0.123 ± nan bits (unreliable)"),
        (Estimate(math.inf, error=0.0, status="exact"), ".2g", "inf ± 0 nats (exact)"),
        (Estimate(0.5, std_error=0.25), ">8.2f", "    0.50 ± 0.25 nats (estimated)"),
        (Estimate(0.5, std_error=math.inf), ".1e", "5.0e-01 ± inf nats (estimated)"),
    ],
)
def test_formats_show_value_uncertainty_unit_and_status(estimate, specification, text):
    assert format(estimate, specification) == text
    assert f"{estimate}" == str(estimate) == repr(estimate)
    assert f"status={estimate.status!r}" in repr(estimate)
    with pytest.raises(ValueError, match="format"):
        format(estimate, "q")


def test_it_compares_and_rounds_as_a_number():
    small, large = Estimate(0.25, std_error=0.1), Estimate(0.5, std_error=0.2)
    assert small < large
    assert small <= large
    assert large > small
    assert large >= small
    for number in (0.375, np.float64(0.375), np.float32(0.375), Fraction(3, 8)):
        assert small < number <= large
        assert number < large
        assert not large < number
    for number in (0.25, np.float64(0.25), Fraction(1, 4)):
        assert small == number
        assert number == small
        assert small != number + 1
        assert hash(small) == hash(number)
    assert sorted([large, small]) == [small, large]
    assert round(Estimate(0.12345), 3) == 0.123
    assert round(Estimate(2.6)) == 3
    assert math.isclose(small, 0.25)
    assert small != "0.25"
    with pytest.raises(TypeError):
        assert small < "0.25"


def test_copies_are_equal_and_have_one_hash():
    for estimate in (
        Estimate(0.5),
        Estimate(math.nan, warnings=("a",)),
        Estimate(0.5, interval=(0.0, math.inf), status="exact"),
    ):
        for made in (copy.copy(estimate), copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):  # noqa: S301
            assert made == estimate
            assert hash(made) == hash(estimate)
    assert Estimate(0.5) != Estimate(0.5, status="exact")
    assert Estimate(math.nan) != math.nan


def test_it_is_stored_as_json():
    estimate = Estimate(np.float64(0.5), interval=(0.25, np.inf), method="closed form", warnings=("a",))
    stored = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert stored == {
        "value": 0.5,
        "std_error": "nan",
        "count": 0,
        "unit": "nats",
        "method": "closed form",
        "error": "nan",
        "interval": [0.25, "inf"],
        "status": "estimated",
        "warnings": ["a"],
    }
    assert float(stored["interval"][1]) == math.inf


def test_the_version_is_the_version_of_the_metadata():
    assert kullback.__version__ == importlib.metadata.version("kullback")
