"""Entropies against published formulas and SciPy."""

import math

import pytest
from scipy import integrate, stats

from kullback import families as f
from kullback.densities.entropy import entropy_of
from kullback.densities.from_families import as_density

CASES = {
    "normal": (f.Normal(loc=3.0, scale=2.0), 0.5 * math.log(2 * math.pi * math.e * 4)),
    "narrow": (f.Normal(loc=1e6, scale=1e-3), 0.5 * math.log(2 * math.pi * math.e * 1e-6)),
    "cauchy": (f.Cauchy(loc=-1.0, scale=3.0), math.log(12 * math.pi)),
    "gamma": (f.Gamma(concentration=0.3, rate=2.0), float(stats.gamma(0.3, scale=0.5).entropy())),
    "uniform": (f.Uniform(low=-1.0, high=4.0), math.log(5)),
    "student": (f.StudentT(df=3.0, loc=0.0, scale=1.0), float(stats.t(3).entropy())),
    "beta": (f.Beta(concentration1=0.5, concentration0=4.0), float(stats.beta(0.5, 4).entropy())),
    "half of the mass below 1e-31": (
        f.Beta(concentration1=0.01, concentration0=3.0),
        float(stats.beta(0.01, 3.0).entropy()),
    ),
    "poisson": (f.Poisson(rate=7.5), float(stats.poisson(7.5).entropy())),
    "geometric": (f.Geometric(probs=0.01), float(stats.geom(0.01).entropy())),
}


@pytest.mark.parametrize("name", CASES)
def test_entropies_match_published_formulas(name):
    record, exact = CASES[name]
    estimate = entropy_of(as_density(record))
    assert estimate.value == pytest.approx(exact, rel=1e-9, abs=1e-10)
    assert abs(estimate.value - exact) <= estimate.error + 1e-13 * abs(exact)
    assert estimate.status == "bounded"


def test_entropy_of_a_mixture():
    p = f.NormalMixture(weights=[0.4, 0.6], locs=[0.0, 5.0], scales=[1.0, 0.5])

    def term(x: float) -> float:
        density = 0.4 * stats.norm.pdf(x) + 0.6 * stats.norm.pdf(x, 5, 0.5)
        return -density * math.log(density)

    exact = sum(integrate.quad(term, a, b, epsabs=1e-13)[0] for a, b in ((-12, 0), (0, 4), (4, 6), (6, 14)))
    assert entropy_of(as_density(p)).value == pytest.approx(exact, abs=1e-10)
