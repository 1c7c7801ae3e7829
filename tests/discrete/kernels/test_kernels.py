"""The fast kernels, compiled and in NumPy: accuracy, infinities, and rejection of invalid input."""

import math
import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.discrete import kl as discrete
from kullback.discrete.kernels import dispatch, numpy_probs
from kullback.discrete.kernels.dispatch import fast_kl_log_probs, fast_kl_logits, fast_kl_probs
from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs
from kullback.errors import NotNormalizedError, SupportError

from ...oracles import discrete as oracle

inf, nan = math.inf, math.nan
DTYPES = [(np.float64, 2e-15), (np.float32, 5e-7)]
# The tests run once for each instruction set of the processor, the widest last, and once in NumPy.
COMPILED = list(dispatch.compiled.instruction_sets()) if dispatch.compiled else []
BACKENDS = [*COMPILED, "NumPy"]
needs_kernels = pytest.mark.skipif(not COMPILED, reason="the package was installed without a compiler")


def use(monkeypatch, backend):
    """Use the instruction set, or NumPy, until the test ends."""
    if backend == "NumPy":
        monkeypatch.setattr(dispatch, "compiled", None)
    else:
        dispatch.compiled.use_instruction_set(backend)


@pytest.fixture(autouse=True)
def widest():
    yield
    if COMPILED:
        dispatch.compiled.use_instruction_set(COMPILED[-1])


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param


@pytest.fixture(params=COMPILED or [pytest.param("NumPy", marks=needs_kernels)])
def compiled(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param


def simplex(rng, shape, dtype=np.float64):
    probs = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])
    return (probs / probs.sum(-1, keepdims=True)).astype(dtype)


def near(rng, p, delta):
    q = p.astype(float) * np.exp(delta * rng.normal(size=p.shape))
    return (q / q.sum()).astype(p.dtype)


@cache
def _truth(function, p, q, dtype, digits):
    assert digits == oracle.KL_DIGITS
    return function(np.frombuffer(p, dtype), np.frombuffer(q, dtype))


def kl(p, q):
    """The oracle's KL of probabilities, computed once for all implementations."""
    return _truth(oracle.kl, p.tobytes(), q.tobytes(), p.dtype, oracle.KL_DIGITS)


def kl_of_logits(p, q):
    """The oracle's KL of logits, computed once for all implementations."""
    return _truth(oracle.kl_logits, p.tobytes(), q.tobytes(), p.dtype, oracle.KL_DIGITS)


def relative_error(got, truth):
    return abs(float((oracle.mpmath.mpf(float(got)) - truth) / truth))


def log(values):
    with np.errstate(divide="ignore"):
        return np.log(values)


# Accuracy.


@pytest.mark.parametrize("delta", [10.0, 1.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13])
@pytest.mark.parametrize("n", [7, 300, 2500])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_probabilities_are_accurate_at_every_distance(backend, delta, n, dtype, tolerance):
    rng = np.random.default_rng(1)
    p = simplex(rng, (n,), dtype)
    q = near(rng, p, delta)
    got = fast_kl_probs(p, q, -1)
    if (p == q).all():
        assert got == 0
    elif (
        got is None
    ):  # the masses differ by more than the distributions, so that the general implementation is required
        assert abs(math.fsum(p) - math.fsum(q)) > delta / math.sqrt(n) / 10
    else:
        assert type(got) is np.float64  # a result without axes is a Python float, for every dtype
        assert relative_error(got, kl(p, q)) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1.0, 1e-9])
def test_many_blocks(backend, monkeypatch, delta):
    monkeypatch.setattr(oracle, "KL_DIGITS", 60)  # enough of a KL of 1e-18, and quicker
    rng = np.random.default_rng(2)
    p = simplex(rng, (70_001,))
    q = near(rng, p, delta)
    p[40_000:40_010] = 0
    p /= math.fsum(p)
    assert relative_error(fast_kl_probs(p, q, -1), kl(p, q)) < 2e-15


