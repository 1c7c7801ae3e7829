"""Divergences other than KL: accuracy, limits, gradients, user-defined f-divergences and rejection of invalid input."""

import json
import math
from pathlib import Path

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kullback.discrete.divergence import divergence
from kullback.discrete.kl import kl_probs
from kullback.errors import NotNormalizedError, ShapeError, SupportError

from ..oracles import discrete as oracle

REFERENCE = Path(__file__).parents[1] / "data" / "discrete.json"
LIBRARIES = [np.asarray, torch.tensor, jnp.asarray, array_api_strict.asarray]
inf = math.inf
mp = oracle.mpmath

KINDS = [
    *(("alpha", {"alpha": alpha}) for alpha in (-2.0, -0.5, 0.0, 1e-9, 0.2, 0.5, 0.9, 1.0, 1 + 1e-9, 2.0, 5.0)),
    *(("renyi", {"order": order}) for order in (0.0, 1e-9, 0.2, 0.5, 0.9, 1 - 1e-12, 1.0, 1 + 1e-12, 2.0, 7.0, inf)),
    *(("tsallis", {"order": order}) for order in (0.0, 1e-9, 0.2, 0.5, 0.9, 1.0, 2.0, 7.0)),
    *(("js", {"weight": weight}) for weight in (0.5, 0.1, 0.999)),
    *((name, {}) for name in ("js", "jeffreys", "hellinger", "hellinger_squared")),
    *((name, {}) for name in ("chi_squared", "total_variation", "bhattacharyya")),
]


def truth(p, q, name, alpha=None, order=None, weight=0.5):
    """The definition in 700 digits, for these floats divided by their exact sums."""
    with mp.workdps(700):
        p, q = ([mp.mpf(float(v)) for v in side] for side in (p, q))
        p, q = ([v / mp.fsum(side) for v in side] for side in (p, q))
        if p == q:
            return mp.mpf(0)
        pairs = [(a, b) for a, b in zip(p, q, strict=True) if a or b]

        def kl(p, q):
            if any(a and not b for a, b in zip(p, q, strict=True)):
                return mp.inf
            return mp.fsum(a * mp.log(a / b) for a, b in zip(p, q, strict=True) if a)

        def power_sum(a):
            if (a > 1 and any(x and not y for x, y in pairs)) or (a < 0 and any(y and not x for x, y in pairs)):
                return mp.inf
            return mp.fsum(x**a * y ** (1 - a) for x, y in pairs if x and y)

        def renyi(a):
            if a == inf:
                return max(mp.log(x / y) if y else mp.inf for x, y in pairs if x)
            total = power_sum(mp.mpf(a))
            return mp.log(total) / (mp.mpf(a) - 1) if total else mp.inf

        match name:
            case "alpha":
                a = mp.mpf(alpha)
                return kl(q, p) if a == 0 else kl(p, q) if a == 1 else (1 - power_sum(a)) / (a * (1 - a))
            case "renyi":
                return kl(p, q) if order == 1 else renyi(order)
            case "tsallis":
                return kl(p, q) if order == 1 else (power_sum(mp.mpf(order)) - 1) / (mp.mpf(order) - 1)
            case "js":
                w = mp.mpf(weight)
                mean = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
                return w * kl(p, mean) + (1 - w) * kl(q, mean)
            case "jeffreys":
                return kl(p, q) + kl(q, p)
            case "hellinger":
                return mp.sqrt(1 - power_sum(mp.mpf(0.5)))
            case "hellinger_squared":
                return 1 - power_sum(mp.mpf(0.5))
            case "bhattacharyya":
                return renyi(0.5) / 2
            case "chi_squared":
                return mp.fsum((a - b) ** 2 / b for a, b in pairs) if all(b for _, b in pairs) else mp.inf
            case "total_variation":
                return mp.fsum(abs(a - b) for a, b in pairs) / 2


def is_close(got, exact, tolerance):
    if mp.isinf(exact) or exact == 0:
        return float(got) == float(exact)
    return abs(mp.mpf(float(got)) - exact) <= tolerance * abs(exact)


