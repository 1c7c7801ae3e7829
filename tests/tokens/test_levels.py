"""Logits of p and of q at very different levels, such as the logits 1e9 and 0 of a teacher that is certain."""

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from kullback.discrete.kl import kl_logits
from kullback.distributions import kl
from kullback.families import Categorical
from kullback.policy.distillation import distillation_loss
from kullback.tokens import linear_token_kl, token_kl, token_stats

PAIRS = [
    ([1e4, 0.0, 0.0], [0.3, 0.1, 0.7]),
    ([1e7, 0.0, 0.0], [0.3, 0.1, 0.7]),
    ([1e12, 0.0, 0.0], [0.3, 0.1, 0.7]),
    ([1e17, 0.0, 0.0], [0.3, 0.1, 0.7]),
    ([1e9, 0.0, 0.0, 1e9], [0.3, 0.1, 0.7, 0.0]),
    ([1e5 + 3, 1e5 + 1, 1e5], [3.3, 1.1, 0.2]),
    ([0.3, 0.1, 0.7], [1e5 + 3, 1e5 + 1, 1e5]),
    ([-1e9, -1e9, 0.0], [0.3, 0.1, 0.7]),
    ([3.0, 1.0, 0.0], [103.25, 101.0, 100.5]),
]


def log_softmax(logits):
    top = max(logits)
    return [z - top - mpmath.log(mpmath.fsum(mpmath.exp(other - top) for other in logits)) for z in logits]


def exact(a, b):
    """KL(p || q), the Jensen-Shannon divergence, and the derivative of the KL with respect to the logits of q."""
    with mpmath.workdps(60):
        log_p, log_q = (log_softmax([mpf(float(z)) for z in logits]) for logits in (a, b))
        p, q = ([mpmath.exp(x) for x in logs] for logs in (log_p, log_q))
        forward = mpmath.fsum(x * (u - v) for x, u, v in zip(p, log_p, log_q, strict=True))
        halves = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        js = mpmath.fsum(
            (x * mpmath.log(x / m) if x > 0 else 0) + (y * mpmath.log(y / m) if y > 0 else 0)
            for x, y, m in zip(p, q, halves, strict=True)
        )
        return float(forward), float(js / 2), np.asarray([float(y - x) for x, y in zip(p, q, strict=True)])


def through_heads(a: Tensor, b: Tensor, **arguments):
    """The statistics of logits that are hidden states, with heads that do not change them."""
    eye = torch.eye(len(a), dtype=a.dtype)
    return linear_token_kl(a[None], eye, b[None], eye, **arguments)


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_keep_their_digits(a, b, dtype):
    p, q = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
    forward, js, slopes = exact(p.tolist(), q.tolist())
    tolerance = 3e-6 if dtype == torch.float32 else 1e-14
    found = {
        "kl_logits": kl_logits(p.numpy(), q.numpy()),
        "Categorical": kl(Categorical(logits=p), Categorical(logits=q)),
        "token_kl": token_kl(p, q),
        "token_stats": token_stats(p, q).kl,
        "reverse": token_stats(q, p).reverse_kl,
        "linear_token_kl": through_heads(p, q).kl,
        "distillation_loss": distillation_loss(
            p[None, None], torch.eye(len(a), dtype=dtype), q[None, None], torch.eye(len(a), dtype=dtype)
        ).loss,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        dict.fromkeys(found, forward), rel=tolerance
    )
    assert float(token_stats(p, q).js) == pytest.approx(js, rel=tolerance)
    assert float(through_heads(p, q).js) == pytest.approx(js, rel=tolerance)
    q.requires_grad_()
    known = {"kl": torch.ones(1, dtype=dtype)}
    for value in (
        kl_logits(p, q),
        token_kl(p, q),
        token_stats(p, q).kl,
        through_heads(p, q).kl.sum(),
        through_heads(p, q, token_weights=known).kl.sum(),
    ):
        gradient = torch.autograd.grad(value, q)[0]
        np.testing.assert_allclose(gradient.numpy(), slopes, rtol=0, atol=tolerance / 10)


def test_rows_at_other_levels_do_not_change_the_rows_beside_them():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 50, generator=generator) for _ in "pq")
    shifted = p.clone()
    shifted[2] = 0.0
    shifted[2, 7] = 1e8
    for function in (token_kl, lambda a, b: token_stats(a, b).js):
        before, after = function(p, q), function(shifted, q)
        torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]], rtol=1e-6, atol=0)
    assert float(token_kl(shifted, q)[2]) == pytest.approx(float(-q[2].double().log_softmax(-1)[7]), rel=1e-6)
    assert shifted[2, 7] == 1e8  # the logits of the caller are not changed