@pytest.mark.parametrize("delta", [30.0, 3.0, 0.3, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("n", [7, 300, 2500])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("scale", [1, 10])
def test_logits_are_accurate_at_every_distance(compiled, delta, n, dtype, tolerance, scale):
    rng = np.random.default_rng(3)
    p = (scale * rng.normal(size=n)).astype(dtype)
    q = (p + delta * rng.normal(size=n)).astype(dtype)
    if (p == q).all():
        assert fast_kl_logits(p, q, -1) == 0
    else:
        assert relative_error(fast_kl_logits(p, q, -1), kl_of_logits(p, q)) < 2 * tolerance


def test_the_most_probable_event_gives_an_inaccurate_shift(compiled):
    # The first shift is wrong by 3, so that F is 10^11 times the KL, and a better shift must follow from the sums.
    rng = np.random.default_rng(4)
    p = rng.normal(size=3000) * 0.1
    p[5] = 0.5
    q = p + 1e-5 * rng.normal(size=3000)
    q[5] = p[5] + 3.0
    for dtype, tolerance in ((np.float64, 2e-15), (np.float32, 1e-6)):
        narrow_p, narrow_q = p.astype(dtype), q.astype(dtype)
        truth = kl_of_logits(narrow_p, narrow_q)
        assert relative_error(fast_kl_logits(narrow_p, narrow_q, -1), truth) < tolerance


@pytest.mark.parametrize("shift", [0.0, 1.0, -37.0, 1024.0])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_logits_that_differ_by_a_constant_give_exactly_zero(compiled, shift, dtype):
    p = np.round(np.random.default_rng(5).normal(size=4000) * 2**10) / 2**10
    logits = p.astype(dtype), (p + shift).astype(dtype)
    assert kl_logits(*logits) == 0
    # The kernel leaves logits at different levels to the general implementation.
    assert fast_kl_logits(*logits, -1) == (0 if abs(shift) < 64 else None)


def test_log_probabilities(compiled):
    rng = np.random.default_rng(6)
    p, q = simplex(rng, (2, 3000))
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
        logs = log(p).astype(dtype), log(q).astype(dtype)
        assert relative_error(fast_kl_log_probs(*logs, -1), kl_of_logits(*logs)) < tolerance
        assert fast_kl_log_probs(logs[0], logs[1] + dtype(1e-3), -1) is None
        assert fast_kl_log_probs(logs[0] + dtype(1e-3), logs[1], -1) is None
        with pytest.raises(NotNormalizedError, match="log_q"):
            kl_log_probs(logs[0], logs[1] + dtype(1e-3))


# Zeros, subnormal numbers, infinities.

TINY = [0.0, -0.0, 5e-324, 3e-320, 1e-310, 1e-300, 2.0**-961, 2.0**-960, 1e-280, 1e-45, 1e-38, 2.0**-120, 1e-30, 1e-9]
entries = st.floats(0.01, 1) | st.sampled_from(TINY)
laws = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def pairs(draw):
    p = np.asarray([*draw(st.lists(entries, min_size=1, max_size=11)), 0.7])
    kind = draw(st.sampled_from(["free", "near", "same"]))
    if kind == "free":
        q = np.asarray([*draw(st.lists(entries, min_size=len(p) - 1, max_size=len(p) - 1)), 0.4])
    else:
        noise = np.asarray(draw(st.lists(st.floats(-1, 1), min_size=len(p), max_size=len(p))))
        q = p * (1 + (draw(st.floats(1e-15, 0.5)) * noise if kind == "near" else 0))
    return p / p.sum(), q / q.sum()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@laws
@given(pair=pairs())
def test_probabilities_of_every_magnitude(backend, dtype, tolerance, pair):
    p, q = (side.astype(dtype) for side in pair)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, backend)
        got = fast_kl_probs(p, q, -1)
        monkeypatch.setattr(oracle, "KL_DIGITS", 700)  # resolves a mass of 5e-324 relative to 1
        truth = kl(p, q)
    if got is None:
        masses = [sum(Fraction(float(value)) for value in side) for side in (p, q)]
        assert masses[0] != masses[1]
        return
    assert got >= 0
    if truth == 0 or truth == oracle.mpmath.inf:
        assert got == truth
    else:
        # Subnormal results are less accurate.
        least = float(np.finfo(dtype).smallest_normal)
        assert abs(oracle.mpmath.mpf(float(got)) - truth) <= 2 * tolerance * truth + least


def test_two_tiny_entries(backend, monkeypatch):
    # The logarithms are near -667 and differ by 0.56, so that their difference has a relative error of 1e-13.
    p, q = np.asarray([7.32953e-290, 1.0]), np.asarray([1.28266775e-289, 1.0])
    monkeypatch.setattr(oracle, "KL_DIGITS", 700)
    assert relative_error(fast_kl_probs(p, q, -1), kl(p, q)) < 2e-15


@needs_kernels
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@laws
@given(pair=pairs(), temperature=st.sampled_from([1.0, 0.1, 30.0]), shift=st.integers(-100, 100))
def test_logits_of_every_magnitude(dtype, pair, temperature, shift):
    p, q = ((log(np.maximum(side, 0)) / temperature).astype(dtype) for side in pair)
    q = q + dtype(shift)
    with pytest.MonkeyPatch.context() as monkeypatch:
        got = fast_kl_logits(p, q, -1)
        monkeypatch.setattr(oracle, "KL_DIGITS", 700)
        truth = max(kl_of_logits(p, q), oracle.mpmath.mpf(0))
    if got is None:
        return
    assert got >= 0
    if truth == oracle.mpmath.inf:
        assert got == truth
    else:
        # The shift reduces the accuracy of every algorithm that subtracts logits.
        eps = float(np.finfo(dtype).eps)
        slack = 4 * eps * (1 + abs(shift) + float(np.abs(q[np.isfinite(q)]).max())) * oracle.mpmath.sqrt(2 * truth)
        assert abs(oracle.mpmath.mpf(float(got)) - truth) <= 20 * eps * truth + slack + float(
            np.finfo(dtype).smallest_normal
        )


def test_zeros_and_impossible_events(backend):
    p, q = np.asarray([0.0, 0.5, 0.5, 0.0]), np.asarray([0.25, 0.25, 0.5, 0.0])
    for dtype in (np.float64, np.float32):
        a, b = p.astype(dtype), q.astype(dtype)
        assert fast_kl_probs(a, b, -1) == pytest.approx(math.log(2) / 2, rel=1e-7)
        assert fast_kl_probs(b, a, -1) == inf
        assert fast_kl_probs(np.eye(2, dtype=dtype)[0], np.eye(2, dtype=dtype)[1], -1) == inf
        if backend != "NumPy":
            assert fast_kl_logits(log(a), log(b), -1) == pytest.approx(math.log(2) / 2, rel=1e-7)
            assert fast_kl_logits(log(b), log(a), -1) == inf
            assert fast_kl_log_probs(log(b), log(a), -1) == inf
            assert fast_kl_log_probs(log(b), log(a) + dtype(0.01), -1) is None


def test_logits_far_apart(compiled):
    for p, q in (
        ([0.0, -800.0], [-800.0, 0.0]),
        ([0.0, -650.0], [-650.0, 0.0]),
        ([0.0, -50.0, -60.0], [0.0, -3.0, -2.0]),
        ([0.0, -90.0], [-20.0, 0.0]),
        ([0.0, -750.0, -740.0], [0.0, 3.0, -2.0]),
        ([0.0, 0.0], [-200.0, 0.0]),
        ([0.0, -1e6], [-1e6, 0.0]),
    ):
        for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6)):
            a, b = np.asarray(p, dtype), np.asarray(q, dtype)
            got = fast_kl_logits(a, b, -1)
            if got is not None:
                assert relative_error(got, kl_of_logits(a, b)) < tolerance
            assert relative_error(kl_logits(a, b), kl_of_logits(a, b)) < tolerance
    lowest = float(np.finfo(np.float32).min)
    masked = fast_kl_logits(np.float32([0.0, 1.0, lowest]), np.float32([1.0, 0.0, lowest]), -1)
    assert masked == fast_kl_logits(np.float32([0.0, 1.0]), np.float32([1.0, 0.0]), -1)