# Accuracy.


def reference_cases():
    for case in json.loads(REFERENCE.read_text())["cases"]:
        if "p" not in case:
            continue
        delta = float(case["name"].removeprefix("nearly equal ")) if case["name"].startswith("nearly") else None
        p, q = ([float(value) for value in case[side]] for side in "pq")
        for name in ("js", "total_variation", "hellinger_squared", "renyi_2", "chi_squared"):
            expected = float(case[name])
            if name == "chi_squared" and expected == inf and float(case["renyi_2"]) < inf:
                # The file counts the pair 0, 0 as infinite; chi-squared is exp(renyi_2) - 1.
                expected = math.expm1(float(case["renyi_2"]))
            yield pytest.param(p, q, name, expected, delta, id=f"{case['name'][:24]}-{name}")


@pytest.mark.parametrize(
    "library",  # JAX compiles each function for each shape
    [pytest.param(one, marks=pytest.mark.slow) if one is jnp.asarray else one for one in LIBRARIES],
)
@pytest.mark.parametrize(("p", "q", "name", "expected", "delta"), list(reference_cases()))
def test_reference_values(p, q, name, expected, delta, library):
    tolerance = 1e-13 + (4e-16 / delta if delta else 0)
    parameters = {"order": 2} if name == "renyi_2" else {}
    with jax.enable_x64(True):
        p, q = (library(np.asarray(side)) for side in (p, q))
        got = float(divergence(p, q, name.removesuffix("_2"), **parameters))
    assert got == pytest.approx(expected, rel=tolerance, abs=0)


@pytest.mark.parametrize(("name", "parameters"), KINDS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 3e-14), (np.float32, 1e-5)])
def test_every_divergence_is_accurate_at_every_distance(name, parameters, dtype, tolerance):
    rng = np.random.default_rng(5)
    for delta in (30.0, 3.0, 1.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13):
        p = rng.dirichlet(np.ones(20))
        q = p * np.exp(delta * rng.normal(size=20))
        p, q = p.astype(dtype), (q / q.sum()).astype(dtype)
        if dtype is np.float32 and ((q < 1e-38) & (q > 0)).any() | (delta > 3):
            continue
        exact = truth(p, q, name, **parameters)
        if dtype is np.float32 and not abs(exact) < 1e38:
            continue
        # The rounding of p/q is amplified by the exponent.
        slack = max(1.0, abs(parameters.get("alpha", 1.0)), min(parameters.get("order", 1.0), 10.0))
        # The divergence of order inf is of first order in the rounding of the mass.
        if parameters.get("order") == inf:
            slack += 2 / delta
        got = divergence(p, q, name, **parameters)
        assert is_close(got, exact, tolerance * slack), (delta, float(got), exact)
        assert type(got) is np.float64
        assert dtype(got) == got


@pytest.mark.parametrize(("name", "parameters"), KINDS, ids=str)
def test_zeros_and_disjoint_supports(name, parameters):
    pairs = [
        ([0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.5, 0.0]),
        ([0.25, 0.25, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]),
        ([0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.75, 0.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]),
        ([1.0, 0.0], [1.0, 0.0]),
        ([0.0, 1e-300, 1.0], [1e-300, 1e-300, 1.0]),
        ([1e-300, 1.0], [1.0, 1e-300]),
        ([5e-324, 1.0], [1.0, 5e-324]),
        ([1e-200, 1.0], [5e-324, 1.0]),
    ]
    for p, q in pairs:
        exact = truth(p, q, name, **parameters)
        if exact > 1e308:
            exact = mp.inf
        got = divergence(p, q, name, **parameters)
        # A mass of 1e-300 is below the rounding error of the sums.
        below_rounding = 1e-299 / max(parameters.get("alpha", 1.0), 1e-9)
        assert is_close(got, exact, 1e-12) or abs(float(got) - float(exact)) <= below_rounding, (
            p,
            q,
            float(got),
            exact,
        )
        for library in LIBRARIES[1:]:
            # JAX treats subnormal results as 0, and compiles once for each length.
            if library is jnp.asarray and len(p) != 4:
                continue
            with jax.enable_x64(True):
                same = float(divergence(library(np.asarray(p)), library(np.asarray(q)), name, **parameters))
            assert same == pytest.approx(float(got), rel=1e-12, abs=below_rounding)


