"""Exact discrete KL divergence: accuracy, mathematical properties, gradients and rejection of invalid input."""

import json
import math
from pathlib import Path

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.discrete.entropy import entropy
from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs
from kullback.errors import ArrayTypeError, KullbackError, NotNormalizedError, ShapeError, SupportError
from kullback.families import Categorical

from ..oracles import discrete as oracle

REFERENCE = Path(__file__).parents[1] / "data" / "discrete.json"
FORMS = [kl_probs, kl_log_probs, kl_logits]
inf = math.inf


def log(values):
    with np.errstate(divide="ignore"):
        return np.log(values)


def in_form(form, probs):
    return probs if form is kl_probs else log(probs)


def simplex(rng, shape, dtype=np.float64):
    probs = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    return (probs / probs.sum(-1, keepdims=True)).astype(dtype)


def relative_error(got, truth):
    return abs(float((oracle.mpmath.mpf(float(got)) - truth) / truth))


# Accuracy.


def reference_cases():
    for case in json.loads(REFERENCE.read_text())["cases"]:
        delta = float(case["name"].removeprefix("nearly equal ")) if case["name"].startswith("nearly") else None
        if "p" in case:
            p, q = ([float(value) for value in case[side]] for side in "pq")
        else:
            rank = np.arange(case["n"])
            p, q = 1 / (rank + 1.0), 1 / (rank + 1.5)
            p, q = p / math.fsum(p), q / math.fsum(q)
        for key, first, second in (("kl", p, q), ("reverse_kl", q, p)):
            yield pytest.param(first, second, float(case[key]), delta, id=f"{case['name'][:24]}-{key}")


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q", "truth", "delta"), list(reference_cases()))
def test_reference_values(p, q, truth, delta):
    p, q = np.asarray(p), np.asarray(q)
    # Rounding the reference decimals to floats changes the true value, relatively more for p close to q.
    tolerance = 1e-13 + (4e-16 / delta if delta else 0)
    assert float(kl_probs(p, q)) == pytest.approx(truth, rel=tolerance, abs=0)
    for library in (torch.from_numpy, array_api_strict.asarray, jnp.asarray):
        with jax.enable_x64(True):
            assert float(kl_probs(library(p), library(q))) == pytest.approx(truth, rel=tolerance, abs=0)
    # Rounding their logarithms changes it by several times as much.
    tolerance = 1e-13 + (4e-15 / delta if delta else 0)
    assert float(kl_log_probs(log(p), log(q))) == pytest.approx(truth, rel=tolerance, abs=0)
    assert float(kl_logits(log(p) + 1, log(q) - 2)) == pytest.approx(truth, rel=tolerance, abs=0)
    # In float32 the true value is computed from the rounded p and q.
    narrow_p, narrow_q = p[:100].astype(np.float32), q[:100].astype(np.float32)
    if len(p) < 100 and 0 < (narrow_truth := float(oracle.kl(narrow_p, narrow_q))) < inf:
        for library in (np.asarray, torch.from_numpy, jnp.asarray):
            got = float(kl_probs(library(narrow_p), library(narrow_q)))
            assert got == pytest.approx(narrow_truth, rel=2e-6, abs=1e-37)


@pytest.mark.parametrize("delta", [1.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 4e-15), (np.float32, 2e-6)])
def test_probabilities_are_accurate_at_every_distance(delta, dtype, tolerance):
    rng = np.random.default_rng(5)
    p = simplex(rng, (40,))
    q = p * np.exp(delta * rng.normal(size=40))
    p, q = p.astype(dtype), (q / q.sum()).astype(dtype)
    if (p == q).all():
        assert kl_probs(p, q) == 0
    else:
        assert relative_error(kl_probs(p, q), oracle.kl(p, q)) < tolerance


@pytest.mark.parametrize("delta", [30.0, 3.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-15), (np.float32, 1e-6)])
def test_logits_are_accurate_at_every_distance(delta, dtype, tolerance):
    rng = np.random.default_rng(6)
    p = rng.normal(size=60) * 4
    p, q = p.astype(dtype), (p + delta * rng.normal(size=60)).astype(dtype)
    if (p == q).all():
        assert kl_logits(p, q) == 0
    else:
        assert relative_error(kl_logits(p, q), oracle.kl_logits(p, q)) < tolerance


