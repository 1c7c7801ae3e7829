"""Entropy, cross-entropy, the terms of KL and bits: accuracy, identities, gradients and rejection of invalid input."""

import json
import math
from pathlib import Path

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kullback.discrete.entropy import cross_entropy, entropy
from kullback.discrete.kl import kl_probs, kl_terms
from kullback.errors import NotNormalizedError, ShapeError
from kullback.result import nats_to_bits

from ..oracles import discrete as oracle

REFERENCE = Path(__file__).parents[1] / "data" / "discrete.json"
# JAX compiles each function for each shape.
JAX = pytest.param(jnp.asarray, marks=pytest.mark.slow)
LIBRARIES = [np.asarray, torch.tensor, JAX, array_api_strict.asarray]
inf = math.inf
mp = oracle.mpmath


def exact_cross_entropy(p, q):
    with mp.workdps(400):
        p, q = ([mp.mpf(float(v)) for v in side] for side in (p, q))
        p, q = ([v / mp.fsum(side) for v in side] for side in (p, q))
        if any(a and not b for a, b in zip(p, q, strict=True)):
            return mp.inf
        return -mp.fsum(a * mp.log(b) for a, b in zip(p, q, strict=True) if a)


def relative_error(got, exact):
    if mp.isinf(exact) or exact == 0:
        return 0.0 if float(got) == float(exact) else inf
    return float(abs((mp.mpf(float(got)) - exact) / exact))


# Accuracy.


def reference_cases():
    for case in json.loads(REFERENCE.read_text())["cases"]:
        if "p" in case:
            p, q = ([float(value) for value in case[side]] for side in "pq")
            expected = float(case["cross_entropy"])
        else:
            rank = np.arange(case["n"])
            p, q, expected = 1 / (rank + 1.0), 1 / (rank + 1.5), None
            p, q = p / math.fsum(p), q / math.fsum(q)
        yield pytest.param(p, q, float(case["entropy_p"]), expected, id=case["name"][:24])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("p", "q", "expected_entropy", "expected_cross_entropy"), list(reference_cases()))
def test_reference_values(p, q, expected_entropy, expected_cross_entropy, library):
    with jax.enable_x64(True):
        p, q = (library(np.asarray(side)) for side in (p, q))
        assert float(entropy(p)) == pytest.approx(expected_entropy, rel=1e-13, abs=0)
        if expected_cross_entropy is not None:
            assert float(cross_entropy(p, q)) == pytest.approx(expected_cross_entropy, rel=1e-13, abs=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-15), (np.float32, 1e-6)])
def test_accuracy_from_uniform_to_nearly_deterministic(dtype, tolerance):
    rng = np.random.default_rng(1)
    tops = [0.0, 1.0, 10.0, 30.0, 60.0] if dtype is np.float32 else [0.0, 1.0, 10.0, 30.0, 100.0, 600.0]
    for top in tops:
        for _ in range(5):
            logits = rng.normal(size=(2, 12)) * 3
            logits[0, rng.integers(12)] += top
            logits[1, rng.integers(12)] += top
            logits -= logits.max(-1, keepdims=True)
            p, q = (np.exp(row) / np.exp(row).sum() for row in logits)
            p, q = p.astype(dtype), q.astype(dtype)
            assert relative_error(entropy(p), exact_cross_entropy(p, p)) < tolerance
            assert relative_error(cross_entropy(p, q), exact_cross_entropy(p, q)) < tolerance
            assert relative_error(cross_entropy(p, p), exact_cross_entropy(p, p)) < tolerance
    for p, q in (
        ([0.5, 0.5], [5e-324, 1.0]),
        ([1e-300, 1.0], [1e-300, 1.0]),
        ([1.0, 0.0], [1.0, 1e-300]),
        ([0.25, 0.75, 0.0], [0.5, 0.5, 0.0]),
    ):
        if dtype is np.float64:
            assert relative_error(cross_entropy(p, q), exact_cross_entropy(p, q)) < tolerance
            assert relative_error(entropy(q), exact_cross_entropy(q, q)) < (1e-3 if q[0] == 5e-324 else tolerance)


