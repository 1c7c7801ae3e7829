"""Values and gradients of every registered pair in float32, against float64, over wide parameters.

The tolerance includes the change of the float64 result when each parameter changes by one rounding error of float32, so
that only errors of the formula count.
"""

import jax
import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import special

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.distributions import kl

from ..oracles import families as oracle

COUNT = 64
ONE_ULP = 1.2e-7
# Where p and q of one family must share a parameter, the gradient with respect to one side is not determined.
SHARED = {**oracle.SHARED, f.Zipfian: ["total_count"]}


def log_uniform(low, high):
    return lambda rng, shape: np.exp(rng.uniform(np.log(low), np.log(high), shape))


def signed(rng, shape):
    return rng.normal(size=shape) * WIDE(rng, shape)


WIDE = log_uniform(1e-3, 1e3)
RANGES = {
    "alpha": log_uniform(2.5, 1e3),
    "exponent": lambda rng, shape: 1 + log_uniform(1e-2, 20)(rng, shape),
    "probs": lambda rng, shape: np.clip(1 / (1 + np.exp(4 * rng.normal(size=shape))), 1e-6, 1 - 1e-6),
    "total_count": lambda rng, shape: rng.integers(1, 50, shape) * 1.0,
    "low": signed,
    "loc": signed,
}
OWN_RANGES = {
    (f.StudentT, "df"): log_uniform(2.5, 1e3),
    (f.VonMises, "loc"): lambda rng, shape: rng.uniform(-3, 3, shape),
    (f.Weibull, "concentration"): log_uniform(0.03, 30),
    (f.LogNormal, "scale"): log_uniform(1e-2, 5),
    (f.LogNormal, "loc"): lambda rng, shape: 5 * rng.normal(size=shape),
    (f.NegativeBinomial, "total_count"): WIDE,
    # The terms of a gradient with respect to an end of the interval are as large as the KL.
    (f.TruncatedNormal, "loc"): lambda rng, shape: rng.normal(size=shape),
    (f.TruncatedNormal, "low"): lambda rng, shape: rng.normal(size=shape),
    (f.TruncatedNormal, "scale"): log_uniform(0.3, 3),
}
EVENTS = {f.Dirichlet: (4,)}
SKIPPED = {  # families whose parameters are categories, counts, matrices or other distributions
    *(f.Categorical, f.OneHotCategorical, f.Multinomial, f.Hypergeometric, f.NormalMixture),
    *(f.MultivariateNormal, f.LowRankMultivariateNormal, f.MatrixNormal, f.Wishart, f.InverseWishart),
    f.LKJ,  # tested in tests/closed_forms/test_lkj.py; its dim is one number
}
PAIRS = [pair for pair in FORMS if pair[0].__module__.startswith("kullback") and not SKIPPED & set(pair)]


def draw(kind, rng):
    if kind is f.VonMisesFisher:
        directions = rng.normal(size=(COUNT, 3))
        return {
            "mean_direction": directions / np.linalg.norm(directions, axis=-1, keepdims=True),
            "concentration": WIDE(rng, COUNT),
        }
    names = [name for name in kind.__dataclass_fields__ if name not in ("logits", "high")]
    shape = (COUNT, *EVENTS.get(kind, ()))
    values = {name: OWN_RANGES.get((kind, name), RANGES.get(name, WIDE))(rng, shape) for name in names}
    if kind in (f.Uniform, f.TruncatedNormal):
        values["high"] = values["low"] + WIDE(rng, COUNT)
    return values


def draw_pair(pair, rng):
    """Parameters such that the support of q contains the support of p, a third of them nearly equal."""
    p, q = (draw(kind, rng) for kind in pair)
    p_class, q_class = pair
    if p_class is q_class and p_class is not f.Uniform:
        near = rng.random(COUNT) < 0.3
        for name in set(p) - {"total_count", "mean_direction", "low", "high"}:
            change = 1 + rng.normal(size=p[name].shape) * 10 ** rng.uniform(-4, -0.5, p[name].shape)
            q[name] = np.where(near.reshape(COUNT, *[1] * (p[name].ndim - 1)), p[name] * change, q[name])
    for name in SHARED.get(p_class, ()) if p_class is q_class else ():
        q[name] = p[name]
    if p_class is f.Uniform and q_class in (f.Beta, f.ContinuousBernoulli):
        p["low"], p["high"] = np.sort(rng.uniform(0, 1, (2, COUNT)), axis=0)
    if p_class is f.Uniform and q_class in (f.Gamma, f.Exponential, f.ChiSquared, f.Pareto):
        p["low"] = abs(p["low"])
        p["high"] = p["low"] + WIDE(rng, COUNT)
    if q_class is f.Uniform:
        q["low"] = (p["low"] if p_class is f.Uniform else 0) - WIDE(rng, COUNT)
        q["high"] = (p["high"] if p_class is f.Uniform else 1) + WIDE(rng, COUNT)
    if q_class is f.TruncatedNormal:
        q["low"], q["high"] = p["low"] - WIDE(rng, COUNT), p["high"] + WIDE(rng, COUNT)
    if q_class is f.Pareto:
        q["scale"] = 0.9 * p.get("low", p.get("scale"))
    if p_class is f.Laplace and q_class is f.Gumbel:
        q["scale"] = p["scale"] * (1 + WIDE(rng, COUNT))
    if p_class is f.Poisson and q_class is not f.Poisson:
        p["rate"] = np.zeros(COUNT)
    if p_class is f.Binomial and q_class is f.Bernoulli:
        p["total_count"] = np.ones(COUNT)
    if f.Zipfian in pair:
        p["exponent"], q["exponent"] = (3 * rng.normal(size=COUNT) for _ in "pq")
    limits = {"probs": (1e-6, 1 - 1e-6), "exponent": (-np.inf if f.Zipfian in pair else 1.001, np.inf)}
    for side in (p, q):
        side.update({name: np.clip(side[name], *limits[name]) for name in limits if name in side})
    return tuple({name: np.float32(value) for name, value in side.items()} for side in (p, q))


