"""topk_token_kl: the bounds hold for every distribution, and are exact where nothing is missing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.errors import ArrayTypeError, NotNormalizedError, ShapeError
from kullback.tokens import token_kl, topk_token_kl


def case(seed=0, vocabulary=12, k=4, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    p = 2 * torch.randn(3, vocabulary, dtype=torch.float64, generator=generator)
    q = p + scale * torch.randn(3, vocabulary, dtype=torch.float64, generator=generator)
    values, ids = p.log_softmax(-1).topk(k)
    return p.to(dtype), q.to(dtype), values.to(dtype), ids


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(0, 5), st.sampled_from([torch.float32, torch.float64]))
def test_the_bounds_hold_in_both_directions(seed, k, scale, dtype):
    p, q, values, ids = case(seed, k=k, scale=scale, dtype=dtype)
    bounds = topk_token_kl(values, ids, q)
    slack = 1e-12 if dtype == torch.float64 else 3e-6
    forward, reverse = token_kl(p.double(), q.double()), token_kl(q.double(), p.double())
    assert (bounds.kl >= 0).all()
    assert (bounds.kl <= forward + slack).all()
    assert (bounds.reverse_kl <= reverse + slack + 1e-3 * reverse * (dtype == torch.float32)).all()
    assert (bounds.kl_upper >= forward - slack).all()
    rest = 1 - p.double().softmax(-1).gather(-1, ids).sum(-1)
    torch.testing.assert_close(bounds.missing_mass.double(), rest, rtol=1e-5, atol=slack)


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(0, 5), st.sampled_from([torch.float32, torch.float64]))
def test_the_lower_bound_is_not_above_the_upper_bound(seed, k, scale, dtype):
    _, q, values, ids = case(seed, k=k, scale=scale, dtype=dtype)
    bounds = topk_token_kl(values, ids, q)
    assert (bounds.kl <= bounds.kl_upper).all()


@pytest.mark.parametrize("scale", [1, 4, 10])
def test_the_bounds_hold_where_float32_does_not_resolve_the_missing_mass(scale):
    generator = torch.Generator().manual_seed(5)
    p = 3.0 * scale * torch.randn(300, 8000, generator=generator)
    q = p + torch.randn(300, 8000, generator=generator)
    values, ids = p.log_softmax(-1).topk(100)
    bounds = topk_token_kl(values, ids, q)
    forward, reverse = token_kl(p.double(), q.double()), token_kl(q.double(), p.double())
    assert (bounds.kl <= forward * (1 + 1e-4) + 1e-12).all()
    assert (bounds.reverse_kl <= reverse + 1e-6).all()
    assert (bounds.kl_upper >= forward - 1e-6).all()
    rest = 1 - p.double().softmax(-1).gather(-1, ids).sum(-1)
    torch.testing.assert_close(bounds.missing_mass.double(), rest, rtol=1e-4, atol=1e-6)


def test_a_probability_of_zero_in_the_top_k_shows_that_nothing_is_missing():
    values, ids = torch.tensor([0.0, -math.inf]), torch.tensor([0, 1])
    bounds = topk_token_kl(values, ids, torch.tensor([2.0, 1.0, 0.0, -math.inf]))
    assert bounds.missing_mass == 0
    assert bounds.reverse_kl == math.inf
    torch.testing.assert_close(bounds.kl, bounds.kl_upper)


def test_the_bounds_are_exact_where_nothing_is_missing():
    p, q, values, ids = case(k=12)
    bounds = topk_token_kl(values, ids, q)
    torch.testing.assert_close(bounds.kl, token_kl(p, q), rtol=1e-12, atol=0)
    torch.testing.assert_close(bounds.reverse_kl, token_kl(q, p), rtol=1e-12, atol=0)
    torch.testing.assert_close(bounds.kl_upper, token_kl(p, q), rtol=1e-10, atol=0)
    assert (bounds.missing_mass == 0).all()


def test_the_lower_bound_is_the_kl_of_the_merged_events():
    p, q, values, ids = case(k=3)
    probs_p, probs_q = p.softmax(-1), q.softmax(-1)
    kept_p, kept_q = probs_p.gather(-1, ids), probs_q.gather(-1, ids)
    merged_p = torch.cat([kept_p, 1 - kept_p.sum(-1, keepdim=True)], -1)
    merged_q = torch.cat([kept_q, 1 - kept_q.sum(-1, keepdim=True)], -1)
    expected = (merged_p * (merged_p / merged_q).log()).sum(-1)
    torch.testing.assert_close(topk_token_kl(values, ids, q).kl, expected, rtol=1e-11, atol=0)


def test_the_bounds_are_differentiable_with_respect_to_the_student():
    _, q, values, ids = case()
    q = q.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: topk_token_kl(values, ids, q).kl, (q,))
    assert torch.autograd.gradcheck(lambda q: topk_token_kl(values, ids, q).reverse_kl, (q,))


def test_a_student_that_excludes_tokens():
    _, q, values, ids = case()
    q[0, ids[0, 0]] = -math.inf
    other = next(v for v in range(12) if v not in ids[1].tolist())
    q[1, other] = -math.inf
    bounds = topk_token_kl(values, ids, q)
    assert bounds.kl[0] == math.inf
    assert bounds.kl[1].isfinite()
    assert bounds.kl_upper[1] == math.inf
    assert bounds.kl_upper[2].isfinite()


@pytest.mark.parametrize("excluded", [(0, 2), (1, 2), (0, 1, 2, 3)])
def test_a_student_that_excludes_a_token_of_the_top_and_all_others(excluded):
    values, ids = torch.tensor([0.5, 0.3, 0.15]).log(), torch.tensor([0, 1, 3])
    q = torch.zeros(4)
    q[[v for v in range(4) if v in excluded]] = -math.inf
    if not q.isfinite().any():
        q[2] = 0.0
    bounds = topk_token_kl(values, ids, q)
    assert bounds.kl == bounds.kl_upper == math.inf


def test_a_probability_that_underflows_is_not_zero():
    p = torch.tensor([0.0, -50.0, -104.0, -110.0, -130.0])
    values, ids = p.log_softmax(-1).topk(4)
    q = p + torch.tensor([0.0, 1e-6, 0.3, 0.1, 0.1])
    assert topk_token_kl(values, ids, q).reverse_kl < 1e-30
    q[4] = -torch.inf
    assert topk_token_kl(values, ids, q).kl_upper == torch.inf


def test_no_missing_mass_is_not_minus_zero():
    bounds = topk_token_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0, 1]), torch.zeros(3))
    assert math.copysign(1.0, bounds.missing_mass.item()) == 1.0


def test_invalid_arguments_raise():
    _, q, values, ids = case()
    with pytest.raises(ShapeError, match=r"\(3, 4\), \(3, 3\), \(3, 12\)"):
        topk_token_kl(values, ids[:, :3], q)
    with pytest.raises(ArrayTypeError, match="integers"):
        topk_token_kl(values, ids.double(), q)
    with pytest.raises(ShapeError, match="repeated id"):
        topk_token_kl(values, torch.zeros_like(ids), q)
    with pytest.raises(ShapeError, match="from 0 to 11, got 0 to 12"):
        topk_token_kl(values, torch.tensor([[0, 1, 2, 12]]).expand(3, 4), q)
    with pytest.raises(NotNormalizedError, match="at most 1, got a sum of 2"):
        topk_token_kl(values + 1, ids, q)


@pytest.mark.parametrize(
    ("probabilities", "vocabulary"),
    [
        ([0.5, 0.3], 2),  # the whole vocabulary, truncated and not normalised again
        ([0.1, 0.1], 4),  # two other tokens of at most 0.1 each
        ([0.5, 1e-6], 100),  # a sampled token instead of the second most probable one
        ([0.9, 0.0], 5),  # nothing can follow a probability of 0
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_are_not_the_largest_of_a_distribution_are_refused(probabilities, vocabulary, dtype):
    log_p = torch.tensor([[0.6, 0.3], probabilities], dtype=dtype).log()
    ids = torch.tensor([[0, 1], [1, 0]])
    q = torch.zeros(2, vocabulary, dtype=dtype)
    with pytest.raises(
        NotNormalizedError, match=f"the 2 largest probabilities of a distribution over {vocabulary} tokens"
    ):
        topk_token_kl(log_p[1:], ids[1:], q[1:])


@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_rounded_log_probabilities_of_nearly_uniform_distributions_are_accepted(seed, k, dtype):
    generator = torch.Generator().manual_seed(seed)
    p = 1e-3 * torch.randn(64, 12, dtype=torch.float64, generator=generator)
    values, ids = p.log_softmax(-1).topk(k)
    values = values.to(dtype)
    if float(values.double().exp().sum(-1).max()) <= 1:  # a larger sum is refused in any case
        assert bool(topk_token_kl(values, ids, p.float()).missing_mass.isfinite().all())
