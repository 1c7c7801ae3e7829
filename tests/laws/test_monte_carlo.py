"""Draws of every registered pair on the line agree with its closed form, or say that they cannot be trusted."""

import zlib

import numpy as np
import pytest

from kullback import measure
from kullback.densities.from_families import of_record

from .test_distributions import ON_THE_LINE, draw, name_of


@pytest.mark.parametrize("pair", ON_THE_LINE, ids=name_of)
def test_draws_agree_with_the_closed_form(pair):
    rng = np.random.default_rng(zlib.crc32(name_of(pair).encode()))
    for _ in range(2):
        p, q = draw(pair, rng)
        if of_record(p).sample is None or of_record(q).sample is None:
            pytest.skip("a family without draws")
        exact = measure(p, q)
        told = measure(p, q, method="Monte Carlo", draws=20_000)
        if told.status == "estimated" and exact.value < np.inf:
            assert abs(told.value - exact.value) < 6 * told.std_error + 1e-12 * (1 + exact.value), (p, q)