def by_torch(pair, sides, dtype):
    def leaf(name, value):
        value = np.asarray(value, float)
        value = value / np.linalg.norm(value, axis=-1, keepdims=True) if name == "mean_direction" else value
        return torch.tensor(value, dtype=dtype, requires_grad=True)

    leaves = [{name: leaf(name, value) for name, value in side.items()} for side in sides]
    result = kl(*(kind(**side) for kind, side in zip(pair, leaves, strict=True)))
    wanted = [value for side in leaves for value in side.values()]
    gradients = torch.autograd.grad(result.sum(), wanted, allow_unused=True)
    gradients = [torch.zeros_like(x) if slope is None else slope for slope, x in zip(gradients, wanted, strict=True)]
    return [np.asarray(array.detach(), float) for array in (result, *gradients)]


def by_jax(pair, sides):
    def total(leaves):
        result = kl(*(kind(**side) for kind, side in zip(pair, leaves, strict=True)))
        return result.sum(), result

    leaves = [{name: jax.numpy.asarray(value) for name, value in side.items()} for side in sides]
    (_, result), slopes = jax.value_and_grad(total, has_aux=True)(leaves)
    return [np.asarray(x, float) for x in (result, *(slopes[i][name] for i, side in enumerate(sides) for name in side))]


def perturbed(pair, sides, rng):
    changed = []
    for side in sides:
        changed.append({})
        for name, value in side.items():
            change = 0.0 if name in ("total_count", "mean_direction") else ONE_ULP * rng.uniform(-1, 1, value.shape)
            changed[-1][name] = np.float64(value) * (1 + change)
    for name in SHARED.get(pair[0], ()) if pair[0] is pair[1] else ():
        changed[1][name] = changed[0][name]
    return changed


@pytest.mark.parametrize(
    "library", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("jax", "jax with 64 bits enabled"))]
)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_float32_agrees_with_float64(pair, library):
    if library != "torch" and (f.Zipfian in pair or pair == (f.Bernoulli, f.Binomial)):
        pytest.skip("a sum over traced counts has no fixed length")
    rng = np.random.default_rng(11)
    sides = draw_pair(pair, rng)
    truth = by_torch(pair, sides, torch.float64)
    changes = [by_torch(pair, perturbed(pair, sides, rng), torch.float64) for _ in range(4)]
    with jax.enable_x64("64 bits" in library):
        got = by_torch(pair, sides, torch.float32) if library == "torch" else by_jax(pair, sides)
    fits = abs(truth[0]) < 1e30  # the KL does not overflow float32
    assert fits.any()
    names = ["value", *(f"{letter}.{name}" for letter, side in zip("pq", sides, strict=True) for name in side)]
    sizes = [np.ones(COUNT), *(np.float64(value) for side in sides for value in side.values())]
    for name, size, want, value, *others in zip(names, sizes, truth, got, *changes, strict=True):
        bare = name.partition(".")[2]
        if bare == "total_count" or (pair[0] is pair[1] and bare in SHARED.get(pair[0], ())):
            continue
        rows = fits.reshape(COUNT, *[1] * (want.ndim - 1)) & (abs(want) < 1e30)
        if name == "value":
            rows = rows & np.isfinite(want)
        with np.errstate(invalid="ignore"):  # inf - inf
            sensitivity = np.max([abs(other - want) for other in others], axis=0)
        # An error of 1e-6 nats for a relative change of the parameter by 1 is a rounding error of the terms.
        tolerance = 1e-3 * abs(want) + 50 * sensitivity + 1e-6 / np.maximum(abs(size), 1e-3)
        with np.errstate(invalid="ignore"):
            bad = rows & ~(abs(value - want) <= tolerance)
        assert not bad.any(), f"{name}: {value[bad][:3]} for {want[bad][:3]}"


