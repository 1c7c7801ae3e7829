"""Functions of torch.func and JAX of the KL of every registered univariate pair and of every divergence."""

import jax
import mpmath as mp
import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.discrete.divergence import divergence
from kullback.discrete.kl import kl_logits, kl_probs
from kullback.distributions import kl
from kullback.errors import NoClosedFormError

from .test_float32_gradients import PAIRS, SHARED, draw_pair

COUNTS = {f.Binomial, f.Zipfian}  # a sum over counts that are mapped has no fixed length
UNIVARIATE = [pair for pair in PAIRS if all(kind.support is not None for kind in pair) and not COUNTS & set(pair)]


@pytest.mark.slow
@pytest.mark.parametrize("pair", UNIVARIATE, ids=lambda pair: "-".join(kind.__name__ for kind in pair))
def test_mapped_gradients_are_the_gradients_of_the_batch(pair):
    p, q = draw_pair(pair, np.random.default_rng(0))  # values that float32 represents
    shared = SHARED.get(pair[0], []) if pair[0] is pair[1] else []
    leaves = {
        f"{side}.{name}": torch.tensor(value[:5], dtype=torch.float64)
        for side, values in (("p", p), ("q", q))
        for name, value in values.items()
    }

    def of_leaves(leaves):
        sides = ({name[2:]: x for name, x in leaves.items() if name[0] == side} for side in "pq")
        p, q = sides
        return kl(pair[0](**p), pair[1](**(q | {name: p[name] for name in shared})))

    mapped = torch.func.vmap(torch.func.grad(of_leaves))(leaves)
    tracked = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    kls = of_leaves(tracked)
    finite = kls.isfinite()
    whole = torch.autograd.grad(kls.sum(), list(tracked.values()), allow_unused=True)
    for (name, got), expected in zip(mapped.items(), whole, strict=True):
        expected = torch.zeros_like(got) if expected is None else expected
        np.testing.assert_allclose(got[finite], expected[finite], rtol=1e-8, atol=1e-12, err_msg=name)


NAMES = ["total_variation", "hellinger", "js", "chi_squared", "jeffreys", "bhattacharyya"]


@pytest.mark.parametrize("name", NAMES)
def test_mapped_gradients_of_divergences(name):
    rng = np.random.default_rng(0)
    p, q = (torch.tensor(rng.dirichlet(np.ones(4), size=3)) for _ in range(2))
    mapped = torch.func.vmap(torch.func.grad(lambda p, q: divergence(p, q, name), argnums=(0, 1)))(p, q)
    leaves = [side.clone().requires_grad_() for side in (p, q)]
    whole = torch.autograd.grad(divergence(*leaves, name).sum(), leaves)
    for got, expected in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch calls it in forward mode
def test_mapped_hessians_of_logits_are_the_fisher_information():
    rng = np.random.default_rng(0)
    p, q = (torch.tensor(3 * rng.normal(size=(4, 5))) for _ in range(2))
    probs = torch.softmax(q, -1)
    fisher = torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]
    for second in (torch.func.hessian, lambda f, argnums: torch.func.jacrev(torch.func.jacrev(f, argnums), argnums)):
        np.testing.assert_allclose(torch.func.vmap(second(kl_logits, 1))(p, q), fisher, rtol=1e-12, atol=1e-15)
        at_p = torch.func.vmap(second(kl_logits, 0))(q, q)  # the second derivative is the same at p = q
        np.testing.assert_allclose(at_p, fisher, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["kl", *NAMES])
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # PyTorch calls it in forward mode
def test_mapped_hessians_are_the_hessians_of_each_row(name):
    rng = np.random.default_rng(0)
    p, q = (torch.tensor(rng.dirichlet(np.ones(4), size=3)) for _ in range(2))

    def of_logits(logits, q):
        p = torch.softmax(logits, -1)
        return kl_probs(p, q) if name == "kl" else divergence(p, q, name)

    mapped = torch.func.vmap(torch.func.hessian(of_logits))(p, q)
    single = [torch.autograd.functional.hessian(lambda row, j=j: of_logits(row, q[j]), p[j]) for j in range(len(p))]
    np.testing.assert_allclose(mapped, torch.stack(single), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("p", "q", "name", "contained"),
    [
        (f.Normal(loc=0.0, scale=1.0), f.Uniform, "low", False),
        (f.Exponential(rate=1.0), f.Pareto, "scale", False),
        (f.Beta(concentration1=2.0, concentration0=3.0), f.Pareto, "scale", False),
        (f.Beta(concentration1=2.0, concentration0=3.0), f.TruncatedNormal, "low", True),
    ],
)
def test_pairs_without_a_closed_form_while_values_are_traced(p, q, name, contained):
    others = {other: 1.0 for other in q.__dataclass_fields__ if other not in (name, "log_scale")}
    values = [-1.0, -0.5] if contained else [0.1, 0.2]

    def of_value(value):
        return kl(p, q(**{name: value}, **others))

    if contained:  # the support of q contains the support of p, and no closed form is known
        with pytest.raises(NoClosedFormError):
            of_value(torch.tensor(values))
    expected = np.nan if contained else np.inf
    np.testing.assert_array_equal(torch.func.vmap(of_value)(torch.tensor(values)), expected)
    np.testing.assert_array_equal(jax.jit(of_value)(jax.numpy.asarray(values)), expected)


def kl_of_logistics(scale):
    """KL of Logistic(1, scale) and Logistic(0, scale), with a float in the place of one location."""
    return kl(f.Logistic(loc=1.0, scale=scale), f.Logistic(loc=0.0, scale=scale))


def test_a_parameter_that_both_sides_share():
    expected = float(mp.diff(lambda s: mp.coth(1 / (2 * s)) / s - 2, 2))
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def mixed_dtypes(scale):
        return kl(f.Logistic(loc=one, scale=scale), f.Logistic(loc=zero, scale=scale))

    def beside_an_infinite_entry(scale):
        loc = torch.tensor([1.0, 1e308], dtype=torch.float64)
        kls = kl(f.Logistic(loc=loc, scale=scale), f.Logistic(loc=-loc / 2 + 0.5, scale=scale))
        assert kls[1] == torch.inf
        return kls[0]

    with jax.enable_x64(True):
        assert float(jax.grad(kl_of_logistics)(2.0)) == pytest.approx(expected, rel=1e-12)
        assert float(jax.jit(jax.grad(kl_of_logistics))(jax.numpy.asarray(2.0))) == pytest.approx(expected, rel=1e-12)
    assert float(torch.func.grad(mixed_dtypes)(torch.tensor(2.0))) == pytest.approx(expected, rel=1e-6)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(mixed_dtypes(scale), scale)
    assert float(slope) == pytest.approx(expected, rel=1e-12)
    [slope] = torch.autograd.grad(beside_an_infinite_entry(torch.stack([scale, one / 2])), scale)
    assert float(slope) == pytest.approx(expected, rel=1e-12)