# Input that the kernels leave to the general implementation.


@pytest.mark.parametrize("bad", [nan, inf, -inf, -0.1, -5e-324, -1e-300])
@pytest.mark.parametrize("position", [0, 5, 3000, 39_999])
def test_invalid_probabilities_are_rejected(backend, bad, position):
    for dtype in (np.float64, np.float32):
        good = np.full(40_000, 1 / 40_000, dtype)
        wrong = good.copy()
        wrong[position] = bad
        if wrong[position] == 0:
            continue
        assert fast_kl_probs(good, wrong, -1) is None
        assert fast_kl_probs(wrong, good, -1) is None
        with pytest.raises(NotNormalizedError, match=rf"p\[{position}\] is|p to sum to 1"):
            kl_probs(wrong, good)


def test_a_negative_entry_is_rejected_although_the_masses_are_one(backend):
    p, q = np.asarray([0.0, 0.125, 0.875]), np.asarray([-0.125, 0.875, 0.25])
    for dtype in (np.float64, np.float32):
        a, b = p.astype(dtype), q.astype(dtype)
        assert fast_kl_probs(a, b, -1) is None
        assert fast_kl_probs(b, a, -1) is None
        with pytest.raises(NotNormalizedError, match=r"q\[0\] is -0\.125"):
            kl_probs(a, b)


