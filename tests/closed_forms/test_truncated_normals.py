"""KL and entropy of truncated normal distributions, also in far tails, against integrals in 45 digits."""

import math

import jax
import mpmath
import numpy as np
import numpyro.distributions as nd
import pytest
import torch
from scipy import stats

from kullback import entropy, kl, measure
from kullback.families import Normal, TruncatedNormal

inf = math.inf


def log_integral(loc, scale, low, high, origin):
    """The logarithm of the integral of exp(-((x - loc)^2 - (origin - loc)^2) / (2 scale^2))."""
    mode = min(max(loc, low), high)
    slope = abs(mode - loc) / scale
    reach = scale * 160 / (slope + mpmath.sqrt(slope**2 + 160))
    points = mpmath.linspace(max(low, mode - reach), min(high, mode + reach), 6)
    exponent = lambda x, x0: -(x - x0) * (x + x0 - 2 * loc) / (2 * scale**2)  # noqa: E731
    whole = mpmath.quad(lambda x: mpmath.exp(exponent(x, mode)), points)
    return mpmath.log(whole) + exponent(mode, origin), points


def truth(p, q):
    """KL of truncated normals given as (loc, scale, low, high), by integration around the mode of p."""
    with mpmath.workdps(45):
        p, q = ([mpmath.mpf(float(value)) for value in side] for side in (p, q))
        origin = min(max(p[0], p[2]), p[3])
        log_p, points = log_integral(*p, origin)
        log_q, _ = log_integral(*q, origin)

        def log_ratio(x):
            exponents = (-(x - origin) * (x + origin - 2 * side[0]) / (2 * side[1] ** 2) for side in (p, q))
            return next(exponents) - log_p - next(exponents) + log_q

        density = lambda x: mpmath.exp(-(x - origin) * (x + origin - 2 * p[0]) / (2 * p[1] ** 2) - log_p)  # noqa: E731
        return mpmath.quad(lambda x: density(x) * log_ratio(x), points)


def member(parameters, library=float):
    return TruncatedNormal(**dict(zip(("loc", "scale", "low", "high"), map(library, parameters), strict=True)))


CASES = [
    ((0, 1, -1, 2), (0.3, 1.2, -1, 2)),
    ((0, 1, -1, 2), (0.3, 1.2, -3, 2.5)),
    ((0, 1, 30, 31), (0, 2, 30, 31)),
    ((0, 1, 30, inf), (0, 1.0000001, 30, inf)),
    ((0, 1, -inf, -40), (1, 1, -inf, -39)),
    ((0, 1, -5, 5), (0, 0.01, -5, 5)),
    ((0, 0.01, -5, 5), (0, 1, -5, 5)),
    ((0, 1, 1e6, 1e6 + 1), (0, 1, 1e6 - 1, 1e6 + 2)),
    ((0, 1, 0, 1e-8), (3, 2, 0, 1e-8)),
    ((0, 1, 0, 1), (1e-9, 1, 0, 1)),
    ((0, 1, 0, 1), (0, 1, -1e-9, 1)),
    ((0, 1, -1, 1), (100, 1, -1, 120)),
    ((0, 0.5, -1, 1), (1e-3, 0.6, -8, 9)),
    ((50, 1, -1, 1), (-50, 1, -1, 1)),
    ((0, 1, -8, 8), (2, 0.7, -8, 8)),
]


@pytest.mark.parametrize(("p", "q"), CASES, ids=str)
def test_kl_equals_the_integral(p, q):
    exact = truth(p, q)
    value = kl(member(p), member(q))
    assert float(abs(value - exact) / exact) < 5e-14