def test_a_common_shift_of_logits_adds_only_their_rounding_error():
    rng = np.random.default_rng(7)
    p = rng.normal(size=50)
    q = p + 1e-3 * rng.normal(size=50)
    truth = oracle.kl_logits(p + 1e4, q - 1e4)
    assert relative_error(kl_logits(p + 1e4, q - 1e4), truth) < 1e-8


def test_masses_that_are_one_only_to_rounding():
    # Proportional vectors represent the same distribution.
    p = np.asarray([0.25, 0.25, 0.5])
    assert kl_probs(p, p * (1 + 2**-40)) == pytest.approx(0, abs=1e-40)
    q = np.asarray([0.25 + 2**-45, 0.25, 0.5])
    assert relative_error(kl_probs(p, q), oracle.kl(p, q)) < 1e-14
    assert relative_error(kl_probs(q, p), oracle.kl(q, p)) < 1e-14


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor, array_api_strict.asarray])
def test_zeros(form, library):
    def value(p, q):
        result = form(library(in_form(form, np.asarray(p))), library(in_form(form, np.asarray(q))))
        return float(result)

    assert value([0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.5, 0.0]) == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert value([0.25, 0.25, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0]) == inf
    assert value([1.0, 0.0], [0.0, 1.0]) == inf
    assert value([1.0, 0.0], [1.0, 0.0]) == 0


def test_extreme_ratios():
    tiny, least = 1e-300, 5e-324
    for p, q in (
        ([tiny, 1.0], [0.5, 0.5]),
        ([0.5, 0.5], [tiny, 1.0]),
        ([least, 1.0], [1.0, least]),
        ([1e-200, 1.0], [least, 1.0]),
        ([1e-30, 1.0], [1.0, 1e-30]),
    ):
        assert relative_error(kl_probs(p, q), oracle.kl(p, q)) < 1e-14
    # Both probabilities and the result are subnormal.
    expected = 3e-320 * float(oracle.phi(-math.log(3)))
    assert float(kl_probs([3e-320, 1.0], [1e-320, 1.0])) == pytest.approx(expected, rel=1e-3, abs=0)
    # Implementations that clamp return 7.28 for the first and inf for the second.
    assert float(kl_probs([0.5, 0.5], [1e-30, 1.0])) == pytest.approx(33.845629, rel=1e-7)
    assert float(kl_logits([0.0, 0.0], [-200.0, 0.0])) == pytest.approx(99.306853, rel=1e-7)
    narrow = kl_probs(np.float32([0.5, 0.5]), np.float32([1e-42, 1.0]))
    assert relative_error(narrow, oracle.kl([0.5, 0.5], np.float32([1e-42, 1.0]))) < 1e-6