@pytest.mark.parametrize(("dtype", "excess"), [(np.float64, 2e-9), (np.float32, 2e-5)])
def test_masses_that_differ_from_one_are_rejected(backend, dtype, excess):
    good, wrong = np.asarray([0.5, 0.5], dtype), np.asarray([0.5, 0.5 + excess], dtype)
    close = np.asarray([0.5, 0.5 + excess / 4], dtype)
    for p, q, name in ((wrong, good, "p"), (good, wrong, "q")):
        assert fast_kl_probs(p, q, -1) is None
        with pytest.raises(NotNormalizedError, match=f"expected {name} to sum to 1 along axis .* within"):
            kl_probs(p, q)
    assert relative_error(kl_probs(close, good), kl(close, good)) < (1e-13 if dtype == np.float64 else 1e-6)


def test_proportional_rows_use_the_general_implementation(backend):
    p = np.asarray([0.25, 0.25, 0.5])
    assert fast_kl_probs(p, p * (1 + 2**-40), -1) is None
    assert 0 <= kl_probs(p, p * (1 + 2**-40)) < 1e-40


@pytest.mark.parametrize("bad", [nan, inf])
def test_invalid_logits_are_rejected(compiled, bad):
    for position in (0, 2500):
        good = np.zeros(3000)
        wrong = good.copy()
        wrong[position] = bad
        assert fast_kl_logits(good, wrong, -1) is None
        assert fast_kl_logits(wrong, good, -1) is None
        with pytest.raises(SupportError, match=rf"q_logits\[{position}\] is {bad}"):
            kl_logits(good, wrong)
    for dtype in (np.float64, np.float32):
        empty = np.full(5, -inf, dtype)
        assert fast_kl_logits(empty, np.zeros(5, dtype), -1) is None
        assert fast_kl_logits(np.zeros(5, dtype), empty, -1) in (None, inf)
        with pytest.raises(SupportError, match="every logit is -inf"):
            kl_logits(np.zeros(5, dtype), empty)


# Shapes, strides and array types.


@pytest.mark.parametrize("form", [fast_kl_probs, fast_kl_logits, fast_kl_log_probs])
def test_rows_strides_and_broadcasting_of_one_row(compiled, form):
    rng = np.random.default_rng(7)
    p, q = simplex(rng, (2, 4, 3, 500))
    if form is not fast_kl_probs:
        p, q = log(p), log(q)
    got = form(p, q, -1)
    assert got.shape == (4, 3)
    for i, j in np.ndindex(4, 3):
        assert got[i, j] == form(p[i, j], q[i, j], -1)
    assert (form(p, q[1, 2], -1) == form(p, np.broadcast_to(q[1, 2], p.shape), -1)).all()
    assert (form(p[1, 2], q, -1) == form(np.broadcast_to(p[1, 2], p.shape), q, -1)).all()
    assert (form(p, q, 2) == got).all()
    for axis in (0, 1, -2, 7):
        assert form(p, q, axis) is None
    for axis in (0, 1):  # the last axis of one array, but not of the broadcast arrays
        assert form(p[0, 0, :3, None][:, 0], p[0, :, :3], axis) is None
    wide = np.repeat(p, 2, axis=-1)
    frozen = q.copy()
    frozen.flags.writeable = False
    assert (form(wide[..., ::2], frozen, -1) == got).all()
    assert (form(np.asfortranarray(p), np.ascontiguousarray(q[::-1])[::-1], -1) == got).all()
    assert form(wide[0, 0, ::2], frozen[0, 0], 0) == got[0, 0]
    shifted = np.frombuffer(b"x" + p.tobytes(), np.uint8)[1:].view(p.dtype)  # unaligned
    assert not shifted.flags.aligned
    assert (form(shifted.reshape(p.shape), q, -1) == got).all()
    assert form(shifted[:500], q[0, 0], -1) == got[0, 0]


