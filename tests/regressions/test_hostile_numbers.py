"""Arguments far outside the usual range give the right number or one clear error."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from kullback import (
    divergence,
    fit_alpha,
    fit_forward,
    fit_reverse,
    kl,
    kl_logits,
    log_gamma_residual,
    measure,
    tilt,
    tilt_to_budget,
)
from kullback import families as f
from kullback.errors import KullbackError, SupportError

P, Q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
NORMAL = f.Normal(loc=0.0, scale=1.0)


@pytest.mark.parametrize("top", [1e8, 1e16, 1e308])
@pytest.mark.parametrize(
    "library", [np.asarray, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["numpy", "torch"]
)
def test_logits_with_a_large_common_shift(top, library):
    shifted = library([top, top, top - 3e292 if top > 1e300 else -math.inf])
    zero = library([0.0, 0.0, 0.0])
    assert float(kl_logits(shifted, zero)) == pytest.approx(math.log(1.5), rel=1e-14)
    spread = library([1e308, -1e308, 0.0])
    assert float(kl_logits(spread, zero)) == pytest.approx(math.log(3), rel=1e-14)
    assert float(kl_logits(zero + top, zero)) == 0


def test_the_residual_of_log_gamma_at_its_pole_is_infinite():
    np.testing.assert_allclose(log_gamma_residual([3.0, 3.0], [-3.0, 1e-10]), [math.inf, 1.974670334215447e-21])


def test_rewards_whose_difference_overflows_are_refused():
    for call in (lambda r: tilt_to_budget(P, r, 0.1), lambda r: tilt(P, r, 1.0)):
        with pytest.raises(SupportError, match="rewards whose differences"):
            call([-1e308, 0.0, 1e308])
    assert float(tilt_to_budget(P, [0.0, 0.0, 1e308], 0.1).kl) == pytest.approx(0.1, rel=1e-12)


def test_normals_of_different_libraries_have_a_closed_form():
    independent = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    estimate = measure(independent, torch.distributions.MultivariateNormal(torch.ones(2), torch.eye(2)))
    assert estimate.status == "exact"
    assert estimate.value == pytest.approx(1.0, rel=1e-6)


CALLS = [
    lambda: divergence(P, Q, "renyi"),
    lambda: divergence(P, Q, "renyi", order="x"),
    lambda: divergence(P, Q, "js", weight=1j),
    lambda: divergence(P, Q, lambda t: 1j * t),
    lambda: kl(NORMAL, torch.distributions.Normal),
    lambda: kl(stats.norm, NORMAL),
    lambda: fit_forward("normal", target=NORMAL),
    lambda: fit_forward(None, target=NORMAL),
    lambda: fit_forward(f.Normal, target=NORMAL, starts=3),
    lambda: fit_alpha(f.Normal, target=NORMAL, alpha="x"),
    lambda: fit_reverse(f.Normal, log_prob=lambda x: -x * x, support="x"),
    lambda: fit_reverse(f.Normal, log_prob=lambda x: -x * x, support=(1.0, 0.0)),
    lambda: fit_reverse(f.Normal, log_prob=lambda x: -x * x, support=(math.nan, 1.0)),
    lambda: fit_reverse(f.Normal, log_prob=lambda x: x.missing),
    lambda: fit_reverse(f.Normal, log_prob=lambda x: 1 / 0),
    lambda: measure(NORMAL, NORMAL, method="Monte Carlo", draws=10**30),
    lambda: measure(NORMAL, NORMAL, error=True),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_argument_is_one_clear_error(call):
    with pytest.raises(KullbackError) as caught:
        call()
    assert "expected" in str(caught.value) or "takes" in str(caught.value)
