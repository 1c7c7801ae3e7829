"""Accuracy of phi, log1p_residual, the log-gamma residual and their gradients over the whole range of floats."""

import math
import subprocess
import sys

import array_api_compat.numpy
import array_api_compat.torch
import array_api_strict
import mpmath
import numpy as np
import pytest
import torch

from kullback.numerics import log_gamma
from kullback.numerics.log_gamma import log_gamma_residual
from kullback.numerics.phi import log1p_residual, log_ratio, mass_phi, phi, ratio_residual

from ..oracles import discrete as oracle

DTYPES = [np.float64, np.float32]
LIBRARIES = ["numpy", "torch"]
SERIES = {"phi": (-1.0, 1.0), "log1p_residual": (-0.64, 1.0)}


def neighbours(dtype, *centres, count=12):
    points = []
    for centre in centres:
        below = above = dtype(centre)
        for _ in range(count):
            below, above = np.nextafter(below, dtype(-np.inf)), np.nextafter(above, dtype(np.inf))
            points += [below, above]
        points.append(dtype(centre))
    return np.asarray(points, dtype=dtype)


def spread(dtype, seed):
    """Points of both signs, from magnitudes whose square is subnormal up to 2, dense around the change of branch."""
    rng = np.random.default_rng(seed)
    least = math.log10(float(np.finfo(dtype).smallest_subnormal))
    tiny = 10.0 ** rng.uniform(least / 2 - 1, 0.3, 700) * rng.choice([-1.0, 1.0], 700)
    return np.concatenate([tiny, rng.uniform(-2, 2, 1500)]).astype(dtype)


def evaluate(function, points, library):
    if library == "torch":
        return function(torch.from_numpy(points)).numpy()
    return function(points)


@pytest.mark.parametrize("dtype", DTYPES)
def test_phi_is_accurate_to_four_ulps(dtype):
    rng = np.random.default_rng(1)
    top = math.log(float(np.finfo(dtype).max))
    huge = -(10.0 ** rng.uniform(0, math.log10(float(np.finfo(dtype).max)) - 0.1, 200))
    points = [spread(dtype, 0), rng.uniform(1, top, 300), huge, neighbours(dtype, *SERIES["phi"], 0, 100, top)]
    points = np.concatenate(points).astype(dtype)
    truth = [oracle.phi(float(d)) for d in points]
    for library in LIBRARIES:
        got = evaluate(phi, points, library)
        assert got.dtype == dtype
        assert oracle.ulps(got, truth).max() <= 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_log1p_residual_is_accurate_to_four_ulps(dtype):
    rng = np.random.default_rng(2)
    huge = 10.0 ** rng.uniform(0, math.log10(float(np.finfo(dtype).max)) - 0.1, 300)
    edge = 10.0 ** rng.uniform(-17, -0.1, 300) - 1
    points = [spread(dtype, 3), huge, edge, neighbours(dtype, *SERIES["log1p_residual"], 0, -1)]
    points = np.concatenate(points).astype(dtype)
    points = points[points > -1]
    truth = [oracle.log1p_residual(float(x)) for x in points]
    for library in LIBRARIES:
        got = evaluate(log1p_residual, points, library)
        assert got.dtype == dtype
        assert oracle.ulps(got, truth).max() <= 4


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_of_the_range(dtype, library):
    points = np.asarray([-np.inf, np.inf, np.nan, 0.0, -0.0, np.finfo(dtype).max], dtype=dtype)
    np.testing.assert_array_equal(evaluate(phi, points, library), [np.inf, np.inf, np.nan, 0, 0, np.inf])
    points = np.asarray([-1, np.inf, np.nan, 0.0, -0.0, -1.5, -np.inf, np.finfo(dtype).max], dtype=dtype)
    expected = np.asarray([np.inf, np.inf, np.nan, 0, 0, np.nan, np.nan, np.finfo(dtype).max], dtype=dtype)
    np.testing.assert_array_equal(evaluate(log1p_residual, points, library), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_accurate_and_finite(dtype):
    eps = torch.finfo(dtype).eps
    top = math.log(torch.finfo(dtype).max) - 1
    points = [0.0, -0.0, 1e-300, -1e-300, 1e-40, 1e-8, -1e-3, 0.5, 1.0, -1.0, 1.001, 30.0, -80.0, -1e30, top, -math.inf]
    d = torch.tensor(points, dtype=dtype, requires_grad=True)
    phi(d).sum().backward()
    expected = torch.tensor([math.expm1(v) for v in d.tolist()], dtype=torch.float64)
    torch.testing.assert_close(d.grad.double(), expected, rtol=4 * eps, atol=0)

    points = [0.0, -0.0, 1e-300, 1e-8, -1e-3, -0.64, -0.6, 1.0, 1.001, -1 + 2 * eps, 1e30, math.inf]
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    log1p_residual(x).sum().backward()
    expected = torch.tensor([1.0 if v == math.inf else v / (1 + v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(x.grad.double(), expected, rtol=4 * eps, atol=0)


@pytest.mark.parametrize("function", [phi, log1p_residual])
def test_first_and_second_derivatives_match_finite_differences(function):
    points = torch.tensor([-0.9, -0.64, -0.3, -1e-3, 0.0, 0.2, 0.9999, 1.5, 6.0], dtype=torch.float64)
    points = points.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, points)
    assert torch.autograd.gradgradcheck(function, points)


def test_second_derivative_at_zero_is_one():
    for function in (phi, log1p_residual):
        d = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(function(d).sum(), d, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), d)
        assert curvature.item() == 1


def test_gradients_under_vmap():
    d = torch.linspace(-2, 2, 6, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda v: phi(v)))(d)
    torch.testing.assert_close(slopes, torch.expm1(d), rtol=1e-15, atol=0)


@pytest.mark.parametrize("function", [phi, log1p_residual])
def test_half_precision_is_computed_in_float32(function):
    points = np.asarray([-0.9, -1e-3, 0.01, 0.7, 3.0], dtype=np.float16)
    expected = function(points.astype(np.float32)).astype(np.float16)
    got = function(points)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, expected)
    assert function(np.asarray([65504.0], dtype=np.float16)).dtype == np.float16
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor(points.tolist()).to(dtype).requires_grad_()
        got = function(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, function(x.float()).to(dtype), rtol=0, atol=0)
        got.sum().backward()
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()