def test_other_types_use_the_general_implementation(backend):
    p = np.asarray([0.25, 0.75])
    assert fast_kl_probs(p, p, -1) == 0
    for other in (
        [0.25, 0.75],
        p.astype(np.float32),
        p.astype(np.float16),
        p.astype(np.longdouble),
        p.astype(">f8"),
        np.ma.masked_array(p),
        p.reshape(2, 1),
        np.asarray([0.25, 0.25, 0.5]),
        np.asarray(1.0),
        np.asarray([1, 0]),
        torch.tensor([0.25, 0.75]),
    ):
        for form in (fast_kl_probs, fast_kl_logits, fast_kl_log_probs):
            assert form(p, other, -1) is None
            assert form(other, p, -1) is None
    assert fast_kl_probs(np.asarray([1, 0]), np.asarray([1, 0]), -1) is None
    assert fast_kl_logits(np.asarray([1, 0], np.uint16), np.asarray([1, 0], np.uint16), -1) is None
    for empty in (np.empty(0), np.empty((0, 3)), np.empty((3, 0))):
        for form in (fast_kl_probs, fast_kl_logits, fast_kl_log_probs):
            assert form(empty, empty, -1) is None


def test_memory_maps(backend, tmp_path):
    rng = np.random.default_rng(8)
    p, q = simplex(rng, (2, 5000))
    np.save(tmp_path / "p.npy", p)
    p_map = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert type(p_map) is np.memmap
    got = fast_kl_probs(p_map, q, -1)
    assert type(got) is np.float64
    assert got == fast_kl_probs(p, q, -1)


def test_tensors_without_a_gradient_use_the_kernels(compiled):
    rng = np.random.default_rng(9)
    for dtype in (np.float64, np.float32):
        p, q = simplex(rng, (2, 3, 800), dtype)
        got = fast_kl_probs(torch.from_numpy(p), torch.from_numpy(q), -1)
        assert type(got) is torch.Tensor
        assert (got.numpy() == fast_kl_probs(p, q, -1)).all()
        got = fast_kl_probs(torch.from_numpy(p)[0], torch.from_numpy(q)[0], -1)
        assert got.shape == ()
        got = fast_kl_logits(torch.from_numpy(log(p)).T.contiguous().T, torch.from_numpy(log(q)), -1)
        assert (got.numpy() == fast_kl_logits(log(p), log(q), -1)).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # from make_dual
def test_tensors_with_a_gradient_do_not_use_the_kernels(compiled):
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    tracked = p.clone().requires_grad_()
    assert fast_kl_probs(tracked, p, -1) is None
    assert fast_kl_probs(p, tracked, -1) is None
    with torch.no_grad():
        assert fast_kl_probs(p, tracked, -1) == 0
    assert fast_kl_probs(torch.nn.Parameter(p), p, -1) is None
    with torch.autograd.forward_ad.dual_level():
        assert fast_kl_probs(torch.autograd.forward_ad.make_dual(p, p), p, -1) is None
    results = []
    torch.func.vmap(lambda row: results.append(fast_kl_probs(row, row, -1)) or row)(p.repeat(3, 1))
    torch.func.grad(lambda row: results.append(fast_kl_probs(row, row, -1)) or row.sum())(p)
    assert results == [None, None]
    for other in (p.to_sparse(), p.half(), p.to("meta"), torch.tensor([1, 0])):
        assert fast_kl_probs(other, other, -1) is None


def exact_gradients(p_logits, q_logits):
    """The gradients p (log(p/q) - KL) and q - p of these floats, in extended precision."""
    mp = oracle.mpmath
    with mp.workdps(60):
        p, q = ([mp.exp(mp.mpf(float(v))) for v in side] for side in (p_logits, q_logits))
        mass_p, mass_q = mp.fsum(p), mp.fsum(q)
        p, q = [v / mass_p for v in p], [v / mass_q for v in q]
        logs = [mp.log(a / b) if a > 0 and b > 0 else mp.mpf(0) for a, b in zip(p, q, strict=True)]
        kl = mp.fsum(a * one for a, one in zip(p, logs, strict=True))
        by_p = [a * (one - kl) if b > 0 else 0 for a, b, one in zip(p, q, logs, strict=True)]
        return [np.array(side, dtype=float) for side in (by_p, [b - a for a, b in zip(p, q, strict=True)])]


def torch_gradients(p, q, weight):
    p, q = (torch.tensor(side, requires_grad=True) for side in (p, q))
    gradients = torch.autograd.grad((kl_logits(p, q) * torch.tensor(weight, dtype=p.dtype)).sum(), (p, q))
    return [gradient.numpy() for gradient in gradients]


