"""Each quantity of a fit has one name: KL, cross-entropy, evidence bound or alpha-divergence."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse, measure
from kullback.fit import Fit

QUANTITIES = ("kl", "cross_entropy", "evidence_bound", "alpha_divergence")


def known(fit: Fit) -> set[tuple[str, ...]]:
    """The quantities that are not nan, of each step and of each minimum."""
    items = [*fit.path, *fit.minima]
    assert items
    return {tuple(name for name in QUANTITIES if not math.isnan(getattr(item, name))) for item in items}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (f.Normal, {}),
        (f.Normal, {"start": f.Normal(loc=0.0, scale=1.0)}),
        (f.StudentT, {}),
        (f.NormalMixture, {"components": 2}),
        (f.Laplace, {}),
    ],
)
def test_a_fit_to_samples_has_a_cross_entropy(family, options):
    x = np.random.default_rng(0).standard_t(4, size=300)
    fit = fit_forward(family, samples=x, **options)
    assert known(fit) == {("cross_entropy",)}
    assert math.isnan(fit.kl)
    assert fit.cross_entropy == fit.diagnostics["cross_entropy"]
    assert fit.minima[0].cross_entropy == pytest.approx(fit.cross_entropy, rel=1e-12)
    scipy = {f.Normal: stats.norm, f.Laplace: stats.laplace}.get(family)
    if scipy is not None:
        law = scipy(fit.distribution.loc, fit.distribution.scale)
        assert fit.cross_entropy == pytest.approx(-law.logpdf(x).mean(), rel=1e-12)


def test_vectors_mixtures_and_modules_fitted_to_samples():
    x = np.random.default_rng(0).normal(size=(200, 2))
    for family, options in ((f.MultivariateNormal, {}), (f.Independent, {})):
        assert known(fit_forward(family, samples=x, **options)) == {("cross_entropy",)}
    mixture = torch.distributions.MixtureSameFamily
    fit = fit_forward(mixture, samples=x, components=2)
    assert known(fit) == {("cross_entropy",)}
    density = fit.distribution.log_prob(torch.as_tensor(x))
    assert fit.cross_entropy == pytest.approx(-float(density.mean()), rel=1e-9)

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(2))

        def forward(self):
            return torch.distributions.Independent(torch.distributions.Normal(self.loc, torch.ones(2)), 1)

    assert known(fit_forward(Shift(), samples=x, steps=5)) == {("cross_entropy",)}
    unnormalised = fit_reverse(Shift(), log_prob=lambda x: -((x - 1) ** 2).sum(-1), steps=5)
    assert known(unnormalised) == {("evidence_bound",)}
    assert math.isnan(unnormalised.kl)
    assert unnormalised.evidence_bound < math.log(math.pi)


def test_a_fit_to_a_target_has_a_kl():
    target = f.Gamma(concentration=3.0, rate=1.0)
    for fit in (
        fit_forward(f.LogNormal, target=target),
        fit_forward(f.Weibull, target=target, start=f.Weibull(scale=1.0, concentration=1.0)),
        fit_reverse(f.LogNormal, target=target),
        fit_reverse(f.Normal, log_prob=lambda z: -(z**2) / 2),
    ):
        assert known(fit) == {("kl",)}
        assert fit.minima[0].kl == pytest.approx(fit.kl, abs=1e-10)
        assert math.isnan(fit.cross_entropy)


def test_the_alpha_divergence_has_its_own_name():
    target = f.NormalMixture(weights=[0.7, 0.3], locs=[0.0, 4.0], scales=[1.0, 1.0])
    half = fit_alpha(f.Normal, target=target, alpha=0.5)
    assert known(half) == {("alpha_divergence",)}
    x = np.linspace(-30, 30, 200_001)
    p = 0.7 * stats.norm(0, 1).pdf(x) + 0.3 * stats.norm(4, 1).pdf(x)
    q = stats.norm(half.distribution.loc, half.distribution.scale).pdf(x)
    assert half.alpha_divergence == pytest.approx(4 * (1 - np.trapezoid(np.sqrt(p * q), x)), abs=1e-9)
    assert math.isnan(half.kl)
    for alpha, pair in ((1.0, lambda q: (target, q)), (0.0, lambda q: (q, target))):
        fit = fit_alpha(f.Normal, target=target, alpha=alpha)
        assert known(fit) == {("kl", "alpha_divergence")}
        assert fit.kl == pytest.approx(measure(*pair(fit.distribution)).value, abs=1e-9)
