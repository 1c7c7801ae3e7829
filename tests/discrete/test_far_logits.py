"""KL of finite logits whose differences exceed the largest number of the dtype."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

from kullback.cli import main
from kullback.discrete.kl import kl_logits, kl_probs
from kullback.errors import NotNormalizedError
from kullback.tokens import token_kl

CASES = [
    ([0.0, 0.0], [1e308, -1e308]),
    ([0.0, -800.0], [1.7e308, -1.7e308]),  # p underflows
    ([1.7e308, 1.7e308], [-1.7e308, -1.7e308]),  # the tops differ by more than the largest number
    ([5.0, 0.0, -800.0], [1.7e308, 1.7e308, -1.7e308]),
    ([0.0, 0.5, 0.0], [1e308, -1.7e308, 3.0]),
    ([0.0, 0.0], [1.79e308, -1.79e308]),
]


def exact_kl(p_logits, q_logits):
    """KL and its gradient with respect to the logits of p, in 700 digits."""
    with mpmath.workdps(700):
        sides = []
        for logits in (p_logits, q_logits):
            shifted = [mpmath.mpf(x) - mpmath.mpf(max(logits)) for x in logits]
            log_sum = mpmath.log(sum(map(mpmath.exp, shifted)))
            sides.append([x - log_sum for x in shifted])
        pairs = list(zip(*sides, strict=True))
        kl = sum(mpmath.exp(log_p) * (log_p - log_q) for log_p, log_q in pairs)
        return float(kl), [float(mpmath.exp(log_p) * (log_p - log_q - kl)) for log_p, log_q in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(("p_logits", "q_logits"), CASES)
def test_the_kl_is_computed_where_it_is_a_number_although_differences_of_logits_are_not(p_logits, q_logits):
    truth, gradient = exact_kl(p_logits, q_logits)
    p, q = np.array(p_logits), np.array(q_logits)
    rows = kl_logits(np.stack([p, np.zeros_like(p)]), np.stack([q, np.zeros_like(q)]))
    tracked = torch.tensor(p, requires_grad=True)
    value = kl_logits(tracked, torch.tensor(q))
    value.backward()
    found = [kl_logits(p_logits, q_logits), rows[0], value.item(), token_kl(torch.tensor(p), torch.tensor(q)).item()]
    with jax.enable_x64(True):
        found.append(float(kl_logits(jnp.array(p), jnp.array(q))))
        jax_gradient = jax.grad(lambda logits: kl_logits(logits, jnp.array(q)))(jnp.array(p))
    np.testing.assert_allclose(found, truth, rtol=1e-12)
    assert rows[1] == 0
    assert tracked.grad is not None
    for got in (tracked.grad.numpy(), jax_gradient):
        np.testing.assert_allclose(got, gradient, rtol=1e-9, atol=1e-30)


def test_the_kl_of_float32_logits_is_computed_where_it_is_a_float32():
    p, q = torch.zeros(2, requires_grad=True), torch.tensor([3e38, -3e38])
    assert kl_logits(p, q).item() == pytest.approx(3e38)
    assert float(kl_logits(jnp.zeros(2), jnp.array([3e38, -3e38]))) == pytest.approx(3e38)


def test_the_kl_is_infinite_where_it_overflows_or_an_event_is_impossible():
    rows = kl_logits([[1.7e308, -1.7e308], [0.0, 0.0], [0.0, 0.0]], [[-1.7e308, 1.7e308], [0.0, -math.inf], [0.0, 1.0]])
    assert rows[:2].tolist() == [math.inf, math.inf]
    assert rows[2] == pytest.approx(0.120114507)


@pytest.mark.filterwarnings("error")
def test_sums_and_differences_that_overflow_give_no_warnings(capsys):
    with pytest.raises(NotNormalizedError, match="sums to inf"):
        kl_probs([1e308, 1e308], [0.5, 0.5])
    assert main(["measure", "-1e308,1e308", "1,1", "--logits"]) == 0
    assert capsys.readouterr().err == ""