def test_numbers_lists_and_integers_become_numpy_float64():
    assert float(phi(1)) == float(phi(1.0))
    for got in (phi([0.0, 1.0]), phi([0, 1]), phi(np.asarray([0, 1]))):
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, phi(np.asarray([0.0, 1.0])))


def test_strict_array_api():
    points = np.linspace(-0.95, 5, 50)
    for function in (phi, log1p_residual):
        np.testing.assert_array_equal(np.asarray(function(array_api_strict.asarray(points))), function(points))


def test_complex_numbers_are_rejected():
    with pytest.raises(TypeError, match="real"):
        phi(np.asarray([1j]))


def test_importing_phi_does_not_import_torch_or_jax():
    code = "import sys, kullback.numerics.phi, kullback.discrete.kl; assert not {'torch', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The residual of log-gamma.


REGIONS = {
    "ordinary": ((-3, 3), None),
    "huge": ((0, 12), None),
    "tiny": ((-12, 2), None),
    "nearly equal": ((-3, 6), (-12, -1)),
}


def pairs(region, dtype, count=200):
    """Pairs a and b = a + h, log-uniformly distributed."""
    rng = np.random.default_rng(4)
    exponents, nearness = REGIONS[region]
    a, b = 10 ** rng.uniform(*exponents, (2, count))
    if nearness:
        b = a * (1 + 10 ** rng.uniform(*nearness, count) * rng.choice([-1.0, 1.0], count))
    a, b = a.astype(dtype), b.astype(dtype)
    return a[a != b], b[a != b]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 2e-6)])
def test_log_gamma_residual_is_accurate(region, dtype, tolerance):
    a, b = pairs(region, dtype)
    h = b - a
    kept = a + h > 0
    a, h = a[kept], h[kept]
    truth = [oracle.log_gamma_residual(x, y) for x, y in zip(a.tolist(), h.tolist(), strict=True)]
    for library in LIBRARIES:
        got = log_gamma_residual(a, h) if library == "numpy" else log_gamma_residual(*map(torch.tensor, (a, h))).numpy()
        assert got.dtype == dtype
        # Where b = a + h is much smaller than a, the rounding of b changes log(b).
        slack = float(np.finfo(dtype).eps) * np.abs(h / (a + h))
        errors = [abs(float(value) - float(exact)) for value, exact in zip(got, truth, strict=True)]
        assert (errors <= tolerance * np.asarray([float(exact) for exact in truth]) + slack).all()


