"""token_stats: values and gradients against float64 and exact arithmetic, special logits, and errors."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.errors import ArrayTypeError, ShapeError
from kullback.optimum.tilt import tilt_to_budget
from kullback.tokens import linear_token_kl, token_stats, topk_token_kl
from kullback.tokens.engine import compiled_rows

inf = math.inf
DIFFERENTIABLE = ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "log_prob_p", "log_prob_q")


@pytest.fixture(params=["compiled", "torch"])
def implementation(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiled_rows, "applies", lambda *logits: False)
    elif compiled_rows.kernels is None:
        pytest.skip("the package was installed without a compiler")
    return request.param


def logits(*shape, scale=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(*shape, dtype=torch.float64, generator=generator) * 3
    q = p + scale * torch.randn(*shape, dtype=torch.float64, generator=generator)
    targets = torch.randint(shape[-1], shape[:-1], generator=generator)
    return p.to(dtype), q.to(dtype), targets


def naive(p, q, targets):
    a, b = p.log_softmax(-1), q.log_softmax(-1)
    prob_p, prob_q, m = a.exp(), b.exp(), torch.logaddexp(a, b) - math.log(2)
    pick = targets[..., None]
    return {
        "kl": (prob_p * (a - b)).sum(-1),
        "reverse_kl": (prob_q * (b - a)).sum(-1),
        "js": (prob_p * (a - m) + prob_q * (b - m)).sum(-1) / 2,
        "entropy_p": -(prob_p * a).sum(-1),
        "entropy_q": -(prob_q * b).sum(-1),
        "log_prob_p": a.gather(-1, pick).squeeze(-1),
        "log_prob_q": b.gather(-1, pick).squeeze(-1),
        "total_variation": (prob_p - prob_q).abs().sum(-1) / 2,
        "expected_acceptance": torch.minimum(prob_p, prob_q).sum(-1),
    }


def exact(p, q):
    """The divergences of two lists of logits at 60 digits."""
    with mpmath.workdps(60):
        p, q = [mpmath.mpf(z) for z in p], [mpmath.mpf(z) for z in q]
        z_p, z_q = (mpmath.fsum(mpmath.exp(z) for z in side) for side in (p, q))
        p, q = [mpmath.exp(z) / z_p for z in p], [mpmath.exp(z) / z_q for z in q]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

        def kl(a, b):
            return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True))

        return {"kl": float(kl(p, q)), "reverse_kl": float(kl(q, p)), "js": float((kl(p, m) + kl(q, m)) / 2)}


@pytest.mark.parametrize("scale", [5.0, 0.5, 0.05])
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 333, 1500])
def test_values_and_gradients_agree_with_the_naive_equations(implementation, scale, vocabulary):
    p, q, targets = logits(2, 3, vocabulary, scale=scale)
    p, q = p.requires_grad_(), q.requires_grad_()
    stats, expected = token_stats(p, q, targets), naive(p, q, targets)
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(stats, name), value, rtol=1e-10, atol=1e-13)
        if name in DIFFERENTIABLE:
            gradients = [
                torch.autograd.grad((v * weights).sum(), (p, q), retain_graph=True, materialize_grads=True)
                for v in (getattr(stats, name), value)
            ]
            torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-13)
    agree = p.argmax(-1) == q.argmax(-1)
    assert torch.equal(stats.top1_agreement, agree)
    for found, z in ((stats.top1_prob_p, p), (stats.top1_prob_q, q)):
        torch.testing.assert_close(found, z.softmax(-1).max(-1).values.detach(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6])
def test_divergences_of_nearly_equal_distributions_keep_their_digits(implementation, dtype, scale):
    p, q, _ = logits(4, 200, scale=scale, dtype=dtype)
    stats = token_stats(p, q)
    for row in range(4):
        for name, value in exact(p[row].tolist(), q[row].tolist()).items():
            tolerance = (3e-6 if name != "js" or scale > 1e-5 else 1e-3) if dtype == torch.float32 else 1e-11
            assert getattr(stats, name)[row].item() == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
def test_float32_gradients_keep_their_digits(implementation, scale):
    p, q, targets = logits(3, 400, scale=scale, dtype=torch.float32)
    for name in ("kl", "reverse_kl", "js"):
        gradients = []
        for dtype in (torch.float32, torch.float64):
            sides = [side.to(dtype).requires_grad_() for side in (p, q)]
            value = getattr(token_stats(*sides, targets), name)
            gradients.append([g.double() for g in torch.autograd.grad(value.sum(), sides)])
        for narrow, wide in zip(*gradients, strict=True):
            assert ((narrow - wide).norm() / wide.norm()).item() < 2e-6, name


@given(st.integers(0, 2**32), st.floats(-9, 1), st.integers(1, 70), st.floats(-50, 50))
def test_laws(seed, exponent, vocabulary, shift):
    p, q, targets = logits(3, vocabulary, scale=10**exponent, dtype=torch.float32, seed=seed)
    stats, swapped = token_stats(p, q, targets), token_stats(q, p + torch.tensor(shift, dtype=torch.float32), targets)
    for name in ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "total_variation"):
        assert (getattr(stats, name) >= -1e-6 * (name[:3] == "ent")).all(), name
    assert (stats.js <= math.log(2) * (1 + 1e-6)).all()
    assert (stats.total_variation <= 1 + 1e-6).all()
    # Pinsker's inequality, and JS <= TV log 2.
    assert (2 * stats.total_variation**2 <= stats.kl * (1 + 1e-4) + 1e-12).all()
    assert (stats.js <= stats.total_variation * math.log(2) * (1 + 1e-4) + 1e-12).all()
    # A constant that is added to all logits changes them by rounding.
    noise = 1e-6 * (1 + abs(shift))
    torch.testing.assert_close(stats.kl, swapped.reverse_kl, rtol=2e-2, atol=noise * (noise + 10**exponent))
    torch.testing.assert_close(stats.total_variation, swapped.total_variation, rtol=2e-2, atol=noise)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_identical_logits_give_exactly_zero_values_and_gradients(implementation, dtype):
    p = logits(2, 5000, dtype=dtype)[0].requires_grad_()
    q = p.detach().clone().requires_grad_()
    stats = token_stats(p, q)
    total = stats.kl + stats.reverse_kl + stats.js
    assert (total == 0).all()
    assert (stats.total_variation == 0).all()
    assert stats.top1_agreement.all()
    total.sum().backward()
    assert (p.grad == 0).all()
    assert (q.grad == 0).all()


def test_impossible_tokens_and_extreme_logits(implementation):
    p = torch.tensor([[0.0, 0, -inf], [0, 0, 0], [0, -inf, 0], [1e4, -1e4, 0], [0, -200, -300]], dtype=torch.float64)
    q = torch.tensor([[0.0, 0, 0], [0, 0, -inf], [0, -inf, 0], [-1e4, 1e4, 0], [-150, 0, -20]], dtype=torch.float64)
    p, q = p.requires_grad_(), q.requires_grad_()
    stats = token_stats(p, q)
    log = math.log
    assert stats.kl.tolist() == pytest.approx([log(1.5), inf, 0, 20000, 150])
    assert stats.reverse_kl.tolist() == pytest.approx([inf, log(1.5), 0, 20000, 200], rel=1e-7)
    both = (2 * (1 / 2) * log((1 / 2) / (5 / 12)) + log(1.5 * 2 / 3) + 2 / 3 * log((1 / 3) / (5 / 12)) + log(2) / 3) / 2
    assert stats.js.tolist() == pytest.approx([both, both, 0, log(2), log(2)])
    assert stats.total_variation.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1, 1])
    assert stats.top1_agreement.tolist() == [True, True, True, False, False]
    (by_p, by_q) = torch.autograd.grad(stats.js.sum(), (p, q))
    assert torch.isfinite(by_p).all()
    assert torch.isfinite(by_q).all()
    assert by_p[0, 2] == 0
    assert by_q[1, 2] == 0


def test_nan_and_impossible_rows_affect_only_their_position(implementation):
    p, q, _ = logits(4, 40)
    p[1, 3], q[2, 0], p[3] = math.nan, inf, -inf
    stats = token_stats(p, q)
    for name in ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "total_variation"):
        assert getattr(stats, name).isnan().tolist() == [False, True, True, True], name


def test_no_targets_empty_batches_and_a_single_position():
    stats = token_stats(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4))
    assert stats.kl.shape == (0,)
    stats.kl.sum().backward()
    single = token_stats(torch.zeros(4), torch.zeros(4))
    assert single.kl.shape == ()
    assert single.log_prob_p is None
    assert single.entropy_p.item() == pytest.approx(math.log(4))


def test_half_precision_is_computed_in_float32():
    p, q, targets = logits(3, 90, dtype=torch.bfloat16)
    stats = token_stats(p.requires_grad_(), q, targets)
    assert stats.kl.dtype == torch.float32
    torch.testing.assert_close(stats.kl, token_stats(p.float(), q.float()).kl, rtol=0, atol=0)
    stats.kl.sum().backward()
    assert p.grad.dtype == torch.bfloat16


def test_strided_logits_give_the_same_values():
    p, q, targets = logits(4, 50)
    got = token_stats(p.T.contiguous().T, q.T.contiguous().T, targets)
    torch.testing.assert_close(got.kl, token_stats(p, q, targets).kl, rtol=1e-13, atol=0)


def test_invalid_arguments_raise():
    p, q, targets = logits(2, 5)
    with pytest.raises(ShapeError, match="share a vocabulary"):
        token_stats(p, q[:, :4])
    with pytest.raises(ArrayTypeError, match="q_logits to be a tensor, got list"):
        token_stats(p, q.tolist())
    with pytest.raises(ShapeError, match=r"one target for each position, shape \(2,\), got \(3,\)"):
        token_stats(p, q, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ArrayTypeError, match="integers"):
        token_stats(p, q, targets.double())
    with pytest.raises(ShapeError, match="from 0 to 4, got -100 to"):
        token_stats(p, q, torch.tensor([-100, 0]))


def test_transformations_of_torch_func_are_refused_or_right():
    p, q = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    for refused in (
        lambda x, y: token_stats(x, y).js,
        lambda x, y: torch.func.grad(lambda z: token_stats(z, y).kl.sum())(x),
        lambda x, y: linear_token_kl(x, torch.eye(5), y, torch.eye(5)).kl,
        lambda x, y: tilt_to_budget(x.softmax(-1), y, 0.1).policy,
    ):
        with pytest.raises(ArrayTypeError, match="outside of torch"):
            torch.func.vmap(refused)(p, q)
    top, ids = p.log_softmax(-1).topk(2)
    mapped = torch.func.vmap(lambda *arrays: topk_token_kl(*arrays).kl)(top, ids, q)
    torch.testing.assert_close(mapped, topk_token_kl(top, ids, q).kl)
