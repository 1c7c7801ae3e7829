"""KL of affine images of distributions on an interval, whose support is the image of that interval."""

from math import log

import numpy as np
import numpyro.distributions as numpyro
import pytest
import torch
from numpyro.distributions import transforms as numpyro_transforms
from scipy import stats
from torch import distributions as d

from kullback.measure import measure


def torch_image(base, loc, scale):
    return d.TransformedDistribution(base, [d.AffineTransform(loc, scale)])


def numpyro_image(base, loc, scale):
    return numpyro.TransformedDistribution(base, numpyro_transforms.AffineTransform(loc, scale))


EXPONENTIAL = d.Exponential(torch.tensor(1.0))
UNIFORM = d.Uniform(torch.tensor(0.0), torch.tensor(1.0))
NUMPYRO = numpyro.Exponential(1.0)
CASES = [
    (torch_image(EXPONENTIAL, 0.0, 2.0), EXPONENTIAL, 1 - log(2)),
    (EXPONENTIAL, torch_image(EXPONENTIAL, 0.0, 0.5), 1 - log(2)),
    (torch_image(EXPONENTIAL, 1.0, 1.0), torch_image(EXPONENTIAL, 0.0, 2.0), log(2)),
    (torch_image(EXPONENTIAL, 1.0, -1.0), torch_image(EXPONENTIAL, 1.0, -0.5), 1 - log(2)),
    (torch_image(torch_image(EXPONENTIAL, 0.0, -1.0), 0.0, -2.0), EXPONENTIAL, 1 - log(2)),
    (torch_image(UNIFORM, 1.0, 2.0), d.Uniform(torch.tensor(0.0), torch.tensor(4.0)), log(2)),
    (torch_image(EXPONENTIAL, -1.0, 1.0), EXPONENTIAL, np.inf),
    (numpyro_image(NUMPYRO, 0.0, 2.0), NUMPYRO, 1 - log(2)),
    (numpyro_image(NUMPYRO, 1.0, -1.0), numpyro_image(NUMPYRO, 1.0, -2.0), log(2) - 0.5),
    (numpyro_image(NUMPYRO, -1.0, 1.0), NUMPYRO, np.inf),
    (stats.expon(loc=1.0, scale=1.0), stats.expon(loc=1.0, scale=0.5), 1 - log(2)),
    (stats.expon(loc=1.0, scale=1.0), stats.expon(loc=0.0, scale=2.0), log(2)),
]


@pytest.mark.parametrize(("p", "q", "truth"), CASES)
def test_affine_images(p, q, truth):
    estimate = measure(p, q)
    assert estimate.value == pytest.approx(truth, rel=1e-9)
    assert estimate.status in ("exact", "bounded")


def test_normal_inverse_gamma_of_scipy():
    p, q = (stats.normal_inverse_gamma(loc, 1.0, 1.5, 1.0) for loc in (0.0, 1.0))
    estimate = measure(p, q)
    # E (loc1 - loc2)^2/(2 s2) with E 1/s2 = 1.5
    assert estimate.interval[0] <= 0.75 <= estimate.interval[1]
    assert estimate.value == pytest.approx(0.75, abs=0.05)
    other = measure(p, stats.normal_inverse_gamma(0.0, 1.0, 1.5, 2.0))
    truth = 1.5 * (1 - log(2))  # KL of the two inverse gamma distributions
    assert other.value == pytest.approx(truth, abs=0.05)