@pytest.mark.parametrize("region", REGIONS)
def test_gamma_kl_equal_mean_and_its_gradients_are_accurate(region):
    a, b = pairs(region, np.float64, count=80)
    got = log_gamma.gamma_kl_equal_mean(array_api_compat.numpy, a, b)
    leaves = [torch.tensor(side, requires_grad=True) for side in (a, b)]
    slopes = torch.autograd.grad(log_gamma.gamma_kl_equal_mean(array_api_compat.torch, *leaves).sum(), leaves)
    with mpmath.workdps(80):
        for k, (x, y) in enumerate(zip(map(mpmath.mpf, a), map(mpmath.mpf, b), strict=True)):
            value = oracle.log_gamma_residual(x, y - x) - (x - y + y * mpmath.log(y / x))
            by_a = -(y - x) * (mpmath.psi(1, x) - 1 / x)
            by_b = mpmath.digamma(y) - mpmath.digamma(x) - mpmath.log(y / x)
            for found, exact in ((got[k], value), (slopes[0][k], by_a), (slopes[1][k], by_b)):
                assert abs(float(found) / float(exact) - 1) < 3e-14


def test_binet_function_and_derivatives():
    xp = array_api_compat.numpy
    points = 10 ** np.random.default_rng(5).uniform(-6, 6, 100)
    with mpmath.workdps(40):
        for a in points:
            x = mpmath.mpf(a)
            truths = (
                mpmath.loggamma(x) - (x - 0.5) * mpmath.log(x) + x - mpmath.log(2 * mpmath.pi) / 2,
                mpmath.digamma(x) - mpmath.log(x) + 1 / (2 * x),
                mpmath.psi(1, x) - 1 / x - 1 / (2 * x * x),
            )
            functions = (log_gamma.binet, log_gamma.binet_slope, log_gamma.binet_curvature)
            for function, truth in zip(functions, truths, strict=True):
                assert abs(float(function(xp, np.asarray(a))) / float(truth) - 1) < 1e-13


def test_ratios_over_the_whole_range():
    xp = array_api_compat.numpy
    pairs = ((1e300, 1e-300), (1e-300, 1e300), (1 + 2**-52, 1.0), (3e-320, 1e-320), (1.0, 1e308), (2.0, 3.0))
    for u, v in (*pairs, (1e-300, 3e20)):  # the last quotient is subnormal and has three digits
        with mpmath.workdps(60):
            d = mpmath.log(mpmath.mpf(u) / mpmath.mpf(v))
            truth = mpmath.expm1(d) - d
        u, v = np.asarray(u), np.asarray(v)
        with np.errstate(over="ignore"):
            assert float(log_ratio(xp, u, v)) == pytest.approx(float(d), rel=2e-15, abs=0)
            assert float(ratio_residual(xp, u, v)) == pytest.approx(float(truth), rel=2e-15, abs=0)
            assert float(mass_phi(xp, v, u)) == pytest.approx(float(truth * float(v)), rel=3e-15, abs=0)


def test_zero_masses():
    xp = array_api_compat.torch
    a = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.0, 2.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    result = mass_phi(xp, a, b)
    assert result.tolist() == [0.0, 2.0, math.inf, 0.0]
    by_a, by_b = torch.autograd.grad(result.sum(), (a, b))
    assert by_a.tolist() == [0.0, 0.0, math.inf, 0.0]
    assert by_b.tolist() == [0.0, 1.0, -math.inf, 0.0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocks_of_many_entries_match_single_rows(library):
    rng = np.random.default_rng(4)
    a = np.exp(rng.uniform(-6, 8, (90, 100)))
    h = a * rng.uniform(-0.9, 3, (90, 100))
    whole = (
        log_gamma_residual(torch.from_numpy(a), torch.from_numpy(h)) if library == "torch" else log_gamma_residual(a, h)
    )
    assert tuple(whole.shape) == (90, 100)
    rows = np.stack([log_gamma_residual(a[i], h[i]) for i in range(90)])
    np.testing.assert_allclose(np.asarray(whole), rows, rtol=1e-13)
    for index in ((0, 0), (45, 17), (89, 99)):
        truth = oracle.log_gamma_residual(a[index], h[index])
        assert float(abs(rows[index] - truth) / truth) < 1e-13