def test_infinite_ends_give_the_kl_of_normals():
    p, q = TruncatedNormal(loc=0.0, scale=1.0, low=-inf, high=inf), Normal(loc=1.0, scale=2.0)
    assert kl(p, q) == pytest.approx(kl(Normal(loc=0.0, scale=1.0), q), rel=1e-14)
    assert kl(q, TruncatedNormal(loc=0.0, scale=1.0, low=-9.0, high=inf)) == inf
    inside = TruncatedNormal(loc=0.0, scale=1.0, low=-1.0, high=1.0)
    # P is Q conditional on the interval: KL = -log Q([-1, 1]).
    assert kl(inside, Normal(loc=0.0, scale=1.0)) == pytest.approx(-math.log(math.erf(2**-0.5)), rel=1e-14)
    assert kl(inside, TruncatedNormal(loc=0.0, scale=1.0, low=-0.5, high=1.0)) == inf


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q"), [CASES[1], CASES[4]], ids=str)
def test_gradients_equal_differences_of_integrals(p, q):
    leaves = [
        [torch.tensor(float(value), dtype=torch.float64, requires_grad=True) for value in side] for side in (p, q)
    ]
    sides = [member(side, lambda value: value) for side in leaves]
    kl(*sides).backward()
    with jax.enable_x64(True):
        by_jax = jax.grad(lambda a, b: kl(member(a, lambda x: x), member(b, lambda x: x)), argnums=(0, 1))(
            *([jax.numpy.asarray(float(value)) for value in side] for side in (p, q))
        )
    for side in (0, 1):
        for index in (0, 1):  # the locations and the scales
            values = []
            for sign in (1, -1):
                changed = [list(map(float, given)) for given in (p, q)]
                changed[side][index] += sign * 2.0**-20
                values.append(truth(*changed))
            expected = float((values[0] - values[1]) / 2.0**-19)
            assert float(leaves[side][index].grad) == pytest.approx(expected, rel=1e-7, abs=1e-9)
            assert float(by_jax[side][index]) == pytest.approx(float(leaves[side][index].grad), rel=1e-9, abs=1e-12)
    assert all(math.isfinite(float(leaf.grad)) for side in leaves for leaf in side)


def test_objects_of_other_libraries():
    p, q = stats.truncnorm(-1.0, 2.0, 0.5, 2.0), stats.truncnorm(-2.0, 3.0, 0.0, 1.5)
    ours = member((0.5, 2.0, -1.5, 4.5)), member((0.0, 1.5, -3.0, 4.5))
    assert kl(p, q) == kl(*ours)
    assert measure(p, q).value == pytest.approx(kl(p, q), rel=1e-12)
    assert measure(*ours).value == pytest.approx(kl(p, q), rel=1e-12)
    with jax.enable_x64(True):
        two, left = nd.TruncatedNormal(0.5, 2.0, low=-1.5, high=4.5), nd.TruncatedNormal(0.0, 1.5, low=-3.0)
        assert float(kl(two, left)) == pytest.approx(kl(ours[0], member((0.0, 1.5, -3.0, inf))), rel=1e-14)
        assert float(kl(nd.TruncatedNormal(0.5, 2.0, high=4.5), nd.Normal(0.0, 1.5))) == pytest.approx(
            kl(member((0.5, 2.0, -inf, 4.5)), Normal(loc=0.0, scale=1.5)), rel=1e-14
        )


def test_entropy():
    assert entropy(member((0.5, 2.0, -1.5, 4.5))) == pytest.approx(
        stats.truncnorm(-1, 2, 0.5, 2.0).entropy(), rel=1e-13
    )
    # Far in the tail, the distribution is nearly exponential with rate 1e4.
    assert entropy(member((0.0, 1.0, 1e4, inf))) == pytest.approx(1 - math.log(1e4), abs=1e-7)


def test_a_batch_has_the_values_of_its_members():
    low = np.asarray([-1.0, -inf, 3.0])
    p = TruncatedNormal(loc=0.0, scale=1.0, low=low, high=4.0)
    q = TruncatedNormal(loc=0.5, scale=2.0, low=-inf, high=4.0)
    each = [kl(TruncatedNormal(loc=0.0, scale=1.0, low=end, high=4.0), q) for end in low]
    assert kl(p, q).tolist() == pytest.approx(each, rel=1e-15)
