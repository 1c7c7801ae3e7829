"""The gradient of the finite entries of a batch in which other entries are infinite."""

import jax
import mpmath as mp
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import kl
from kullback.errors import KullbackError

from .test_float32_gradients import COUNT, PAIRS, SHARED, draw

UNIVARIATE = [pair for pair in PAIRS if all(kind.support is not None for kind in pair) and f.VonMises not in pair]
POSITIVE = {"scale", "rate", "concentration"}  # parameters whose range is extended, except that of LogNormal


def draw_wide(kind, rng):
    """Parameters of which a third is so extreme that the KL may be infinite or overflow."""
    values = {}
    for name, value in draw(kind, rng).items():
        chosen = rng.uniform(size=COUNT) < 0.3
        if name in ("alpha", "df"):
            value = np.where(chosen, rng.uniform(0.3, 2.2, COUNT), value)
        elif name == "loc" or (name in POSITIVE and kind is not f.LogNormal):
            value = np.where(chosen, value * 10 ** rng.uniform(-30, 30, COUNT), value)
        values[name] = value
    return values


def tensors(values):
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def slopes(kind_p, kind_q, p, q, chosen=slice(None)):
    """The finite entries of the KL, and the gradient of their sum with respect to each parameter."""
    p, q = tensors({name: value[chosen] for name, value in p.items()}), tensors(q)
    kls = kl(kind_p(**p), kind_q(**q))
    finite = torch.isfinite(kls)
    leaves = [*p.values(), *q.values()]
    found = torch.autograd.grad(kls[finite].sum(), leaves, allow_unused=True)
    return finite.numpy(), [
        np.zeros(leaf.shape) if x is None else x.numpy() for x, leaf in zip(found, leaves, strict=True)
    ]


@pytest.mark.parametrize("pair", UNIVARIATE, ids=lambda pair: "-".join(kind.__name__ for kind in pair))
def test_infinite_entries_do_not_contribute_to_the_gradient(pair):
    rng = np.random.default_rng(0)
    shared = SHARED.get(pair[0], []) if pair[0] is pair[1] else []
    for trial in range(4):
        p, q = draw_wide(pair[0], rng), {name: value[trial] for name, value in draw_wide(pair[1], rng).items()}
        p |= {name: np.full(COUNT, q[name]) for name in shared}
        try:
            finite, of_all = slopes(*pair, p, q)
        except KullbackError:
            continue  # a formula that overflows is tested elsewhere
        _, alone = slopes(*pair, p, q, finite)
        names = [*p, *q]
        for name, got, expected in zip(names, of_all, alone, strict=True):
            if name in shared or np.isnan(expected).any():
                continue
            got = got[finite] if got.ndim else got
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=0, err_msg=name)


def test_student_t_with_infinite_variance():
    df = torch.tensor([1.5, 2.0, 3.0, 4.0], requires_grad=True)
    kls = kl(f.StudentT(df=df, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0))

    def truth(v):
        half = (v + 1) / 2
        entropy = half * (mp.digamma(half) - mp.digamma(v / 2)) + mp.log(mp.sqrt(v) * mp.beta(v / 2, mp.mpf(1) / 2))
        return v / (v - 2) / 2 - entropy

    expected = [0.0, 0.0, float(mp.diff(truth, 3)), float(mp.diff(truth, 4))]
    assert kls[:2].isinf().all()
    [got] = torch.autograd.grad(kls[2:].sum(), df, retain_graph=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    [got] = torch.autograd.grad(torch.where(kls.isfinite(), kls, 0.0).sum(), df)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transformed", [False, True])
def test_paretos_with_infinite_mean(dtype, transformed):
    alpha = torch.tensor([0.8, 3.0, 4.0], dtype=dtype)

    def finite_sum(rate):
        return kl(f.Pareto(scale=torch.ones((), dtype=dtype), alpha=alpha), f.Exponential(rate=rate))[1:].sum()

    rate = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    slope = torch.func.grad(finite_sum)(rate) if transformed else torch.autograd.grad(finite_sum(rate), rate)[0]
    # KL = rate alpha/(alpha - 1) - log(rate) + terms of alpha
    np.testing.assert_allclose(slope.detach(), 3 / 2 + 4 / 3 - 2 / 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "name"),
    [
        (f.StudentT(df=2.0, loc=0.0, scale=1.0), f.Normal, "scale"),
        (f.Pareto(scale=1.0, alpha=0.8), f.Exponential, "rate"),
        (f.Pareto(scale=1.0, alpha=[0.8, 0.9]), f.Exponential, "rate"),
        (f.Uniform(low=-1.0, high=1.0), f.Exponential, "rate"),
        (f.Uniform(low=[-1.0, -2.0], high=1.0), f.Beta, "concentration1"),
    ],
)
def test_the_gradient_of_infinite_entries_alone_is_0(p, q, name):
    value = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    others = {other: 1.0 for other in q.__dataclass_fields__ if other not in (name, "log_scale")}
    kls = kl(p, q(**{name: value}, **others))
    assert kls.isinf().all()
    [slope] = torch.autograd.grad(kls.sum(), value)
    assert slope == 0


def test_differences_of_locations_beyond_the_digits_of_float64():
    loc = torch.tensor([1e9, 1e16, 1e22], dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)
    kls = kl(f.Gumbel(loc=loc, scale=one), f.Gumbel(loc=0 * one, scale=one))
    [slope] = torch.autograd.grad(kls.sum(), loc)  # 1 - exp(-loc)
    np.testing.assert_array_equal(slope, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "family", "values"),
    [
        ([-1.0, -3.0, 0.5], [2.0, -2.0, 1.5], f.Exponential, {"rate": 2.0}),
        ([-1.0, -3.0, 0.5], [2.0, -2.0, 1.5], f.Gamma, {"concentration": 3.0, "rate": 2.0}),
        ([-1.0, -3.0, 0.5], [2.0, -2.0, 1.5], f.ChiSquared, {"df": 3.0}),
        ([-1.0, -3.0, 0.1, 0.5], [2.0, -2.0, 1.5, 1.5], f.Pareto, {"scale": 0.4, "alpha": 3.0}),
        ([-1.0, -3.0, 2.0, 0.5], [0.5, -2.0, 3.0, 0.9], f.Beta, {"concentration1": 3.0, "concentration0": 2.0}),
    ],
)
def test_intervals_outside_of_the_support_while_jax_traces(low, high, family, values):
    def finite_sum(values):
        kls = kl(f.Uniform(low=low, high=high), family(**values))
        return jax.numpy.where(jax.numpy.isfinite(kls), kls, 0.0).sum()

    def alone(values):
        return kl(f.Uniform(low=low[-1], high=high[-1]), family(**values))

    with jax.enable_x64(True):
        arrays = {name: jax.numpy.asarray(value) for name, value in values.items()}
        got, expected = jax.grad(finite_sum)(arrays), jax.grad(alone)(arrays)
    assert all(np.isfinite(slope) for slope in expected.values())
    for name in values:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-12)