def test_logits_far_apart():
    # The probability of p underflows where the probability of q is large, and vice versa; e^d overflows.
    for p, q in (([0.0, -800.0], [-800.0, 0.0]), ([0.0, -1e6], [-1e6, 0.0]), ([0.0, -750.0, -740.0], [0.0, 3.0, -2.0])):
        assert relative_error(kl_logits(p, q), oracle.kl_logits(p, q)) < 1e-14
    assert kl_logits([0.0, -1e6], [0.0, -inf]) == inf
    assert kl_logits([0.0, -1e6, -inf], [0.0, -inf, -inf]) == inf
    assert kl_logits([0.0, -inf], [0.0, -1e6]) == 0
    lowest = float(np.finfo(np.float32).min)
    masked = kl_logits(np.float32([0.0, 1.0, lowest]), np.float32([1.0, 0.0, lowest]))
    assert masked == kl_logits(np.float32([0.0, 1.0]), np.float32([1.0, 0.0]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_identical_inputs_give_exactly_zero_value_and_gradient(form, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 500, dtype=torch.float64, generator=generator) * 5
    given = {kl_probs: logits.softmax(-1), kl_log_probs: logits.log_softmax(-1), kl_logits: logits}[form]
    if dtype.startswith("b") and form is kl_log_probs:
        given = given.clone()
        given[...] = -math.log(512)
        given = torch.cat([given, given[:, :12]], -1)
    given = given.to(getattr(torch, dtype))
    p, q = given.clone().requires_grad_(), given.clone().requires_grad_()
    result = form(p, q)
    assert result.dtype == given.dtype
    assert (result == 0).all()
    result.sum().backward()
    assert (p.grad == 0).all()
    assert (q.grad == 0).all()


# Mathematical properties.

probabilities = st.lists(st.floats(1e-6, 1) | st.just(0.0), min_size=2, max_size=12).filter(lambda row: sum(row) > 0.01)


@st.composite
def pairs(draw):
    p = np.asarray(draw(probabilities))
    kind = draw(st.sampled_from(["free", "near", "same"]))
    if kind == "free":
        q = np.asarray(draw(st.lists(st.floats(1e-6, 1), min_size=len(p), max_size=len(p))))
    else:
        noise = np.asarray(draw(st.lists(st.floats(-1, 1), min_size=len(p), max_size=len(p))))
        q = p * (1 + (draw(st.floats(1e-15, 0.1)) * noise if kind == "near" else 0))
    return p / p.sum(), q / q.sum()


laws = settings(max_examples=60, deadline=None, derandomize=True)


@laws
@given(pairs())
def test_never_negative_and_zero_at_equality(pair):
    p, q = pair
    for form in FORMS:
        assert form(in_form(form, p), in_form(form, q)) >= 0
        assert form(in_form(form, p), in_form(form, p)) == 0


@laws
@given(pairs(), st.floats(-50, 50))
def test_never_negative_in_float32_for_shifted_logits(pair, shift):
    logits = log(pair[0]).astype(np.float32)
    assert 0 <= kl_logits(logits, logits + np.float32(shift)) < 1e-10
    assert kl_logits(logits, (log(pair[1]) + shift).astype(np.float32)) >= 0


@laws
@given(pairs(), st.randoms(use_true_random=False))
def test_permutation_invariance(pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    for form in FORMS:
        p, q = (in_form(form, side) for side in pair)
        assert form(p[order], q[order]) == pytest.approx(form(p, q), rel=1e-12, abs=1e-30)


@laws
@given(pairs())
def test_merging_two_events_does_not_increase_kl(pair):
    merged = [np.append(side[2:], side[0] + side[1]) for side in pair]
    before = kl_probs(*pair)
    # The rounding of the merged entry changes the KL by 1e-16 times its derivative.
    assert kl_probs(*merged) <= before * (1 + 1e-12) + 1e-15 * math.sqrt(before) + 1e-31


@laws
@given(pairs(), pairs())
def test_product_distributions_add(first, second):
    # The tolerance includes the rounding of the products.
    product = [np.outer(a, b).ravel() for a, b in zip(first, second, strict=True)]
    parts = kl_probs(*first) + kl_probs(*second)
    assert kl_probs(*product) == pytest.approx(parts, rel=1e-12, abs=1e-15 * math.sqrt(parts) + 1e-30)


@laws
@given(pairs(), st.integers(-60, 60), st.integers(-60, 60))
def test_shift_invariance_of_logits(pair, shift_p, shift_q):
    # The logits are multiples of 2^-20, so that the shifts are exact.
    p, q = (np.round(np.where(side > 0, log(np.maximum(side, 1e-30)), -30) * 2**20) / 2**20 for side in pair)
    before = kl_logits(p, q)
    assert kl_logits(p + shift_p, q + shift_q) == pytest.approx(before, rel=1e-12, abs=1e-13 * math.sqrt(before))


@laws
@given(pairs())
def test_libraries_agree(pair):
    for form in FORMS:
        p, q = (in_form(form, side) for side in pair)
        expected = float(form(p, q))
        strict = form(array_api_strict.asarray(p), array_api_strict.asarray(q))
        assert type(strict) is type(array_api_strict.asarray(p))
        got = form(torch.from_numpy(p), torch.from_numpy(q)).item()
        # NumPy arrays and CPU tensors use the kernels, which round differently.
        near = pytest.approx(expected, rel=1e-11, abs=1e-14 * math.sqrt(expected) if expected < inf else 0)
        assert got == near
        assert float(strict) == near


# Shapes, array types and masks.


@pytest.mark.parametrize("form", FORMS)
def test_axis_and_broadcasting(form):
    rng = np.random.default_rng(8)
    p, q = in_form(form, simplex(rng, (4, 3, 5))), in_form(form, simplex(rng, (5,)))
    got = form(p, q)
    assert got.shape == (4, 3)
    assert got[1, 2] == pytest.approx(float(form(p[1, 2], q)), rel=1e-14)
    for axis in (0, 1, -2):
        moved = form(np.moveaxis(p, -1, axis), np.moveaxis(np.broadcast_to(q, p.shape), -1, axis), axis=axis)
        np.testing.assert_allclose(moved, got, rtol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_where_excludes_events_with_any_value(form, library):
    rng = np.random.default_rng(9)
    p, q = in_form(form, simplex(rng, (2, 4))), in_form(form, simplex(rng, (2, 4)))
    junk = np.full((2, 2), np.nan)
    wide_p, wide_q = (np.concatenate([side[:, :2], junk, side[:, 2:]], -1) for side in (p, q))
    kept = [True, True, False, False, True, True]
    got = form(library(wide_p), library(wide_q), where=library(kept))
    np.testing.assert_allclose(np.asarray(got), form(p, q), rtol=1e-14)
    if library is torch.tensor:
        wide_p, wide_q = (torch.tensor(side, requires_grad=True) for side in (wide_p, wide_q))
        form(wide_p, wide_q, where=kept).sum().backward()
        for side in (wide_p, wide_q):
            assert (side.grad[:, 2:4] == 0).all()
            assert torch.isfinite(side.grad).all()


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, jnp.asarray])
def test_where_is_a_mask_and_no_weights(library):
    p, q = library([0.5, 0.5, 0.0]), library([0.25, 0.25, 0.5])
    for mask in ([1, 1, 0], [True, True, False], [1.0, 1.0, 0.0]):
        assert float(kl_probs(p, library([0.5, 0.5, 9.0]), where=mask)) == 0
    for mask in ([1, 0.5, 0], [1.0, float("nan"), 0.0], [1.0, -1.0, 0.0]):
        with pytest.raises(ArrayTypeError, match="expected a mask of booleans or of the numbers 0 and 1, got"):
            kl_probs(p, q, where=mask)
    for mask in (["a", "b", "c"], [1j, 0, 0]):
        with pytest.raises(KullbackError):
            kl_probs(p, q, where=mask)


def test_array_types_and_dtypes():
    p = [0.4, 0.3, 0.2, 0.1]
    q = [0.3, 0.3, 0.3, 0.1]
    assert float(kl_probs(p, q)) == pytest.approx(0.03397980735907949, rel=1e-15)
    assert kl_probs(np.float32([p]), np.float32([q])).dtype == np.float32
    assert kl_probs(np.float32(p), np.float64(np.float32(p)) / np.float64(np.float32(p)).sum()).dtype == np.float64
    assert kl_probs(torch.tensor(p), q).dtype == torch.float32
    assert kl_probs([1, 0], [1, 0]).dtype == np.float64
    for dtype in (torch.float16, torch.bfloat16):
        got = kl_probs(torch.tensor(p, dtype=dtype), torch.tensor(q, dtype=dtype))
        assert got.dtype == dtype
        assert got.item() == pytest.approx(0.03398, rel=0.05)


# Gradients.


def gradient_cases():
    generator = torch.Generator().manual_seed(3)
    for scale in (3.0, 0.3, 1e-2):
        p = torch.randn(1, 4, dtype=torch.float64, generator=generator)
        yield p, p + scale * torch.randn(1, 4, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("p", "q"), list(gradient_cases()))
def test_first_and_second_derivatives_match_finite_differences(p, q):
    p, q = p.requires_grad_(), q.requires_grad_()

    def from_probs(p, q):
        return kl_probs(p.softmax(-1), q.softmax(-1))

    def from_log_probs(p, q):
        return kl_log_probs(p.log_softmax(-1), q.log_softmax(-1))

    for function in (kl_logits, from_probs, from_log_probs):
        assert torch.autograd.gradcheck(function, (p, q))
        assert torch.autograd.gradgradcheck(function, (p, q))


def test_gradients_are_accurate_near_equality():
    rng = np.random.default_rng(10)
    p = rng.normal(size=30)
    q = p + 1e-7 * rng.normal(size=30)
    narrow = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in (p, q)]
    kl_logits(*narrow).backward()
    with oracle.mpmath.workdps(40):
        probs = []
        for side in (p, q):
            weights = [oracle.mpmath.exp(oracle.mpmath.mpf(v)) for v in side]
            probs.append([w / oracle.mpmath.fsum(weights) for w in weights])
        by_q = [float(b - a) for a, b in zip(*probs, strict=True)]
        kl = oracle.kl_logits(p, q)
        by_p = [float(a * (oracle.mpmath.log(a / b) - kl)) for a, b in zip(*probs, strict=True)]
    np.testing.assert_allclose(narrow[1].grad.numpy(), by_q, rtol=1e-7, atol=1e-17)
    np.testing.assert_allclose(narrow[0].grad.numpy(), by_p, rtol=1e-7, atol=1e-17)


def test_gradients_with_impossible_events():
    p = torch.tensor([[0.3, -1.0, -inf, 2.0], [0.3, -inf, -inf, 2.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.3, 0.5, -inf, 2.0], [1.3, 0.1, -inf, 2.0]], dtype=torch.float64, requires_grad=True)
    kl_logits(p, q).sum().backward()
    kept = torch.tensor([0, 1, 3])
    short_p, short_q = (side.detach()[0, kept].clone().requires_grad_() for side in (p, q))
    kl_logits(short_p, short_q).backward()
    torch.testing.assert_close(p.grad[0, kept], short_p.grad, rtol=1e-14, atol=0)
    torch.testing.assert_close(q.grad[0, kept], short_q.grad, rtol=1e-14, atol=0)
    assert (p.grad[:, 2] == 0).all()
    assert (q.grad[:, 2] == 0).all()
    # For an event that is impossible under p alone, the gradient with respect to q is not 0.
    torch.testing.assert_close(q.grad[1], q.detach()[1].softmax(-1) - p.detach()[1].softmax(-1))
    assert p.grad[1, 1] == 0


def test_probability_gradients_at_zeros():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.25, 0.5, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    kl_probs(p, q).backward()
    kl = math.log(2) / 2
    torch.testing.assert_close(p.grad, torch.tensor([math.log(2) - kl, -kl, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(q.grad, torch.tensor([1 - 2, 1 - 1, 1, 0], dtype=torch.float64))


def test_gradients_are_finite_when_far_apart():
    p = torch.tensor([[0.0, -800.0, 3.0], [5.0, 0.0, -1e30]], requires_grad=True)
    q = torch.tensor([[-800.0, 0.0, -300.0], [-1e4, 0.0, 3.0]], requires_grad=True)
    kl = kl_logits(p, q)
    assert torch.isfinite(kl).all()
    kl.sum().backward()
    torch.testing.assert_close(q.grad, q.detach().softmax(-1) - p.detach().softmax(-1))
    assert torch.isfinite(p.grad).all()


# Invalid input.


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([[0.5, 0.5], [0.7, 0.7]], r"p to sum to 1 .* row \(1,\) sums to 1\.[34]"),
        ([[0.5, 0.5], [1.5, -0.5]], r"p\[1, 1\] is -0\.5"),
        ([[0.5, math.nan], [0.5, 0.5]], r"p\[0, 1\] is nan"),
        ([[0.5, inf], [0.5, 0.5]], r"p\[0, 1\] is inf"),
        ([[math.log(0.5)] * 2] * 2, r"p\[0, 0\] is -0\.69"),
        ([[0.333, 0.333], [0.5, 0.5]], r"row \(0,\) sums to 0\.666"),
    ],
)
def test_invalid_probabilities_are_rejected(p, message):
    good = [[0.5, 0.5], [0.5, 0.5]]
    for library in (np.asarray, torch.tensor, array_api_strict.asarray):
        with pytest.raises(NotNormalizedError, match=message):
            kl_probs(library(p), library(good))
        with pytest.raises(NotNormalizedError, match=message.replace("p", "q", 1)):
            kl_probs(library(good), library(p))


def test_the_error_names_the_invalid_entry_along_any_axis():
    p = np.full((3, 2, 2), 1 / 3)
    p[2, 1, 0] = -1
    with pytest.raises(NotNormalizedError, match=r"p\[2, 1, 0\] is -1"):
        kl_probs(p, np.full((3, 2, 2), 1 / 3), axis=0)


@pytest.mark.parametrize(
    ("dtype", "excess", "fails"), [("float64", 1e-8, 1), ("float64", 1e-10, 0), ("float32", 1e-4, 1)]
)
def test_the_tolerance_of_the_sum_depends_on_the_dtype(dtype, excess, fails):
    p = np.asarray([0.5, 0.5 + excess], dtype=dtype)
    q = np.asarray([0.5, 0.5], dtype=dtype)
    if fails:
        with pytest.raises(NotNormalizedError):
            kl_probs(p, q)
        with pytest.raises(NotNormalizedError):
            kl_log_probs(log(q), log(p))
    else:
        assert 0 <= kl_probs(p, q) < 1e-19


def test_invalid_log_probabilities_are_rejected():
    good = [math.log(0.5)] * 2
    with pytest.raises(NotNormalizedError, match="kl_probs takes probabilities"):
        kl_log_probs([0.5, 0.5], good)
    with pytest.raises(NotNormalizedError, match=r"log_q\[1\] is 1000"):
        kl_log_probs(good, [0.0, 1000.0])
    with pytest.raises(NotNormalizedError, match=r"log_p\[0\] is nan"):
        kl_log_probs([math.nan, 0.0], good)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        ([[0.0, 1.0], [math.nan, 0.0]], r"q_logits\[1, 0\] is nan"),
        ([[0.0, inf], [0.0, 0.0]], r"q_logits\[0, 1\] is inf"),
        ([[0.0, 1.0], [-inf, -inf]], r"row \(1,\) every logit is -inf"),
    ],
)
def test_invalid_logits_are_rejected(q, message):
    for library in (np.asarray, torch.tensor):
        with pytest.raises(SupportError, match=message):
            kl_logits(library([[0.0, 1.0], [0.0, 1.0]]), library(q))


