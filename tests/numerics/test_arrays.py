"""Explicit gradients in every mode of PyTorch and JAX, checks under tracing, subnormal numbers and array types."""

import math

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs, kl_terms
from kullback.errors import NotNormalizedError, ShapeError, SupportError
from kullback.numerics.arrays import as_floats, holds, is_positive, log, map_row_blocks, with_gradient

# The mean of x y weighted by x: a function that is neither elementwise nor of one array, so that a gradient rule for
# either special case would fail.


def _value(xp, x, y):
    return xp.sum(x * x * y, axis=-1) / xp.sum(x, axis=-1)


def _by_x(xp, gradient, output, x, y):
    return gradient[..., None] * (2 * x * y - output[..., None]) / xp.sum(x, axis=-1, keepdims=True)


def _by_y(xp, gradient, output, x, y):
    return gradient[..., None] * x * x / xp.sum(x, axis=-1, keepdims=True)


mean = with_gradient(_value, _by_x, _by_y)
ROWS = np.asarray([[0.5, 1.5, 0.25], [2.0, 0.125, 1.0]])
OTHERS = np.asarray([[1.0, -0.5, 3.0], [0.5, 2.0, -1.0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "derivative", [jax.jacrev, jax.jacfwd, jax.hessian, lambda f, n: jax.jacrev(jax.grad(f, n), n)]
)
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_jax_differentiates_in_both_modes_twice(derivative, argument, wrap):
    with jax.enable_x64(True):
        x, y = jnp.asarray(ROWS[0]), jnp.asarray(OTHERS[0])
        got = wrap(derivative(lambda x, y: jnp.sin(mean(jnp, x, y)), argument))(x, y)
        expected = derivative(lambda x, y: jnp.sin(_value(jnp, x, y)), argument)(x, y)
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_jax_maps_over_rows():
    with jax.enable_x64(True):
        x, y = jnp.asarray(ROWS), jnp.asarray(OTHERS)
        got = jax.jit(jax.vmap(jax.grad(lambda x, y: mean(jnp, x, y), (0, 1)), (0, None)))(x, y[0])
        expected = [jax.grad(lambda x, y: _value(jnp, x, y), (0, 1))(row, y[0]) for row in x]
        for k in range(2):
            np.testing.assert_allclose(got[k], np.stack([pair[k] for pair in expected]), rtol=1e-13)


def test_only_requested_gradients_are_computed():
    called = []

    def by_y(*arguments):
        called.append("y")
        return _by_y(*arguments)

    function = with_gradient(_value, _by_x, by_y)
    jax.grad(lambda x: function(jnp, x, jnp.asarray(OTHERS[0])))(jnp.asarray(ROWS[0]))
    x = torch.tensor(ROWS, requires_grad=True)
    import array_api_compat.torch as xp

    function(xp, x, torch.tensor(OTHERS)).sum().backward()
    assert called == []


FORMS = [kl_probs, kl_log_probs, kl_logits, lambda p, q, **options: kl_terms(p, q, **options).sum(-1)]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=["probs", "log_probs", "logits", "terms"])
@pytest.mark.parametrize("x64", [False, True])
def test_exact_kl_in_jax_matches_torch(form, x64):
    rng = np.random.default_rng(0)
    dtype, tolerance = (np.float64, 1e-11) if x64 else (np.float32, 2e-4)
    p, q = (rng.dirichlet(np.ones(6), size=3).astype(dtype) for _ in range(2))
    if form in FORMS[1:3]:
        p, q = np.log(p), np.log(q)
    twins = [torch.tensor(side, requires_grad=True) for side in (p, q)]
    expected = form(*twins)
    expected.sum().backward()
    with jax.enable_x64(x64):
        p, q = jnp.asarray(p), jnp.asarray(q)
        for wrapped in (form, jax.jit(form), jax.jit(jax.vmap(form))):
            got = wrapped(p, q)
            assert isinstance(got, jax.Array)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, expected.detach().numpy(), rtol=tolerance)
        for got, twin in zip(jax.jit(jax.grad(lambda p, q: form(p, q).sum(), (0, 1)))(p, q), twins, strict=True):
            np.testing.assert_allclose(got, twin.grad.numpy(), rtol=tolerance, atol=tolerance)
        # The second derivative, obtained by differentiating the explicit gradient, is finite and symmetric.
        got = jax.jit(jax.hessian(lambda p: form(p, q[0]).sum()))(p[0])
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, got.T, atol=1e-4 if not x64 else 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=["probs", "log_probs", "logits", "terms"])
def test_gradients_in_jax_are_finite_at_equality_at_zeros_and_at_impossible_events(form):
    def given(values):
        values = jnp.asarray(values)
        return jnp.log(values) if form in FORMS[1:3] else values

    pairs = [([0.5, 0.25, 0.25, 0.0], [0.5, 0.25, 0.25, 0.0]), ([0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0])]
    slopes = jax.jit(jax.grad(lambda p, q: form(p, q).sum(), (0, 1)))
    for p, q in pairs:
        gradients = slopes(given(p), given(q))
        for gradient in gradients:
            assert np.isfinite(gradient).all()
            assert gradient[-1] == 0
            if p == q:
                assert (gradient == 0).all()


def test_half_precision_in_jax_is_computed_in_float32():
    for dtype in (jnp.float16, jnp.bfloat16):
        p, q = jnp.asarray([0.4, 0.6], dtype=dtype), jnp.asarray([0.5, 0.5], dtype=dtype)
        got = kl_probs(p, q)
        assert got.dtype == dtype
        exact = kl_probs(np.asarray(p, np.float64) / np.asarray(p, np.float64).sum(), [0.5, 0.5])
        assert float(got) == pytest.approx(float(exact), rel=2**-8)


