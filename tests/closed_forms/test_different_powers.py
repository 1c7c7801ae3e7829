"""KL between powers of gamma variables whose exponents differ by a large factor, against mpmath with 50 digits."""

import mpmath
import numpy as np
import pytest
import torch

from kullback import kl
from kullback.families import Gamma, Maxwell, Weibull


def exact(p, q) -> float:
    """For x = a G^(1/c), where G is distributed as Gamma(k, 1), with (k, a, c) of p and of q."""
    with mpmath.workdps(50):
        (k1, a1, c1), (k2, a2, c2) = (tuple(map(mpmath.mpf, side)) for side in (p, q))
        t, log_scales = c2 / c1, c2 * mpmath.log(a1 / a2)
        mean = mpmath.exp(log_scales + mpmath.loggamma(k1 + t) - mpmath.loggamma(k1))
        mean_log = log_scales + t * mpmath.digamma(k1)
        entropy = mpmath.log(t) + mpmath.loggamma(k1) - k1 * mpmath.digamma(k1) + k1
        return float(mpmath.loggamma(k2) - k2 * mean_log + mean - entropy)


PAIRS = [
    (Weibull(scale=1.0, concentration=1e6), Gamma(concentration=1e12, rate=1e12), (1, 1, 1e6), (1e12, 1e-12, 1), 1e-8),
    (Weibull(scale=1.0, concentration=1e3), Gamma(concentration=1e6, rate=1e6), (1, 1, 1e3), (1e6, 1e-6, 1), 1e-11),
    (Weibull(scale=2.0, concentration=11.0), Gamma(concentration=3.0, rate=2.0), (1, 2, 11), (3, 0.5, 1), 1e-14),
    (Weibull(scale=2.0, concentration=0.05), Gamma(concentration=0.3, rate=2.0), (1, 2, 0.05), (0.3, 0.5, 1), 1e-13),
    (Gamma(concentration=1e6, rate=1e6), Weibull(scale=1.0, concentration=1e3), (1e6, 1e-6, 1), (1, 1, 1e3), 1e-11),
    (Gamma(concentration=0.6, rate=1.0), Weibull(scale=1.0, concentration=30.0), (0.6, 1, 1), (1, 1, 30), 1e-12),
    (Weibull(scale=1.0, concentration=40.0), Maxwell(scale=1.0), (1, 1, 40), (1.5, 2**0.5, 2), 1e-14),
]


@pytest.mark.parametrize(("p", "q", "of_p", "of_q", "tolerance"), PAIRS)
def test_very_different_powers(p, q, of_p, of_q, tolerance):
    assert float(kl(p, q)) == pytest.approx(exact(of_p, of_q), rel=tolerance)


@pytest.mark.parametrize("power", [0.05, 0.5, 0.99, 1.0, 1.01, 2.0, 9.9, 10.1, 200.0])
def test_the_formulas_agree_where_one_replaces_the_other(power):
    """Values and gradients by the concentration, in a batch that has both kinds."""
    powers = torch.tensor([power, 1.5, 50.0], dtype=torch.float64, requires_grad=True)
    values = kl(Weibull(scale=2.0, concentration=powers), Gamma(concentration=3.0, rate=2.0))
    expected = [exact((1, 2, float(c)), (3, 0.5, 1)) for c in powers.detach()]
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-12)
    (gradient,) = torch.autograd.grad(values.sum(), powers)
    step = 1e-6 * power
    difference = (exact((1, 2, power + step), (3, 0.5, 1)) - exact((1, 2, power - step), (3, 0.5, 1))) / (2 * step)
    assert float(gradient[0]) == pytest.approx(difference, rel=1e-5, abs=1e-6)