@pytest.mark.parametrize("delta", [50.0, 3.0, 0.1, 1e-3, 1e-6])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_gradients_are_accurate_at_every_distance(compiled, monkeypatch, delta, dtype, tolerance):
    for general in ("_general_value", "_general_p_gradient", "_general_q_gradient"):
        monkeypatch.setattr(discrete, general, None)  # only the kernels are used
    rng = np.random.default_rng(5)
    p = (3 * rng.normal(size=(2, 700))).astype(dtype)
    q = (p + dtype(delta) * rng.normal(size=p.shape)).astype(dtype)
    p[:, ::7] = q[:, ::7] = -inf
    weight = np.array([2.0, -0.5])
    got = torch_gradients(p, q, weight)
    for k in range(2):
        for gradients, exact in zip(got, exact_gradients(p[k], q[k]), strict=True):
            assert np.abs(gradients[k] - weight[k] * exact).max() <= 8 * tolerance * np.abs(weight[k] * exact).max()
            assert (gradients[k, ::7] == 0).all()


def test_gradients_at_impossible_events(compiled):
    p, q = np.array([[0.0, 1.0, -inf, 2.0]]), np.array([[0.5, -2.0, 1.0, 700.0]])
    by_p, by_q = torch_gradients(p, q, [3.0])
    exact = exact_gradients(p[0], q[0])
    np.testing.assert_allclose(by_p[0], 3 * exact[0], rtol=1e-13)
    np.testing.assert_allclose(by_q[0], 3 * exact[1], rtol=1e-13, atol=1e-300)
    # The gradient with respect to q is finite where KL is infinite.
    q[0, 1] = -inf
    np.testing.assert_allclose(torch_gradients(p, q, [3.0])[1][0], 3 * exact_gradients(p[0], q[0])[1], rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_at_equal_logits_are_exactly_zero(compiled, dtype):
    logits = torch.randn(3, 50, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for gradient in torch_gradients(logits.numpy(), logits.numpy(), [1.0, 2.0, 3.0]):
        assert (gradient == 0).all()


def test_second_derivatives_threads_and_strides(compiled, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    p, q = (torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradgradcheck(kl_logits, (p, q))
    monkeypatch.setattr(dispatch, "_ENTRIES_PER_THREAD", 2)
    wide = torch.randn(2, 5, 40, dtype=torch.float64, generator=generator)
    strided, flipped = wide[..., ::2].numpy(), wide.flip(-1)[..., ::2].numpy()
    weight = np.arange(10.0).reshape(2, 5)
    for gradients, dense in zip(
        torch_gradients(strided, flipped, weight), torch_gradients(strided.copy(), flipped.copy(), weight), strict=True
    ):
        assert np.array_equal(gradients, dense)
    exact = exact_gradients(strided[1, 2], flipped[1, 2])[0]
    np.testing.assert_allclose(torch_gradients(strided, flipped, weight)[0][1, 2], 7 * exact, rtol=1e-12, atol=1e-15)


def test_bfloat16_tensors_are_computed_in_float32(compiled):
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(4, 3000, generator=generator)).bfloat16()
    q = (p + torch.randn(4, 3000, generator=generator)).bfloat16()
    p[:, 7] = q[:, 7] = -inf
    got = fast_kl_logits(p, q, -1)
    assert got.dtype == torch.bfloat16
    assert (got == fast_kl_logits(p.float(), q.float(), -1).bfloat16()).all()
    assert (fast_kl_logits(p, q[0], -1) == fast_kl_logits(p.float(), q[0].float(), -1).bfloat16()).all()
    uniform = torch.full((4, 512), -math.log(512)).bfloat16()
    assert (fast_kl_log_probs(uniform, uniform, -1) == 0).all()
    assert fast_kl_log_probs(uniform, uniform + 0.25, -1) is None
    assert fast_kl_probs(uniform.exp(), uniform.exp(), -1) is None


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_give_the_same_result(compiled, monkeypatch, threads):
    monkeypatch.setattr(dispatch, "_ENTRIES_PER_THREAD", 1000)
    rng = np.random.default_rng(10)
    p, q = simplex(rng, (2, 5, 20_011))
    expected, row = fast_kl_probs(p, q, -1), float(fast_kl_probs(p[0], q[0], -1))
    monkeypatch.setattr(dispatch, "THREADS", threads)
    assert (fast_kl_probs(p, q, -1) == expected).all()
    assert float(fast_kl_probs(p[0], q[0], -1)) == pytest.approx(row, rel=1e-15)
    assert relative_error(row, kl(p[0], q[0])) < 2e-15
    assert (
        fast_kl_logits(log(p), log(q), -1) == [fast_kl_logits(log(a), log(b), -1) for a, b in zip(p, q, strict=True)]
    ).all()
    p[0, 11_111] = nan
    assert fast_kl_probs(p[0], q[0], -1) is None
    p[0, 11_111], q[0, 5] = 0, 0
    p[0] /= math.fsum(p[0])
    q[0] /= math.fsum(q[0])
    assert fast_kl_probs(p[0], q[0], -1) == inf


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_all_implementations_agree(dtype):
    rng = np.random.default_rng(11)
    p, q = simplex(rng, (2, 3, 50_000), dtype)
    p[1, ::5] = 0
    p[1] /= p[1].sum()
    got = []
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            use(patch, backend)
            got.append(fast_kl_probs(p, q, -1))
    for one in got[1:]:
        np.testing.assert_allclose(one, got[0], rtol=1e-14 if dtype == np.float64 else 2e-7)
    general = [float(kl(p[1, :5000] / p[1, :5000].sum(), q[1, :5000] / q[1, :5000].sum()))]
    assert general[0] == pytest.approx(
        float(kl_probs(p[1, :5000] / p[1, :5000].sum(), q[1, :5000] / q[1, :5000].sum())), rel=1e-5
    )


# The choice of the implementation.


def test_values_without_compiled_kernels():
    code = (
        "import sys; sys.modules['kullback.compiled._kernels'] = None\n"
        "import numpy as np\nfrom kullback import kl_logits, kl_probs\nfrom kullback.discrete.kernels import dispatch\n"
        "p, q = np.full(2**20, 2.0**-20), (0.5 + (np.arange(2**20) + 0.5) * 2.0**-20) * 2.0**-20\n"
        "print(*map(float, (dispatch.fast_kl_probs(p, q, -1), kl_probs(p, q), kl_logits(np.log(p), np.log(q)))))\n"
        "print(dispatch.compiled)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    values, compiled = done.stdout.splitlines()
    # The mean of -log(x) for x uniform on (1/2, 3/2) by the midpoint rule.
    expected = 1 - 1.5 * math.log(1.5) + 0.5 * math.log(0.5)
    assert [float(value) for value in values.split()] == pytest.approx([expected] * 3, rel=1e-9)
    assert compiled == "None"


def test_the_package_does_not_import_heavy_libraries():
    code = (
        "import sys, numpy as np, kullback\nkullback.kl_probs(np.full(4, 0.25), np.full(4, 0.25))\n"
        "print(sorted(set(sys.modules) & {'numba', 'llvmlite', 'torch', 'jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_kernels
def test_the_first_call_loads_and_compiles_nothing():
    code = (
        "import sys, numpy as np\nfrom kullback import kl_logits, kl_probs\n"
        "p, before = np.full(10**6, 1e-6), set(sys.modules)\nkl_probs(p, p), kl_logits(p, p)\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_kernels
def test_results_do_not_depend_on_earlier_calls():
    rng = np.random.default_rng(13)
    p, q = simplex(rng, (2, 5000))
    first = fast_kl_probs(p[:7] / p[:7].sum(), q[:7] / q[:7].sum(), -1)
    for _ in range(300):
        fast_kl_probs(p, q, -1)
        fast_kl_logits(p, q, -1)
    assert fast_kl_probs(p[:7] / p[:7].sum(), q[:7] / q[:7].sum(), -1) == first


@needs_kernels
def test_compiled_and_numpy_sums_agree(compiled):
    rng = np.random.default_rng(12)
    p, q = simplex(rng, (2, 30_000))
    np.testing.assert_allclose(dispatch.compiled.prob_sums(p, q), numpy_probs.prob_sums(p, q), rtol=1e-13, atol=1e-14)


# The compiled functions check their arguments, because a wrong argument would read foreign memory.


@needs_kernels
@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("kl_probs_row", (np.ones(2), np.ones(3), 1e-9), ValueError),
        ("kl_probs_row", (np.ones(2), np.ones(2, np.float32), 1e-9), ValueError),
        ("kl_probs_row", (np.ones((2, 2)), np.ones((2, 2)), 1e-9), ValueError),
        ("kl_probs_row", (np.ones(2, int), np.ones(2, int), 1e-9), TypeError),
        ("kl_probs_row", (np.ones(4)[::2], np.ones(2), 1e-9), (ValueError, BufferError)),
        ("kl_probs_row", (np.ones(2), np.ones(2), "1"), TypeError),
        ("kl_probs_row", (np.ones(2), np.ones(2)), TypeError),
        ("kl_probs_row", ([0.5, 0.5], [0.5, 0.5], 1e-9), TypeError),
        ("kl_probs_row", (np.array(1.0), np.array(1.0), 1e-9), ValueError),
        ("prob_sums", (np.ones(2, np.uint16), np.ones(2, np.uint16)), ValueError),
        ("kl_probs_rows", (np.ones((2, 3)), np.ones((3, 3)), 1e-9, np.ones(3)), ValueError),
        ("kl_probs_rows", (np.ones((2, 3)), np.ones((2, 3)), 1e-9, np.ones(3)), ValueError),
        ("kl_probs_rows", (np.ones((0, 3)), np.ones((0, 3)), 1e-9, np.ones(1)), ValueError),
        ("kl_logits_rows", (np.ones((2, 3)), np.ones((2, 3)), 1e-9, np.ones(2, np.float32)), ValueError),
        ("kl_logits_rows", (np.ones((2, 0)), np.ones((2, 0)), 1e-9, np.ones(2)), ValueError),
        (
            "kl_logits_rows",
            (np.ones((2, 3)), np.ones((2, 3)), 1e-9, np.broadcast_to(1.0, 2)),
            (ValueError, BufferError),
        ),
        ("kl_logits_grad_p_rows", (np.ones((2, 3)), np.ones((2, 3)), np.ones(3), np.ones((2, 3))), ValueError),
        ("kl_logits_grad_q_rows", (np.ones((2, 3)), np.ones((1, 3)), np.ones(2), np.ones((2, 3))), ValueError),
        ("kl_logits_grad_q_rows", (np.ones((2, 3)), np.ones((2, 3)), np.ones(2), np.ones((2, 2))), ValueError),
        ("use_instruction_set", "MMX", ValueError),
    ],
)
def test_wrong_arguments_of_the_compiled_functions(name, arguments, error):
    function = getattr(dispatch.compiled, name)
    with pytest.raises(error):
        function(*arguments) if isinstance(arguments, tuple) else function(arguments)


@pytest.mark.slow  # it takes about 10 s
@needs_kernels
def test_more_entries_than_a_32_bit_integer_counts():
    try:  # memory is not reserved before it is written, so that the two arrays take a few pages
        p, q = np.zeros(2**31 + 1, np.float32), np.zeros(2**31 + 1, np.float32)
    except MemoryError:
        pytest.skip("the system reserves memory for arrays of zeros")
    p[-1], q[-1], q[0] = 1.0, 0.5, 0.5
    assert dispatch.compiled.kl_probs_row(p, q, 1e-3) == pytest.approx(math.log(2), rel=1e-15)


@needs_kernels
def test_empty_rows(compiled):
    assert dispatch.compiled.prob_sums(np.empty(0), np.empty(0)) == (0.0, 0.0, 0.0)
    out = np.empty(0)
    dispatch.compiled.kl_probs_rows(np.empty((0, 3)), np.empty((0, 3)), 1e-9, out)


@needs_kernels
@pytest.mark.parametrize("n", [*range(1, 40), 2047, 2048, 2049, 4111])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_every_length_up_to_several_vectors(compiled, n, dtype, tolerance):
    rng = np.random.default_rng(n)
    p, q = simplex(rng, (2, n), dtype)
    if n > 1:
        assert relative_error(fast_kl_probs(p, q, -1), kl(p, q)) < 2 * tolerance
    a, b = (rng.normal(size=n).astype(dtype) for _ in range(2))
    if n == 1:
        assert fast_kl_logits(a, b, -1) == 0
    else:
        assert relative_error(fast_kl_logits(a, b, -1), kl_of_logits(a, b)) < 4 * tolerance
    gradients = torch_gradients(a, b, 1.0)
    for got, exact in zip(gradients, exact_gradients(a, b), strict=True):
        assert np.abs(got - exact).max() <= 16 * tolerance * max(np.abs(exact).max(), float(np.finfo(dtype).tiny))
