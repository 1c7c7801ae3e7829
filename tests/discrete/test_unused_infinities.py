"""Gradients of losses that leave out infinite divergences: the other gradients are those of the finite values alone."""

from math import inf

import pytest
import torch
from array_api_compat import torch as torch_namespace
from torch import distributions as td

from kullback import cross_entropy, kl, kl_log_probs, kl_logits, kl_probs, token_kl, token_stats
from kullback.discrete.kl import _p_logits_gradient, _q_logits_gradient

LOGITS_P = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
LOGITS_Q = torch.tensor([[0.0, 0.5, 0.0], [0.0, -inf, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
ZERO = torch.tensor([0.2, 0.0, 0.7], dtype=torch.float64)
POSITIVE = torch.tensor([0.5, 0.5, 0.4], dtype=torch.float64)


def gradients(function, p, q, rows):
    """The gradients of the sum of the finite values, by the given rows of p and q."""
    p, q = (x[rows].clone().requires_grad_() for x in (p, q))
    values = function(p, q)
    total = torch.where(values.isfinite(), values, 0.0).sum()
    return values.detach(), torch.autograd.grad(total, (p, q))


@pytest.mark.parametrize(
    ("function", "p", "q"),
    [
        (token_kl, LOGITS_P, LOGITS_Q),
        (kl_logits, LOGITS_P, LOGITS_Q),
        (kl_log_probs, LOGITS_P.log_softmax(-1), LOGITS_Q.log_softmax(-1)),
        (kl_probs, LOGITS_P.softmax(-1), LOGITS_Q.softmax(-1)),
        (cross_entropy, LOGITS_P.softmax(-1), LOGITS_Q.softmax(-1)),
        (lambda p, q: token_stats(p, q).kl, LOGITS_P, LOGITS_Q),
        (lambda p, q: kl(td.Categorical(logits=p), td.Categorical(logits=q)), LOGITS_P, LOGITS_Q),
        (
            lambda p, q: kl(td.Categorical(probs=p), td.Categorical(probs=q)),
            LOGITS_P.softmax(-1),
            LOGITS_Q.softmax(-1),
        ),
        (lambda p, q: kl(td.Bernoulli(probs=p), td.Bernoulli(probs=q)), POSITIVE, ZERO),
        (lambda p, q: kl(td.Binomial(3, probs=p), td.Binomial(3, probs=q)), POSITIVE, ZERO),
        (lambda p, q: kl(td.Poisson(p), td.Poisson(q)), POSITIVE, ZERO),
        (lambda p, q: kl(td.Uniform(p - 1, p), td.Uniform(q - 2, q + 0.4)), POSITIVE, ZERO),
    ],
)
def test_values_that_the_loss_leaves_out_have_no_gradient(function, p, q):
    values, found = gradients(function, p, q, [0, 1, 2])
    assert values[1] == inf
    assert values[[0, 2]].isfinite().all()
    _, expected = gradients(function, p, q, [0, 2])
    for gradient, right in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient[[0, 2]], right)
        assert (gradient[1] == 0).all()


def test_the_gradient_of_logits_is_finite_without_a_mask_over_all_tokens():
    # On an accelerator no further pass over the tokens sets the gradients to 0.
    for pullback in (_p_logits_gradient, _q_logits_gradient):
        unused = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        kl_of_rows = kl_logits(LOGITS_P, LOGITS_Q)
        found = pullback(torch_namespace, unused, kl_of_rows, LOGITS_P.T.contiguous().T, LOGITS_Q)
        assert (found[1] == 0).all()
        assert found.isfinite().all()


def test_an_infinite_value_that_counts_has_no_gradient_of_zero():
    p, q = LOGITS_P[1].clone().requires_grad_(), LOGITS_Q[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_logits(p, q), p)
    assert not gradient.isfinite().all()