# Checks, with concrete values and under tracing.


@pytest.mark.slow
def test_under_tracing_only_shapes_are_checked():
    bad, good = np.float32([1.5, -0.5]), np.float32([0.5, 0.5])
    for xp, jitted in ((jnp, jax.jit(kl_probs)), (jnp, jax.vmap(kl_probs)), (torch, torch.func.vmap(kl_probs))):
        p, q = (xp.asarray(np.stack([side, side]) if xp is torch else side) for side in (bad, good))
        if xp is jnp:
            with pytest.raises(NotNormalizedError, match=r"p\[1\] is -0\.5"):
                kl_probs(p, q)
            p, q = jnp.stack([p, p]), jnp.stack([q, q])
        jitted(p, q)  # nothing is raised
        with pytest.raises(ShapeError):
            jitted(p, xp.asarray(np.full((2, 3), 1 / 3, dtype=np.float32)))
    # An eager gradient has concrete values.
    with pytest.raises(NotNormalizedError, match=r"p\[1\] is -0\.5"):
        jax.grad(lambda p: kl_probs(p, as_jax(good)))(jnp.asarray(bad))
    with pytest.raises(SupportError, match="every logit is -inf"):
        jax.grad(lambda p: kl_logits(p, as_jax(good)))(jnp.asarray([-math.inf, -math.inf]))


def as_jax(values):
    return jnp.asarray(values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("unchecked_shapes")
def test_torch_compile():
    p, q = torch.tensor([[0.4, 0.6]]), torch.tensor([[0.5, 0.5]])
    compiled = torch.compile(kl_probs, backend="eager")
    torch.testing.assert_close(compiled(p, q), kl_probs(p, q))


@pytest.mark.parametrize("form", FORMS, ids=["probs", "log_probs", "logits", "terms"])
def test_torch_maps_over_rows(form):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 4, dtype=torch.float64, generator=generator).softmax(-1) for _ in range(2))
    if form in FORMS[1:3]:
        p, q = p.log(), q.log()
    torch.testing.assert_close(torch.func.vmap(form)(p, q), form(p, q))
    twin = p.clone().requires_grad_()
    form(twin, q).sum().backward()
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(form))(p, q), twin.grad)


def test_holds():
    assert holds(np.asarray(True))
    assert not holds(torch.tensor(False))
    results = []
    jax.jit(lambda x: results.append(holds(x > 0)))(1.0)
    assert results == [False]
    with pytest.raises(ValueError, match="ambiguous"):
        holds(np.asarray([True, False]))
    with pytest.raises((TypeError, RuntimeError)):
        holds(torch.tensor([True, False]))


# Subnormal numbers, which XLA treats as 0.


@pytest.mark.slow
def test_subnormal_probabilities_in_jax():
    assert not bool(jnp.float32(1e-42) > 0)  # XLA treats the number as 0
    for x64, values in (
        (False, np.float32([0, 1e-45, 1e-42, 1.1754942e-38, 1.1754944e-38, 1])),
        (True, np.asarray([5e-324, 1e-310])),
    ):
        with jax.enable_x64(x64):
            assert is_positive(jnp, jnp.asarray(values)).tolist() == (values > 0).tolist()
            some = values[values > 0]
            for call in (log, jax.jit(log, static_argnums=0)):
                got = call(jnp, jnp.asarray(some))
                np.testing.assert_allclose(
                    got, np.log(some.astype(np.float64)), rtol=1e-15 if x64 else 2e-7, atol=1e-45
                )
    p, q = np.float32([0.5, 0.5, 0.0]), np.float32([1e-42, 1.0, 0.0])
    expected = float(kl_probs(p, q))
    assert float(kl_probs(jnp.asarray(p), jnp.asarray(q))) == pytest.approx(expected, rel=1e-6)
    assert float(kl_probs(jnp.asarray(q), jnp.asarray(p))) == pytest.approx(float(kl_probs(q, p)), rel=1e-6)
    by_p, _ = jax.grad(kl_probs, (0, 1))(jnp.asarray(p), jnp.asarray(q))
    assert np.isfinite(by_p).all()


# Array types.


def test_lists_become_arrays_of_the_same_library():
    for library, kind in ((jnp.asarray, jax.Array), (torch.tensor, torch.Tensor), (np.asarray, np.ndarray)):
        _, [x, y, z], dtype = as_floats(library(np.float32([1, 2])), [1, 2], 3)
        assert isinstance(x, kind)
        assert isinstance(y, kind)
        assert isinstance(z, kind)
        assert x.dtype == y.dtype == z.dtype == dtype
        assert "float32" in str(dtype)
    _, [x], dtype = as_floats(jnp.asarray([1, 2]))
    assert dtype == jnp.float32
    with pytest.raises(TypeError, match="real numbers"):
        as_floats(jnp.asarray([1j]))


def test_row_blocks_give_the_same_result():
    # Each row fills one block.
    calls = []

    def double(xp, gradient, x):
        calls.append(x.shape)
        return gradient[..., None] * x * 2

    x = np.arange(3 * 2**20, dtype=np.float32).reshape(3, 2**20)
    got = map_row_blocks(double)(np, np.ones(3, dtype=np.float32), x)
    assert (got == 2 * x).all()
    assert len(calls) == 3
    strict = map_row_blocks(double)(array_api_strict, array_api_strict.ones(3), array_api_strict.asarray(x))
    assert (np.asarray(strict) == got).all()