@pytest.mark.parametrize("library", LIBRARIES)
def test_zeros(library):
    def value(function, *sides):
        return float(function(*(library(np.asarray(side)) for side in sides)))

    with jax.enable_x64(True):
        assert value(entropy, [1.0, 0.0, 0.0]) == 0
        assert value(entropy, [0.5, 0.0, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
        assert value(cross_entropy, [0.0, 1.0], [0.0, 1.0]) == 0
        assert value(cross_entropy, [0.0, 1.0], [1.0, 0.0]) == inf
        assert value(cross_entropy, [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]) == pytest.approx(math.log(2), rel=1e-15)
        terms = kl_terms(*(library(np.asarray(side)) for side in ([0.5, 0.5, 0.0, 0.0], [0.25, 0.0, 0.75, 0.0])))
        assert [float(terms[k]) for k in range(4)] == [pytest.approx(math.log(2) / 2 - 0.25), inf, 0.75, 0]


@pytest.mark.parametrize("delta", [1.0, 1e-2, 1e-5, 1e-8])
def test_terms_are_accurate_and_sum_to_kl(delta):
    rng = np.random.default_rng(2)
    p = rng.dirichlet(np.ones(15), size=3)
    q = p * np.exp(delta * rng.normal(size=p.shape))
    q /= q.sum(-1, keepdims=True)
    terms = kl_terms(p, q)
    assert terms.shape == p.shape
    assert (terms >= 0).all()
    np.testing.assert_allclose(terms.sum(-1), kl_probs(p, q), rtol=1e-14)
    for row in range(3):
        with mp.workdps(80):
            a, b = ([mp.mpf(float(v)) for v in side[row]] for side in (p, q))
            a, b = ([v / mp.fsum(side) for v in side] for side in (a, b))
            for term, x, y in zip(terms[row], a, b, strict=True):
                # The log-ratio of an event has the rounding error of p, of q and of their masses.
                assert relative_error(term, x * mp.log(x / y) - x + y) < 1e-14 + 4e-15 / abs(float(mp.log(x / y)))
    np.testing.assert_allclose(kl_terms(p.T, q.T, axis=0), terms.T, rtol=1e-14)
    stacked = kl_terms(np.stack([p, p], 1), np.stack([q, q], 1)[:, :1], axis=-1)
    assert stacked.shape == (3, 2, 15)
    middle = kl_terms(np.moveaxis(np.stack([p, p]), 2, 1), np.moveaxis(np.stack([q, q]), 2, 1), axis=1)
    np.testing.assert_allclose(middle[1].T, terms, rtol=1e-14)


def test_where_excludes_events_with_any_value():
    p, q = np.asarray([0.5, np.nan, 0.5]), np.asarray([0.25, 7.0, 0.75])
    kept = [True, False, True]
    assert entropy(p, where=kept) == pytest.approx(math.log(2), rel=1e-15)
    assert cross_entropy(p, q, where=kept) == pytest.approx(-(math.log(0.25) + math.log(0.75)) / 2, rel=1e-15)
    terms = kl_terms(p, q, where=kept)
    assert terms[1] == 0
    assert terms.sum() == pytest.approx(float(kl_probs([0.5, 0.5], [0.25, 0.75])), rel=1e-15)


def test_array_types_and_dtypes():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for got in (
            entropy(torch.tensor(p, dtype=dtype)),
            cross_entropy(torch.tensor(p, dtype=dtype), q),
            kl_terms(torch.tensor(p, dtype=dtype), q),
            nats_to_bits(torch.tensor(p, dtype=dtype)),
        ):
            assert got.dtype == dtype
        assert float(nats_to_bits(entropy(torch.tensor(p, dtype=dtype)))) == pytest.approx(1.5, rel=1e-2)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert entropy(jnp.asarray(p, dtype=dtype)).dtype == dtype
    assert entropy(np.asarray([p, q])).shape == (2,)
    assert entropy(np.asarray([p, q]).T, axis=0).shape == (2,)
    assert cross_entropy(np.asarray([p, q]), q).shape == (2,)


def test_bits():
    # A fair die and a loaded die.
    fair, loaded = np.full(6, 1 / 6), np.asarray([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert float(nats_to_bits(entropy(fair))) == pytest.approx(math.log2(6), rel=1e-15)
    assert float(nats_to_bits(cross_entropy(fair, loaded))) == pytest.approx(2.934940, abs=5e-7)
    assert float(nats_to_bits(kl_probs(fair, loaded))) == pytest.approx(0.349978, abs=5e-7)
    assert nats_to_bits([math.log(2), 0.0, inf]).tolist() == [1, 0, inf]
    assert nats_to_bits(np.float32([1])).dtype == np.float32
    x = torch.tensor(3.0, requires_grad=True)
    nats_to_bits(x).backward()
    assert float(x.grad) == pytest.approx(1 / math.log(2))


# Gradients.


@pytest.mark.slow
def test_gradients_match_finite_differences_and_agree_across_libraries():
    generator = torch.Generator().manual_seed(3)
    weights = torch.linspace(-1, 2, 4, dtype=torch.float64)

    def of_p(p, q, softmax=torch.softmax):
        return entropy(softmax(p, -1))

    def crossed(p, q, softmax=torch.softmax):
        return cross_entropy(softmax(p, -1), softmax(q, -1))

    def terms(p, q, softmax=torch.softmax, weights=weights):
        return (kl_terms(softmax(p, -1), softmax(q, -1)) * weights).sum(-1)

    def twin(function):
        with_weights = {"weights": jnp.asarray(weights.numpy())} if function is terms else {}
        return lambda p, q: function(p, q, jax.nn.softmax, **with_weights).sum()

    with jax.enable_x64(True):
        derivatives = {
            function: [jax.jit(derive(twin(function), (0, 1))) for derive in (jax.grad, jax.jacfwd)]
            for function in (of_p, crossed, terms)
        }
    for scale in (2.0, 1e-2):
        p = torch.randn(2, 4, dtype=torch.float64, generator=generator)
        q = p + scale * torch.randn(2, 4, dtype=torch.float64, generator=generator)
        p, q = p.requires_grad_(), q.requires_grad_()
        for function in (of_p, crossed, terms):
            assert torch.autograd.gradcheck(function, (p, q))
            assert torch.autograd.gradgradcheck(function, (p, q))
            expected = torch.autograd.grad(function(p, q).sum(), (p, q), materialize_grads=True)
            with jax.enable_x64(True):
                given = [jnp.asarray(side.detach().numpy()) for side in (p, q)]
                for derivative in derivatives[function]:
                    for got, other in zip(derivative(*given), expected, strict=True):
                        np.testing.assert_allclose(got, other.numpy(), rtol=1e-9, atol=1e-15)


def test_gradients_do_not_depend_on_the_mass():
    # The value depends only on p/sum(p), so that its derivative in the direction of p is 0.
    generator = torch.Generator().manual_seed(5)
    p, q = (torch.randn(3, 5, dtype=torch.float64, generator=generator).softmax(-1).requires_grad_() for _ in range(2))
    weights = torch.linspace(-1, 2, 5, dtype=torch.float64)
    for value in (entropy(p) + 0 * q.sum(), cross_entropy(p, q), kl_terms(p, q) * weights, kl_probs(p, q)):
        for side, gradient in zip((p, q), torch.autograd.grad(value.sum(), (p, q)), strict=True):
            assert abs((side.detach() * gradient).sum(-1)).max() < 1e-15


def test_gradients_at_zeros():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.5, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    (by_p,) = torch.autograd.grad(entropy(p), p)
    torch.testing.assert_close(by_p, torch.zeros(4, dtype=torch.float64))
    crossed = cross_entropy(p, q)
    by_p, by_q = torch.autograd.grad(crossed, (p, q))
    expected = [-math.log(v) - crossed.item() if v else 0 for v in q.tolist()]
    torch.testing.assert_close(by_p, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(by_q, torch.tensor([-1.0, 0, 1, 0], dtype=torch.float64))
    by_p, by_q = torch.autograd.grad(kl_terms(p, q).sum(), (p, q))
    for got, other in zip((by_p, by_q), torch.autograd.grad(kl_probs(p, q), (p, q)), strict=True):
        torch.testing.assert_close(got, other)
    by_p, by_q = torch.autograd.grad(kl_terms(q, p)[0], (p, q))
    assert torch.isfinite(by_p).all()
    assert torch.isfinite(by_q).all()


# Invalid input.


@pytest.mark.parametrize("library", LIBRARIES)
def test_invalid_probabilities_are_rejected(library):
    good = library(np.asarray([0.5, 0.5]))
    for bad, message in (([1.5, -0.5], r"\[1\] is -0\.5"), ([0.5, 0.6], r"sums to 1\.1"), ([math.nan, 1.0], "nan")):
        bad = library(np.asarray(bad))
        for call in (
            lambda: entropy(bad),  # noqa: B023
            lambda: cross_entropy(bad, good),  # noqa: B023
            lambda: cross_entropy(good, bad),  # noqa: B023
            lambda: kl_terms(bad, good),  # noqa: B023
            lambda: kl_terms(good, bad),  # noqa: B023
        ):
            with pytest.raises(NotNormalizedError, match=message):
                call()
    for function in (cross_entropy, kl_terms):
        with pytest.raises(ShapeError, match="broadcast"):
            function(good, library(np.asarray([0.25, 0.25, 0.5])))
    with pytest.raises(ShapeError, match="axis 1"):
        entropy(good, axis=1)
    with pytest.raises(TypeError, match="real numbers"):
        nats_to_bits(np.asarray([1j]))