def test_orders_converge_to_their_limits():
    rng = np.random.default_rng(6)
    p, q = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    p[0], p[1] = 0.0, p[1] + p[0]
    kl, reverse = float(kl_probs(p, q)), float(kl_probs(q[1:] / q[1:].sum(), p[1:] / p[1:].sum()))
    for name, key in (("renyi", "order"), ("tsallis", "order"), ("alpha", "alpha")):
        # The compiled kernel, which is loaded after a hundred calls, rounds differently.
        assert float(divergence(p, q, name, **{key: 1})) == pytest.approx(kl, rel=1e-15)
        for step in (-1e-12, 1e-12, -1e-7, 1e-7):
            assert float(divergence(p, q, name, **{key: 1 + step})) == pytest.approx(kl, rel=abs(step) * 10)
    assert float(divergence(p[1:], q[1:] / q[1:].sum(), "alpha", alpha=0)) == pytest.approx(reverse, rel=1e-14)
    assert float(divergence(p, q, "alpha", alpha=0)) == inf
    assert float(divergence(p, q, "renyi", order=0)) == pytest.approx(-math.log1p(-q[0]), rel=1e-14)
    assert float(divergence(p, q, "renyi", order=1e-14)) == pytest.approx(-math.log1p(-q[0]), rel=1e-12)
    assert float(divergence(p, q, "tsallis", order=0)) == pytest.approx(q[0], rel=1e-15)
    most = float(divergence(p, q, "renyi", order=inf))
    assert most == pytest.approx(max(math.log(a / b) for a, b in zip(p, q, strict=True) if a), rel=1e-15)
    assert float(divergence(p, q, "renyi", order=1e31)) == most
    assert float(divergence(p, q, "renyi", order=1e29)) == pytest.approx(most, rel=1e-15)
    assert float(divergence(p, q, "renyi", order=1e4)) == pytest.approx(most, rel=1e-3)
    narrow = (side.astype(np.float32) for side in (p, q))
    assert float(divergence(*narrow, "renyi", order=1e29)) == pytest.approx(most, rel=1e-6)
    # Replacing alpha by 1 - alpha exchanges p and q.
    for alpha in (-1.5, 0.25, 2.0):
        if alpha > 0:
            forth = float(divergence(p, q, "alpha", alpha=alpha))
            assert forth == pytest.approx(float(divergence(q, p, "alpha", alpha=1 - alpha)), rel=1e-13)


# Gradients.

SMOOTH = [(name, parameters) for name, parameters in KINDS if name not in {"total_variation"}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), SMOOTH, ids=str)
def test_gradients_match_finite_differences_and_agree_across_libraries(name, parameters):
    generator = torch.Generator().manual_seed(3)
    for scale in (2.0, 0.2):
        p = torch.randn(1, 4, dtype=torch.float64, generator=generator)
        q = p + scale * torch.randn(1, 4, dtype=torch.float64, generator=generator)

        def value(p, q):
            return divergence(p.softmax(-1), q.softmax(-1), name, **parameters)

        p, q = p.requires_grad_(), q.requires_grad_()
        assert torch.autograd.gradcheck(value, (p, q), rtol=1e-4, atol=1e-6)
        if parameters.get("order") != inf:
            assert torch.autograd.gradgradcheck(value, (p, q), rtol=1e-3, atol=1e-5)
        if scale > 1:  # compilation is slow
            continue
        by_p, by_q = torch.autograd.grad(value(p, q).sum(), (p, q))
        with jax.enable_x64(True):

            def twin(p, q):
                return divergence(jax.nn.softmax(p), jax.nn.softmax(q), name, **parameters).sum()

            given = (jnp.asarray(p.detach().numpy()), jnp.asarray(q.detach().numpy()))
            for got, expected in zip(jax.jit(jax.grad(twin, (0, 1)))(*given), (by_p, by_q), strict=True):
                np.testing.assert_allclose(got, expected.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("name", "parameters"), KINDS, ids=str)
