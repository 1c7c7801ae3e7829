"""Options of fits: fixed parameters, and options that do not exist or that a family does not use."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse, fit_tempered
from kullback.errors import DistributionTypeError, KullbackError, ParameterError, SupportError

TARGET = f.Normal(loc=1.0, scale=2.0)
ALL = {"loc": 0.0, "scale": 1.0}
X = np.random.default_rng(0).normal(size=50)


def test_all_parameters_fixed_give_the_member_with_its_kl():
    forward, reverse = fit_forward(f.Normal, target=TARGET, fixed=ALL), fit_reverse(f.Normal, target=TARGET, fixed=ALL)
    # KL(N(1, 2) || N(0, 1)) = (4 + 1 - 1)/2 - log 2 and KL(N(0, 1) || N(1, 2)) = (1 + 1)/8 - 1/2 + log 2
    assert forward.kl == pytest.approx(2 - math.log(2), rel=1e-14)
    assert reverse.kl == pytest.approx(math.log(2) - 0.25, rel=1e-14)
    for fit in (forward, reverse):
        assert (fit.distribution.loc, fit.distribution.scale) == (0.0, 1.0)
        assert (fit.converged, fit.minima[0].kl, fit.path[0].kl) == (True, fit.kl, fit.kl)
    unnormalised = fit_reverse(f.Normal, log_prob=lambda z: 7 - (z - 1) ** 2 / 8, fixed=ALL)
    assert unnormalised.kl == pytest.approx(math.log(2) - 0.25, rel=1e-9)
    assert unnormalised.diagnostics["log_evidence"] == pytest.approx(7 + math.log(2 * math.sqrt(2 * math.pi)))
    tempered = fit_tempered(f.Normal, target=TARGET, fixed=ALL)
    assert tempered[-1].kl == pytest.approx(math.log(2) - 0.25, rel=1e-9)


def test_all_parameters_fixed_give_the_cross_entropy_of_samples():
    fit = fit_forward(f.Normal, samples=X, fixed=ALL)
    assert fit.cross_entropy == pytest.approx(-stats.norm.logpdf(X).mean(), rel=1e-12)
    assert math.isnan(fit.kl)
    weights = np.arange(50.0)
    fit = fit_forward(f.Poisson, samples=np.arange(50), weights=weights, fixed={"rate": 20.0})
    expected = -stats.poisson(20.0).logpmf(np.arange(50)) @ weights / weights.sum()
    assert fit.cross_entropy == pytest.approx(expected, rel=1e-12)
    with pytest.raises(SupportError, match=r"samples\[1\] is -1\.0"):
        fit_forward(f.Exponential, samples=[1.0, -1.0], fixed={"rate": 1.0})


@pytest.mark.parametrize(
    ("family", "target", "fixed", "kl"),
    [
        (f.Poisson, f.Poisson(rate=3.0), {"rate": 2.0}, 3 * math.log(1.5) - 1),
        (f.Bernoulli, f.Bernoulli(probs=0.5), {"logits": 0.0}, 0.0),
        (f.Binomial, f.Binomial(total_count=3, probs=0.5), {"total_count": 3, "probs": 0.5}, 0.0),
        (f.Uniform, f.Uniform(low=0.0, high=1.0), {"low": 0.0, "high": 2.0}, math.log(2)),
        (f.Uniform, f.Uniform(low=0.0, high=1.0), {"low": 0.0, "high": 0.5}, math.inf),
    ],
)
def test_all_parameters_fixed_of_further_families(family, target, fixed, kl):
    assert fit_forward(family, target=target, fixed=fixed).kl == pytest.approx(kl, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"scale": -1.0}, "> 0 and finite, got -1.0"),
        ({"scale": math.nan}, "> 0 and finite, got nan"),
        ({"scale": "wide"}, "to be numeric, got 'wide'"),
        ({"loc": None}, "finite, got None|numeric, got None"),
        ({"width": 1.0}, "parameters of Normal"),
        (["scale"], "a dictionary"),
    ],
)
@pytest.mark.parametrize("fit", [fit_forward, fit_reverse])
def test_invalid_fixed_parameters(fit, fixed, message):
    with pytest.raises(ParameterError, match=message):
        fit(f.Normal, target=TARGET, fixed=fixed)


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: fit_forward(f.Normal, target=TARGET, componets=2), "components"),
        (lambda: fit_forward(f.Normal, samples=X, weight=X), "weights"),
        (lambda: fit_reverse(f.Normal, target=TARGET, suport=(0, 1)), "support"),
        (lambda: fit_tempered(f.Normal, target=TARGET, fixd={}), "fixed"),
    ],
)
def test_an_unknown_option_names_the_nearest(call, nearest):
    with pytest.raises(TypeError, match=f"did you mean '{nearest}'"):
        call()


class Shift(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(3))

    def forward(self):
        return torch.distributions.Independent(torch.distributions.Normal(self.loc, torch.ones(3)), 1)


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda: fit_forward(f.Normal, target=TARGET, components=2), "components"),
        (lambda: fit_reverse(f.Gumbel, target=TARGET, components=2), "components"),
        (lambda: fit_alpha(f.Normal, target=TARGET, alpha=0.5, components=2), "components"),
        (lambda: fit_forward(f.Normal, target=TARGET, steps=10), "steps"),
        (lambda: fit_forward(f.Normal, samples=X, seed=1), "seed"),
        (lambda: fit_reverse(f.Normal, target=TARGET, draws=10), "draws"),
        (lambda: fit_reverse(f.Normal, target=TARGET, support=(0.0, 1.0)), "support"),
        (lambda: fit_forward(Shift(), samples=np.zeros((4, 3)), fixed={"loc": 0}), "fixed"),
        (lambda: fit_reverse(Shift(), log_prob=lambda x: -(x**2).sum(-1), start=TARGET), "start"),
    ],
)
def test_an_option_that_is_not_used_is_refused(call, option):
    with pytest.raises(ParameterError, match=f"expected no {option} for"):
        call()


class Returning(Shift):
    def forward(self):
        return self.loc


@pytest.mark.parametrize(
    "call",
    [
        lambda module: fit_forward(module, samples=np.zeros((4, 3))),
        lambda module: fit_reverse(module, log_prob=lambda x: -(x**2).sum(-1)),
    ],
)
@pytest.mark.parametrize("module", [torch.nn.Linear(3, 3), Returning()], ids=["takes an argument", "returns a tensor"])
def test_a_module_without_a_distribution_is_refused(call, module):
    with pytest.raises(DistributionTypeError, match="one that returns a distribution when it is called without arg"):
        call(module)


@pytest.mark.parametrize("components", [0, -1, 2.5, "2", True])
def test_numbers_of_components(components):
    with pytest.raises(ParameterError, match="a whole number, 1 or more"):
        fit_forward(f.NormalMixture, target=TARGET, components=components)
    with pytest.raises(ParameterError, match="a whole number, 1 or more"):
        fit_forward(f.NormalMixture, samples=X, components=components)


def test_more_components_than_samples():
    with pytest.raises(SupportError, match="as many samples as components, got 50 samples"):
        fit_forward(f.NormalMixture, samples=X, components=100)


def test_an_alpha_fit_needs_a_free_parameter():
    with pytest.raises(ParameterError, match="that is not fixed"):
        fit_alpha(f.Normal, target=TARGET, alpha=0.5, fixed=ALL)


@pytest.mark.slow
def test_tempered_fits_in_three_dimensions():
    target = f.MultivariateNormal(loc=[1.0, -1.0, 0.5], covariance_matrix=np.diag([1.0, 2.0, 0.5]))
    start = f.MultivariateNormal(loc=np.zeros(3), covariance_matrix=np.eye(3))
    family = f.MultivariateNormal
    options = {"exponents": [0.5, 1.0], "start": start, "steps": 1500}
    path = fit_tempered(family, target=target, **options)
    for fit, exponent in zip(path, (0.5, 1.0), strict=True):  # the power of a normal has its covariance divided by t
        assert fit.distribution.loc == pytest.approx([1.0, -1.0, 0.5], abs=0.02)
        assert np.diag(fit.distribution.covariance_matrix) == pytest.approx(
            np.asarray([1.0, 2.0, 0.5]) / exponent, rel=0.03
        )
    with pytest.raises(KullbackError, match="start="):
        fit_tempered(family, target=target)
