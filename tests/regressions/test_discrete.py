"""Inputs for which other libraries return a wrong discrete KL: their result is reproduced, and ours is correct."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from torch.distributions import Categorical, kl_divergence

from kullback.discrete.divergence import divergence
from kullback.discrete.entropy import cross_entropy
from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs
from kullback.errors import NotNormalizedError

from ..oracles import discrete as oracle

inf = math.inf
P, Q = [0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1]


def test_argument_order_and_probabilities_passed_as_logs():
    # pytorch#57459: kl_div(input, target) is KL(target || input), and its input is a log-probability.
    p, q = torch.tensor(P, dtype=torch.float64), torch.tensor(Q, dtype=torch.float64)
    assert F.kl_div(p, q, reduction="sum") < -1.5
    assert kl_probs(p, q).item() == pytest.approx(0.033979807359079, rel=1e-13)
    assert kl_log_probs(p.log(), q.log()).item() == pytest.approx(0.033979807359079, rel=1e-13)
    assert kl_probs(q, p).item() == pytest.approx(0.035334910696915, rel=1e-13)
    with pytest.raises(NotNormalizedError, match="kl_probs takes probabilities"):
        kl_log_probs(p, q)
    with pytest.raises(NotNormalizedError, match="kl_log_probs or kl_logits"):
        kl_probs(p.log(), q.log())


def test_reduction_is_over_events_only():
    # pytorch#2259: "mean" also divides by the vocabulary size, and "batchmean" divides only by the first axis.
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 32, 1000, dtype=torch.float64, generator=generator) for _ in range(2))
    batchmean = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    per_token = kl_logits(p, q)
    assert per_token.shape == (4, 32)
    assert per_token.mean().item() * 32 == pytest.approx(batchmean.item(), rel=1e-12)
    assert 0.9 < per_token.mean().item() < 1.1
    assert per_token[2, 7].item() == pytest.approx(float(oracle.kl_logits(p[2, 7], q[2, 7])), rel=1e-13)


def test_masked_vocabulary_has_a_finite_value_and_gradient():
    p = torch.tensor([0.0, 1.0, -inf], requires_grad=True)
    q = torch.tensor([1.0, 0.0, -inf], requires_grad=True)
    assert F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum").isnan()
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert torch.autograd.grad(theirs, p)[0].isnan().all()

    short_p, short_q = (side.detach()[:2].clone().requires_grad_() for side in (p, q))
    kl_logits(short_p, short_q).backward()
    kl_logits(p, q).backward()
    assert kl_logits(p, q).item() == kl_logits(short_p, short_q).item()
    for side, short in ((p, short_p), (q, short_q)):
        assert side.grad.tolist() == [*short.grad.tolist(), 0.0]
    p, q = (jnp.asarray(side.detach().numpy()) for side in (p, q))
    assert float(kl_logits(p, q)) == pytest.approx(0.4621172, rel=1e-6)
    assert all(np.isfinite(side).all() for side in jax.grad(kl_logits, (0, 1))(p, q))


def test_probabilities_are_not_clamped():
    # pytorch#15288: probabilities are clamped at 1.2e-7, and probabilities computed from logits underflow.
    even = torch.tensor([0.5, 0.5])
    assert kl_divergence(Categorical(probs=even), Categorical(probs=torch.tensor([1e-30, 1.0]))).item() < 7.3
    assert kl_probs(even, torch.tensor([1e-30, 1.0])).item() == pytest.approx(33.845629, rel=1e-6)
    steep = torch.tensor([-200.0, 0.0])
    assert kl_divergence(Categorical(logits=torch.zeros(2)), Categorical(logits=steep)).item() == inf
    assert kl_logits(torch.zeros(2), steep).item() == pytest.approx(99.306853, rel=1e-6)
    assert kl_probs(even, torch.tensor([0.0, 1.0])).item() == inf


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-3, 1e-4, 1e-5])
def test_float32_is_accurate_near_equality(delta):
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(8, 5000, generator=generator) * 3
    q = p + delta * torch.randn(8, 5000, generator=generator)
    truth = torch.tensor([float(oracle.kl_logits(p[k].tolist(), q[k].tolist())) for k in range(2)])
    theirs = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    assert (abs(theirs[:2] / truth - 1) > 1e-3).any()
    if delta < 1e-4:
        assert (theirs < 0).any()
    torch.testing.assert_close(kl_logits(p, q)[:2], truth, rtol=2e-6, atol=0)
    got = kl_logits(jnp.asarray(p.numpy()), jnp.asarray(q.numpy()))[:2]
    np.testing.assert_allclose(got, truth.numpy(), rtol=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_identical_logits_of_a_vocabulary_give_zero(dtype):
    generator = torch.Generator().manual_seed(2)
    logits = (torch.randn(50257, generator=generator) * 3).to(dtype)
    assert abs(F.kl_div(logits.log_softmax(-1), logits.softmax(-1), reduction="sum").item()) > 5e-4
    assert kl_logits(logits, logits).item() == 0


def test_low_temperatures_have_gradients():
    # pytorch#89558: a finite loss whose gradient is nan.
    reference = torch.tensor([0.2, 0.3, 0.5])
    logits = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    theirs = F.kl_div(reference.log(), (logits / 0.005).softmax(-1), reduction="sum")
    assert theirs.item() == pytest.approx(math.log(2), rel=1e-6)
    assert torch.autograd.grad(theirs, logits)[0].isnan().all()
    ours = kl_logits(logits / 0.005, reference.log())
    # A logit of 600 is rounded to 3e-5.
    assert ours.item() == pytest.approx(math.log(2), abs=3e-5)
    (gradient,) = torch.autograd.grad(ours, logits)
    # It is below 1e-84. A rounding of log(p/q), which depends on the processor, is divided by the temperature.
    torch.testing.assert_close(gradient, torch.zeros(3), rtol=0, atol=torch.finfo(torch.float32).eps / 0.005)
    # The same from probabilities that have underflowed.
    ours = kl_probs((logits / 0.005).softmax(-1), reference)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.zeros(3), rtol=0, atol=1e-6)


def test_unnormalised_input_is_rejected():
    # scipy#12553: both arguments are divided by their sums, also if they are logarithms.
    assert scipy.stats.entropy(np.log(P), np.log(Q)) == pytest.approx(0.016248, abs=1e-6)
    with pytest.raises(NotNormalizedError, match=r"p\[0\] is -0.9"):
        kl_probs(np.log(P), np.log(Q))
    assert scipy.stats.entropy([2, 1], [1, 1]) > 0
    with pytest.raises(NotNormalizedError, match=r"p to sum to 1 .* sums to 3\.0; divide by the sum"):
        kl_probs([2, 1], [0.5, 0.5])
    # scipy#23064: the default axis is the first axis.
    rows = np.asarray([P, Q])
    assert scipy.stats.entropy(rows, rows[::-1]).shape == (4,)
    assert kl_probs(rows, rows[::-1]).tolist() == pytest.approx([0.03397980735908, 0.03533491069692], rel=1e-12)


def test_a_grid_of_densities_that_underflow():
    x = np.linspace(-50, 50, 10001)
    p, q = scipy.stats.norm(0, 2), scipy.stats.norm(0, 1)
    assert scipy.stats.entropy(p.pdf(x), q.pdf(x)) == inf
    assert float(kl_logits(p.logpdf(x), q.logpdf(x))) == pytest.approx(1.5 - math.log(2), rel=1e-12)


def test_jensen_shannon_is_never_nan_or_negative():
    # scipy#20083: the square root of a value that rounding has made negative or zero.
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), size=200)
    q = p * (1 + 1e-9 * rng.normal(size=p.shape))
    q /= q.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        assert np.isnan(jensenshannon(p, q, axis=-1)).sum() > 50
    ours = divergence(p, q, "js")
    for k in range(0, 200, 20):
        with oracle.mpmath.workdps(60):
            a, b = ([oracle.mpmath.mpf(float(v)) for v in side[k]] for side in (p, q))
            a, b = ([v / oracle.mpmath.fsum(side) for v in side] for side in (a, b))
            mean = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
            log = oracle.mpmath.log
            truth = sum(x * log(x / m) + y * log(y / m) for x, y, m in zip(a, b, mean, strict=True)) / 2
        assert float(ours[k]) == pytest.approx(float(truth), rel=1e-12)
    # SciPy returns the square root of the divergence.
    root = math.sqrt(divergence([0.9, 0.1, 0.0], [0.0, 0.4, 0.6], "js"))
    assert root == pytest.approx(jensenshannon([0.9, 0.1, 0.0], [0.0, 0.4, 0.6]), rel=1e-12)
    assert float(divergence([1.0, 0.0], [0.0, 1.0], "js")) == pytest.approx(math.log(2), rel=1e-15)


def test_subnormal_probabilities_in_jax():
    p, q = jnp.asarray([0.5, 0.5]), jnp.asarray(np.float32([1e-42, 1.0]))
    assert jax.scipy.special.rel_entr(p, q)[0] == inf
    truth = float(oracle.kl([0.5, 0.5], np.float32([1e-42, 1.0])))
    assert truth == pytest.approx(47.66, abs=0.01)
    assert float(kl_probs(p, q)) == pytest.approx(truth, rel=1e-6)
    assert float(cross_entropy(p, q)) == pytest.approx(truth + math.log(2), rel=1e-6)


def test_events_missing_from_q_give_infinity():
    # infomeasure ignores the event: kld([0, 0, 1, 1], [0, 0, 0, 0]) = -0.693.
    counts_p, counts_q = np.bincount([0, 0, 1, 1], minlength=2), np.bincount([0, 0, 0, 0], minlength=2)
    p, q = counts_p / counts_p.sum(), counts_q / counts_q.sum()
    assert kl_probs(p, q) == inf
    assert kl_probs(q, p) == pytest.approx(math.log(2), rel=1e-15)
    assert kl_probs(torch.tensor(p), torch.tensor(q)).item() == inf
    assert float(kl_probs(jnp.asarray(p), jnp.asarray(q))) == inf
