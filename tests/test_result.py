"""Estimate: its representation, its conversion to a float, its immutability."""

import dataclasses
import math

import pytest

from kullback.result import Estimate


def test_repr_omits_default_fields():
    assert repr(Estimate(0.5)) == "Estimate(value=0.5, unit='nats')"
    assert repr(Estimate(math.nan)) == "Estimate(value=nan, unit='nats')"
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