# PyTorch itself compiles its forward-mode rules by torch.jit.script, which it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def test_forward_mode_of_torch_equals_reverse_mode(pair):
    p, q = draw_pair(pair, np.random.default_rng(12))
    counts = {"total_count", "mean_direction", *(SHARED.get(pair[0], ()) if pair[0] is pair[1] else ())}
    keys = [(i, name) for i, side in enumerate((p, q)) for name in side if name not in counts]
    leaves = [torch.tensor(np.float64((p, q)[i][name][:4])) for i, name in keys]

    def value(*leaves):
        sides = [{name: torch.tensor(np.float64(entry[:4])) for name, entry in side.items()} for side in (p, q)]
        for (i, name), leaf in zip(keys, leaves, strict=True):
            sides[i][name] = leaf
        for side in sides:
            if "mean_direction" in side:
                side["mean_direction"] = side["mean_direction"] / side["mean_direction"].norm(dim=-1, keepdim=True)
        for name in SHARED.get(pair[0], ()) if pair[0] is pair[1] else ():
            sides[1][name] = sides[0][name]
        return kl(pair[0](**sides[0]), pair[1](**sides[1]))

    generator = torch.Generator().manual_seed(0)
    tangents = [torch.randn(leaf.shape, dtype=torch.float64, generator=generator) for leaf in leaves]
    _, forward = torch.func.jvp(value, tuple(leaves), tuple(tangents))
    _, pull = torch.func.vjp(value, *leaves)
    rows = [pull(row) for row in torch.eye(4, dtype=torch.float64)]
    reverse = torch.stack([sum((g * t).sum() for g, t in zip(row, tangents, strict=True)) for row in rows])
    # The rows of a zero cotangent are 0 * inf where the KL of another row overflows.
    fits = torch.isfinite(forward) & torch.isfinite(reverse) & (abs(forward) < 1e100)
    assert fits.any() or pair[1] in (f.Gumbel, f.Weibull)
    torch.testing.assert_close(forward[fits], reverse[fits], rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("first", [-30.0, -17.8, 12.0, 17.7904, 20.0, 60.0])
@pytest.mark.parametrize("second", [-18.5035, -1.0, 0.0, 9.0])
def test_gradients_of_saturated_logits_in_float32(first, second):
    # The derivative with respect to the first logit is p (1 - p) (first - second), and to the second it is q - p.
    p, other = mp.mpf(first), mp.mpf(second)
    truth = float((p - other) / (1 + mp.exp(-p)) / (1 + mp.exp(p)))
    for kind, count in ((f.Bernoulli, None), (f.Binomial, 5)):
        extra = {} if count is None else {"total_count": count}

        def value(first, second, kind=kind, extra=extra):
            return kl(kind(logits=first, **extra), kind(logits=second, **extra))

        by_jax = float(jax.grad(value)(jax.numpy.float32(first), jax.numpy.float32(second)))
        leaf = torch.tensor(first, requires_grad=True)
        by_transform = float(torch.func.grad(value)(leaf.detach(), torch.tensor(second)))
        value(leaf, torch.tensor(second)).backward()
        for slope in (by_jax, by_transform, float(leaf.grad)):
            assert slope == pytest.approx((count or 1) * truth, rel=2e-6)


@pytest.mark.parametrize("library", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_gradient_of_von_mises_in_float32(library):
    # I_1(100)/I_0(100) - I_1(10)/I_0(10) is minus the derivative with respect to the second concentration.
    slopes = []
    for concentration in (2.0, 100.0):
        if library == "torch":
            q = torch.tensor(10.0, requires_grad=True)
            kl(
                f.VonMises(loc=0.0, concentration=torch.tensor(concentration)), f.VonMises(loc=0.0, concentration=q)
            ).backward()
            slopes.append(float(q.grad))
        else:
            p = f.VonMises(loc=0.0, concentration=jax.numpy.float32(concentration))
            slope = jax.grad(lambda x, p=p: kl(p, f.VonMises(loc=0.0, concentration=x)))
            slopes.append(float(slope(jax.numpy.float32(10.0))))
    truth = [float(special.i1e(10.0) / special.i0e(10.0) - special.i1e(x) / special.i0e(x)) for x in (2.0, 100.0)]
    np.testing.assert_allclose(slopes, truth, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_second_derivatives_by_forward_mode_of_torch():
    def value(x):
        return kl(f.Gamma(concentration=x, rate=2.0), f.Gamma(concentration=3.0, rate=1.0)).sum()

    x = torch.tensor([1.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(torch.func.hessian(value)(x), torch.func.jacrev(torch.func.jacrev(value))(x))
    with pytest.raises(NotImplementedError, match="one level of forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(value))(x)