def test_gradients_are_finite_at_equality_and_at_zeros(name, parameters):
    uneven = torch.tensor([0.1, 0.2, 0.7, 0.0], dtype=torch.float64)
    for p, q in (
        (uneven, uneven),
        (torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.25, 0.5, 0.25, 0.0])),
        (torch.tensor([0.25, 0.5, 0.25, 0.0]), torch.tensor([0.5, 0.5, 0.0, 0.0])),
        (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])),
    ):
        p, q = p.clone().requires_grad_(), q.clone().requires_grad_()
        divergence(p, q, name, **parameters).backward()
        for side in (p, q):
            assert torch.isfinite(side.grad).all()
            assert side.grad[-1] == 0
            if torch.equal(p, q):
                torch.testing.assert_close(side.grad, torch.zeros_like(side), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("name", "parameters"), KINDS, ids=str)
def test_gradients_do_not_depend_on_the_mass(name, parameters):
    # The divergence depends only on p/sum(p), so that its derivative in the direction of p is 0.
    generator = torch.Generator().manual_seed(5)
    p, q = (torch.randn(3, 5, dtype=torch.float64, generator=generator).softmax(-1).requires_grad_() for _ in range(2))
    divergence(p, q, name, **parameters).sum().backward()
    for side in (p, q):
        assert abs((side.detach() * side.grad).sum(-1)).max() < 1e-14 * max(1.0, float(abs(side.grad).max()))


def test_powers_of_large_ratios_are_accurate():
    rng = np.random.default_rng(7)
    for _ in range(20):
        p, q = (10.0 ** rng.uniform(-130, 0, size=6) for _ in range(2))
        p, q = p / p.sum(), q / q.sum()
        for name, parameters in (("chi_squared", {}), ("alpha", {"alpha": -1.0}), ("tsallis", {"order": 2.5})):
            assert is_close(divergence(p, q, name, **parameters), truth(p, q, name, **parameters), 4e-15)


def test_gradients_at_zeros():
    # The one-sided derivative with respect to p at p_2 = 0, in the direction e_2 - e_0.
    p, q = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    direction = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    for name, parameters in (
        ("chi_squared", {}),
        ("total_variation", {}),
        ("renyi", {"order": 3}),
        ("tsallis", {"order": 3}),
    ):
        given = p.clone().requires_grad_()
        before = divergence(given, q, name, **parameters)
        before.backward()
        change = (divergence(p + 1e-7 * direction, q, name, **parameters) - before.detach()) / 1e-7
        assert float(given.grad @ direction) == pytest.approx(float(change), rel=1e-5)


# Any f.

GENERATORS = [
    (lambda xp: lambda t: t * xp.log(t), lambda p, q: kl_probs(p, q)),
    (lambda xp: lambda t: -xp.log(t), lambda p, q: kl_probs(q, p)),
    (lambda xp: lambda t: (t - 1) * (t - 1), lambda p, q: divergence(p, q, "chi_squared")),
    (lambda xp: lambda t: t * t - 1, lambda p, q: divergence(p, q, "chi_squared")),
    (lambda xp: lambda t: abs(t - 1) / 2, lambda p, q: divergence(p, q, "total_variation")),
    (lambda xp: lambda t: 1 - xp.sqrt(t), lambda p, q: divergence(p, q, "hellinger_squared")),
    (lambda xp: lambda t: (xp.sqrt(t) - 1) ** 2 / 2, lambda p, q: divergence(p, q, "hellinger_squared")),
    (lambda xp: lambda t: (t - 1) * xp.log(t), lambda p, q: divergence(p, q, "jeffreys")),
    (
        lambda xp: lambda t: (t * xp.log(t) - (t + 1) * xp.log((t + 1) / 2)) / 2,
        lambda p, q: divergence(p, q, "js"),
    ),
    (lambda xp: lambda t: (t**3 - t) / 6, lambda p, q: divergence(p, q, "alpha", alpha=3)),
]
SPACES = [
    (np, np.asarray),
    (torch, torch.tensor),
    pytest.param(jnp, jnp.asarray, marks=pytest.mark.slow),
    (array_api_strict, array_api_strict.asarray),
]


