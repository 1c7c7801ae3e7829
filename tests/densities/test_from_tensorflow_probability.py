"""TensorFlow Probability on JAX: its classes as families; skipped where it cannot be imported."""

import math

import numpy as np
import pytest
from jax import numpy as jnp

from kullback import families as f
from kullback.densities.resolve import as_family
from kullback.distributions import kl
from kullback.errors import NoClosedFormError

try:
    import tensorflow_probability.substrates.jax as tfp
except Exception as error:  # its last release uses removed parts of JAX
    pytest.skip(f"TensorFlow Probability on JAX does not import: {error!r}", allow_module_level=True)

d, b = tfp.distributions, tfp.bijectors
SCALAR = {
    "Bernoulli": {"logits": 0.7},
    "Beta": {"concentration1": 2.0, "concentration0": 2.5},
    "Gamma": {"concentration": 2.5, "rate": 0.7},
    "Exponential": {"rate": 0.7},
    "InverseGamma": {"concentration": 2.5, "scale": 0.7},
    "Laplace": {"loc": 0.3, "scale": 0.7},
    "LogNormal": {"loc": 0.3, "scale": 0.7},
    "Normal": {"loc": 0.3, "scale": 0.7},
    "Pareto": {"concentration": 2.5, "scale": 0.7},
    "Poisson": {"rate": 0.7},
    "Weibull": {"concentration": 2.5, "scale": 0.7},
}


@pytest.mark.parametrize("name", SCALAR)
def test_kl_matches_the_mean_log_ratio_of_samples(name):
    p = getattr(d, name)(**SCALAR[name])
    q = getattr(d, name)(
        **{key: value if name == "Pareto" and key == "scale" else 1.2 for key, value in SCALAR[name].items()}
    )
    x = p.sample(20000, seed=np.asarray([0, 1], np.uint32))
    ratios = np.asarray(p.log_prob(x) - q.log_prob(x), float)
    assert float(kl(p, q)) == pytest.approx(ratios.mean(), abs=5 * ratios.std() / math.sqrt(ratios.size))


def test_composite_distributions():
    p, q = (d.Normal(jnp.full(3, loc), 1.0) for loc in (0.0, 1.0))
    assert float(kl(d.Independent(p, 1), d.Independent(q, 1))) == pytest.approx(1.5)
    assert kl(*(d.TransformedDistribution(base, b.Tanh()) for base in (p, q))).tolist() == [0.5] * 3
    with pytest.raises(NoClosedFormError, match="measure"):
        as_family(d.TransformedDistribution(p, b.AbsoluteValue()))


def test_records_hold_the_given_parameters():
    assert isinstance(as_family(d.Categorical(logits=jnp.zeros(2))), f.Categorical)
    with pytest.raises(NoClosedFormError, match="log_rate"):
        as_family(d.Gamma(2.0, log_rate=1.0))
