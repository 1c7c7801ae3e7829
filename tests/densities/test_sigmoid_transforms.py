"""KL to distributions under a sigmoid, whose libraries round values away from 0 and 1, against mpmath."""

from typing import Any

import mpmath
import pytest
import torch
from torch import distributions as d

from kullback import families as f
from kullback import measure


def logit_normal(x: Any, scale: float) -> Any:
    """The log-density of sigmoid(Normal(0, scale))."""
    z = mpmath.log(x / (1 - x)) / scale
    return -(z**2) / 2 - mpmath.log(scale * mpmath.sqrt(2 * mpmath.pi)) - mpmath.log(x * (1 - x))


def relaxed_bernoulli(x: Any, temperature: float, logits: float) -> Any:
    """The log-density of sigmoid(Logistic(logits / temperature, 1 / temperature))."""
    z = temperature * mpmath.log(x / (1 - x)) - logits
    return mpmath.log(temperature) - z - 2 * mpmath.log(1 + mpmath.exp(-z)) - mpmath.log(x * (1 - x))


def kl_of_beta(a: float, b: float, log_q: Any) -> float:
    def integrand(x: Any) -> Any:
        log_p = (a - 1) * mpmath.log(x) + (b - 1) * mpmath.log(1 - x) - mpmath.log(mpmath.beta(a, b))
        return mpmath.exp(log_p) * (log_p - log_q(x))

    with mpmath.workdps(30):
        return float(mpmath.quad(integrand, [0, 0.01, 0.5, 0.99, 1]))


def by_numpyro(scale: float) -> Any:
    numpyro = pytest.importorskip("numpyro.distributions", reason="NumPyro is not installed")
    return numpyro.TransformedDistribution(numpyro.Normal(0.0, scale), numpyro.transforms.SigmoidTransform())


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (2.0, 3.0), (0.7, 4.0)])
def test_a_density_on_the_unit_interval_has_a_finite_kl(a: float, b: float) -> None:
    p = f.Beta(concentration1=a, concentration0=b)
    temperature, logits = (torch.tensor(value, dtype=torch.float64) for value in (0.7, -1.0))
    relaxed = d.RelaxedBernoulli(temperature, logits=logits)
    expected = kl_of_beta(a, b, lambda x: relaxed_bernoulli(x, 0.7, -1.0))
    assert measure(p, relaxed).value == pytest.approx(expected, rel=1e-6)
    expected = kl_of_beta(a, b, lambda x: logit_normal(x, 2.0))
    by_torch = d.TransformedDistribution(d.Normal(0.0, 2.0), [d.SigmoidTransform()])
    for q in (by_torch, by_numpyro(2.0)):
        assert measure(p, q).value == pytest.approx(expected, rel=1e-8)


def test_the_inverse_of_the_sigmoid_reaches_every_number() -> None:
    q = d.TransformedDistribution(d.Uniform(0.0, 1.0), [d.SigmoidTransform().inv])
    p = f.Normal(loc=0.0, scale=2.0)
    expected = measure(p, f.Logistic(loc=0.0, scale=1.0)).value
    assert measure(p, q).value == pytest.approx(expected, rel=1e-12)


def test_an_open_interval_is_still_left_by_a_wider_density() -> None:
    q = d.TransformedDistribution(d.Normal(0.0, 2.0), [d.SigmoidTransform()])
    assert measure(d.Uniform(0.0, 1.1), q).value == float("inf")