@pytest.mark.parametrize("form", FORMS)
def test_incompatible_shapes_are_rejected(form):
    p = in_form(form, np.full(3, 1 / 3))
    with pytest.raises(ShapeError, match=r"\(3,\) and \(2,\)"):
        form(p, in_form(form, np.full(2, 0.5)))
    with pytest.raises(ShapeError, match="axis 1"):
        form(p, p, axis=1)
    with pytest.raises(ShapeError, match="axis -1"):
        form(np.empty((2, 0)), np.empty((2, 0)))
    with pytest.raises(ShapeError, match="axis -1"):
        form(0.0, 0.0)
    with pytest.raises(ShapeError):
        form(torch.tensor(p), torch.tensor(p), where=[True, False])
    for axis in (None, (0, 1), True, False):
        with pytest.raises(TypeError, match="expected one axis of events"):
            form(p, p, axis=axis)
    with pytest.raises(TypeError, match="arrays of numpy and torch; convert one"):
        form(p, torch.tensor(p))


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_many_rows_match_single_rows(library):
    # More entries than one block contains, and an incomplete last block.
    rng = np.random.default_rng(11)
    p = rng.normal(size=(7, 11, 30_000))
    q = p + rng.normal(size=(7, 11, 1)) * rng.normal(size=30_000)
    p, q = library(p), library(q)
    got = kl_logits(p, q)
    assert got.shape == (7, 11)
    for row in ((0, 0), (3, 5), (6, 10)):
        assert float(got[row]) == pytest.approx(float(kl_logits(p[row], q[row])), rel=1e-13)
    if library is torch.from_numpy:
        weights = torch.linspace(-1, 1, 77, dtype=torch.float64).reshape(7, 11)
        (kl_logits(p.requires_grad_(), q.requires_grad_()) * weights).sum().backward()
        for row in ((0, 0), (3, 5), (6, 10)):
            short_p, short_q = (side.detach()[row].clone().requires_grad_() for side in (p, q))
            (kl_logits(short_p, short_q) * weights[row]).backward()
            torch.testing.assert_close(p.grad[row], short_p.grad, rtol=1e-11, atol=1e-18)
            torch.testing.assert_close(q.grad[row], short_q.grad, rtol=1e-11, atol=1e-18)


