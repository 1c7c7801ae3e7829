"""pareto_k: invalid weights, and weights whose tail has a known shape."""

import math

import numpy as np
import pytest

from kullback.errors import ShapeError, SupportError
from kullback.samples.pareto_k import pareto_k


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0])
def test_shape_of_pareto_weights(shape):
    x = np.random.default_rng(0).exponential(size=200_000)
    assert pareto_k(shape * x) == pytest.approx(shape, abs=0.1)


def test_invalid_weights_raise():
    with pytest.raises(ShapeError, match="at least 25 log-weights, from which a tail can be fitted, got 3"):
        pareto_k(np.zeros(3))
    with pytest.raises(SupportError, match="expected log-weights, got nan"):
        pareto_k(np.append(np.zeros(50), math.nan))
    assert pareto_k(np.append(np.zeros(50), math.inf)) == math.inf
    assert pareto_k(np.zeros(50)) == 0.0
