"""Monte Carlo estimates agree with the closed form for every univariate pair, unless their status is "unreliable"."""

import zlib

import numpy as np
import pytest

from kullback import measure
from kullback.densities.from_families import as_density

from .test_distributions import UNIVARIATE, draw, name_of


@pytest.mark.parametrize("pair", UNIVARIATE, ids=name_of)
def test_monte_carlo_agrees_with_the_closed_form(pair):
    rng = np.random.default_rng(zlib.crc32(name_of(pair).encode()))
    for _ in range(2):
        p, q = draw(pair, rng)
        if as_density(p).sample is None or as_density(q).sample is None:
            pytest.skip("a family without a sampler")
        exact = measure(p, q)
        estimate = measure(p, q, method="Monte Carlo", draws=20_000)
        if estimate.status == "estimated" and exact.value < np.inf:
            assert abs(estimate.value - exact.value) < 6 * estimate.std_error + 1e-12 * (1 + exact.value), (p, q)