def two_softmaxes(events, scale, seed=0):
    """Two pairs of logits and log-probabilities in float32, which PyTorch normalises."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, events, generator=generator)
    return logits, torch.log_softmax(logits, -1)


@pytest.mark.parametrize(
    ("events", "shift"), [(10, 0.0), (1000, 0.0), (50_257, 0.0), (50_257, 7e-5), (262_144, 0.0), (262_144, -2e-4)]
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_a_softmax_over_a_vocabulary_is_normalised(events, scale, shift):
    logits, logs = two_softmaxes(events, scale)
    logs = logs + shift  # a sum in float32 may leave a mass of 1 + 7e-5, which depends on the processor
    truth = kl_logits(*logits.double())
    for p, q in (logs, logs.numpy(), logs[:, None]):
        assert float(np.ravel(kl_log_probs(p, q))[0]) == pytest.approx(float(truth), rel=1e-4, abs=1e-9)
        probs_p, probs_q = (torch.as_tensor(side).exp() for side in (p, q))
        assert float(np.ravel(kl_probs(probs_p, probs_q))[0]) == pytest.approx(float(truth), rel=1e-4, abs=1e-9)
    exact = logits[0].double().log_softmax(-1)
    assert float(entropy(logs[0].exp())) == pytest.approx(-float(exact.exp() @ exact), rel=1e-5)
    Categorical(probs=logs[0].exp())
    with pytest.raises(NotNormalizedError, match=r"sums to 1\.0"):
        kl_log_probs(logs + math.log(1.01), logs)
    with pytest.raises(NotNormalizedError, match=r"sums to 1\.0"):
        kl_probs(1.01 * logs.exp().numpy(), logs.exp().numpy())
    with pytest.raises(NotNormalizedError, match="to sum to 1"):
        Categorical(probs=1.01 * logs[0].exp())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("events", [1000, 51_213])
def test_log_probabilities_in_half_precision_are_normalised(dtype, events):
    logs = torch.full((events,), -math.log(events), dtype=dtype)
    assert float(kl_log_probs(logs, logs)) == 0
    with pytest.raises(NotNormalizedError):
        kl_log_probs(logs + 0.1, logs)


def test_the_message_fits_the_fault():
    with pytest.raises(NotNormalizedError, match=r"p\[1\] is -0.5; if the values are log-probabilities or logits"):
        kl_probs([1.5, -0.5], [0.5, 0.5])
    with pytest.raises(NotNormalizedError, match=r"p\[1\] is nan; check the computation"):
        kl_probs([0.5, math.nan], [0.5, 0.5])
    with pytest.raises(NotNormalizedError, match=r"sums to 3\.0; divide by the sum"):
        kl_probs([2.0, 1.0], [0.5, 0.5])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.usefixtures("unchecked_shapes")  # which would refuse every axis but an int
def test_an_axis_of_any_integer_type(form, library):
    sides = [[0.5, 0.2], [0.5, 0.8]], [[0.25, 0.2], [0.75, 0.8]]
    p, q = (library(in_form(form, np.asarray(side))) for side in sides)
    expected = np.asarray(form(p, q, axis=0))
    for axis in (np.int64(0), np.int8(-2), np.asarray(0)):
        np.testing.assert_array_equal(form(p, q, axis=axis), expected)
    for axis in (None, "x", 1.5, (0,), True):
        with pytest.raises(ArrayTypeError, match="expected one axis of events, an integer"):
            form(p, q, axis=axis)


@pytest.mark.parametrize("function", [kl_probs, kl_logits, kl_log_probs])
@pytest.mark.parametrize(
    "value", [np.array(1.0), np.float64(1.0), np.array(0.0), torch.tensor(1.0), torch.tensor(0.0), 1.0]
)
def test_arrays_without_an_axis_of_events_are_refused(function, value):
    with pytest.raises(ShapeError, match="to be an axis of the shapes"):
        function(value, value)