@pytest.mark.parametrize(("xp", "library"), SPACES, ids=["numpy", "torch", "jax", "strict"])
@pytest.mark.parametrize("index", range(len(GENERATORS)))
def test_a_function_generates_the_named_divergence(index, xp, library):
    make, named = GENERATORS[index]
    pairs = [
        ([0.4, 0.3, 0.2, 0.1, 0.0], [0.3, 0.3, 0.3, 0.1, 0.0]),
        ([0.5, 0.5, 0.0], [0.25, 0.5, 0.25]),
        ([0.25, 0.5, 0.25], [0.5, 0.5, 0.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([0.5, 0.5], [1e-30, 1.0]),
    ]
    for p, q in pairs:
        with jax.enable_x64(True):
            got = float(divergence(library(np.asarray(p)), library(np.asarray(q)), make(xp)))
        assert got == pytest.approx(float(named(p, q)), rel=1e-12, abs=1e-15), (p, q)
        if min(q) != 1e-30:  # the square of its inverse overflows in float32
            narrow = [library(np.asarray(side, dtype=np.float32)) for side in (p, q)]
            assert float(divergence(*narrow, make(xp))) == pytest.approx(float(named(p, q)), rel=1e-5, abs=1e-6)


def test_a_function_is_accurate_near_equality():
    rng = np.random.default_rng(9)
    for delta in (1e-2, 1e-4, 1e-6):
        p = rng.dirichlet(np.ones(12))
        q = p * np.exp(delta * rng.normal(size=12))
        q = q / q.sum()
        for index in (0, 1, 3, 5):
            make, named = GENERATORS[index]
            if index == 3:
                continue  # t * t - 1 cancels
            got = float(divergence(p, q, make(np)))
            # 1 - sqrt(t) cancels near t = 1.
            tolerance = 1e-13 + (4e-16 / delta if index < 3 else 2e-15 / delta**2)
            assert got == pytest.approx(float(named(p, q)), rel=tolerance, abs=0), (delta, index)


def test_a_function_under_differentiation_and_tracing():
    generator = torch.Generator().manual_seed(4)
    p, q = (torch.randn(2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    p, q = p.requires_grad_(), q.requires_grad_()

    def value(p, q):
        return divergence(p.softmax(-1), q.softmax(-1), lambda t: t * torch.log(t))

    assert torch.autograd.gradcheck(value, (p, q))
    assert torch.autograd.gradgradcheck(value, (p, q))
    with jax.enable_x64(True):
        given = [jnp.asarray(side.detach().numpy()) for side in (p, q)]

        def twin(p, q):
            return divergence(jax.nn.softmax(p), jax.nn.softmax(q), lambda t: t * jnp.log(t)).sum()

        expected = torch.autograd.grad(value(p, q).sum(), (p, q))
        for side, other in zip(jax.jit(jax.grad(twin, (0, 1)))(*given), expected, strict=True):
            np.testing.assert_allclose(side, other.numpy(), rtol=1e-11)
    # t log t has an infinite slope at 0.
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.5, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    divergence(p, q, lambda t: t * torch.log(t)).backward()
    torch.testing.assert_close(q.grad, torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t: t * np.log(t) + 1, r"f\(1\) = 0, got 1\.0; subtract it"),
        (lambda t: np.sqrt(t) - 1, "convex f of ratios, but around t = 0.03125 its slope decreases from"),
        (lambda t: np.sin(t - 1), "convex f"),
        (lambda t: t * 0 + np.nan, r"f\(1\) = 0, got nan"),
        (lambda t: 1 - t + t * t / (1 + np.log1p(t)) - 1 / (1 + math.log(2)), None),
    ],
)
def test_invalid_functions_are_rejected(f, message):
    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    if message is None:  # f(t)/t diverges slowly
        assert divergence(q, p, f) == inf
        return
    with pytest.raises(SupportError, match=message):
        divergence(p, q, f)


def test_a_limit_that_cannot_be_estimated_must_be_passed():
    def f(t):
        return (t - 1) - (t / (1 + np.log1p(t)) - 1 / (1 + math.log(2))) / 4

    p, q = [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]
    with pytest.raises(SupportError, match=r"f\(t\)/t as t -> infinity to converge, got .*; pass at_infinity="):
        divergence(q, p, f)
    assert 0 < divergence(q, p, f, at_infinity=1.0) < inf
    with pytest.raises(ShapeError, match="keep the shape"):
        divergence(p, q, lambda t: t.sum() - t.sum())


# Invalid input.


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("jensen", {}, SupportError, "did you mean"),
        ("chi2", {}, SupportError, "did you mean 'chi_squared'"),
        ("hellinger_square", {}, SupportError, "did you mean 'hellinger_squared'"),
        ("tv", {}, SupportError, "the names are alpha"),
        ("kl", {}, SupportError, "for KL\\(p \\|\\| q\\) call kl_probs"),
        (3, {}, SupportError, "got 3"),
        ("renyi", {}, TypeError, "'renyi' takes order=; got none"),
        ("renyi", {"alpha": 2}, TypeError, "takes order=; got alpha=2"),
        ("renyi", {"order": [1, 2]}, TypeError, "order to be a number"),
        ("renyi", {"order": None}, TypeError, "order to be a number"),
        (["js"], {}, SupportError, "did you mean 'js'"),
        (lambda t: 0, {}, ShapeError, "keep the shape"),
        ("js", {"base": 2}, TypeError, "takes weight"),
        ("hellinger", {"order": 2}, TypeError, "takes no parameters"),
        ("renyi", {"order": -0.5}, SupportError, "order from 0 to infinity, got -0.5"),
        ("renyi", {"order": math.nan}, SupportError, "got nan"),
        ("tsallis", {"order": inf}, SupportError, "below infinity, got inf"),
        ("tsallis", {"order": -1}, SupportError, "got -1"),
        ("alpha", {"alpha": inf}, SupportError, "finite alpha, got inf"),
        ("js", {"weight": 0}, SupportError, "between 0 and 1, got 0"),
        ("js", {"weight": 1.5}, SupportError, "got 1.5"),
    ],
)
def test_invalid_names_and_parameters_are_rejected(name, parameters, error, message):
    with pytest.raises(error, match=message):
        divergence([0.5, 0.5], [0.5, 0.5], name, **parameters)


@pytest.mark.parametrize("kind", ["js", "renyi", abs])
def test_invalid_probabilities_are_rejected(kind):
    kind, parameters = (lambda t: abs(t - 1), {}) if kind is abs else (kind, {"order": 2} if kind == "renyi" else {})
    with pytest.raises(NotNormalizedError, match=r"q\[1\] is -0.5"):
        divergence([0.5, 0.5], [1.5, -0.5], kind, **parameters)
    with pytest.raises(NotNormalizedError, match="p to sum to 1"):
        divergence([0.5, 0.4], [0.5, 0.5], kind, **parameters)
    with pytest.raises(ShapeError, match="broadcast"):
        divergence([0.5, 0.5], [0.5, 0.25, 0.25], kind, **parameters)


def test_an_error_of_the_users_function_names_the_function():
    def broken(t):
        raise KeyError("no such key")

    with pytest.raises(SupportError, match=r"expected broken to accept an array of ratios.*KeyError") as caught:
        divergence([0.5, 0.5], [0.25, 0.75], broken)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SupportError, match="ZeroDivisionError: division by zero"):
        divergence([0.5, 0.5], [0.25, 0.75], lambda t: 1 / 0)
