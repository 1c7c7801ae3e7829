"""Fits of multivariate normals and their mixtures against closed forms, univariate fits, grids and scikit-learn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import optimize, stats
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from kullback import families as f
from kullback import fit_forward, fit_reverse, measure
from kullback.errors import ParameterError, ShapeError, SupportError
from kullback.fit.gaussian.mixtures import MixtureParametrisation

FAR_MODES = json.loads((Path(__file__).parents[2] / "data" / "projections.json").read_text())["cases"][0]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(weights, locs, covariances):
    return td.MixtureSameFamily(
        td.Categorical(tensor(weights)), td.MultivariateNormal(tensor(locs), tensor(covariances))
    )


def product_with_normal(weights, locs, scales, loc, scale):
    """A univariate mixture times a normal: the reverse fit to the product is the product of the reverse fits."""
    k = len(locs)
    components = td.Normal(tensor([locs, [loc] * k]).T, tensor([scales, [scale] * k]).T)
    return td.MixtureSameFamily(td.Categorical(tensor(weights)), td.Independent(components, 1))


THREE_MODES = mixture(
    [0.5, 0.3, 0.2],
    [[0.0, 0.0], [4.0, 1.0], [1.0, 5.0]],
    [[[1.0, 0.5], [0.5, 2.0]], [[0.5, -0.2], [-0.2, 0.5]], [[1.0, 0.0], [0.0, 1.0]]],
)


def test_independent_normals_fitted_to_a_correlated_normal():
    """Mean field: the variances are the inverses of the diagonal of the precision matrix."""
    covariance = np.asarray([[4.0, 1.5], [1.5, 1.0]])
    target = f.MultivariateNormal(loc=[1.0, -2.0], covariance_matrix=covariance)
    fit = fit_reverse(f.Independent, target=target)
    precision = np.diag(np.linalg.inv(covariance))
    assert type(fit.distribution) is f.Independent
    assert fit.distribution.base.loc == pytest.approx([1.0, -2.0], abs=1e-9)
    assert fit.distribution.base.scale == pytest.approx(1 / np.sqrt(precision), rel=1e-9)
    exact = 0.5 * math.log(np.linalg.det(covariance) * precision.prod())
    assert fit.kl == pytest.approx(exact, abs=1e-12)
    assert abs(fit.kl - exact) <= fit.estimate.error < 1e-11
    forward = fit_forward(f.Independent, target=target)
    assert forward.distribution.base.scale == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-12)
    assert forward.kl == pytest.approx(0.5 * math.log(4.0 * 1.0 / np.linalg.det(covariance)), rel=1e-12)


@pytest.mark.parametrize("family", [f.Independent, f.MultivariateNormal])
def test_two_dimensional_minima_equal_the_univariate_minima(family):
    weights, locs, scales = ([float(part[name]) for part in FAR_MODES["target"]] for name in ("weight", "loc", "scale"))
    fit = fit_reverse(family, target=product_with_normal(weights, locs, scales, 3.0, 0.5))
    assert len(fit.minima) == len(FAR_MODES["reverse_stationary_points"]) == 3
    univariate = fit_reverse(f.Normal, target=f.NormalMixture(weights=weights, locs=locs, scales=scales))
    for expected in FAR_MODES["reverse_stationary_points"]:
        [found] = [one for one in fit.minima if abs(loc(one.distribution)[0] - expected["loc"]) < 1]
        assert found.kl == pytest.approx(expected["kl"], abs=1e-9)
        assert loc(found.distribution) == pytest.approx([expected["loc"], 3.0], abs=1e-6)
        assert scale(found.distribution) == pytest.approx([expected["scale"], 0.5], abs=1e-6)
        [exact] = [one.distribution for one in univariate.minima if abs(one.distribution.loc - expected["loc"]) < 1]
        assert loc(found.distribution) == pytest.approx([exact.loc, 3.0], abs=1e-8)
        assert scale(found.distribution) == pytest.approx([exact.scale, 0.5], abs=1e-8)


def loc(member):
    return np.asarray(member.base.loc if isinstance(member, f.Independent) else member.loc)


def scale(member):
    if isinstance(member, f.Independent):
        return np.asarray(member.base.scale)
    return np.sqrt(np.diag(member.covariance_matrix))


def test_two_dimensional_mixture_equals_the_univariate_mixture_for_a_product():
    weights, locs, scales = [0.5, 0.3, 0.2], [-4.0, 1.0, 5.0], [1.0, 0.7, 1.2]
    univariate = fit_reverse(
        f.NormalMixture, target=f.NormalMixture(weights=weights, locs=locs, scales=scales), components=2
    )
    parts = td.Independent(td.Normal(tensor([[-4.0, 3.0], [2.0, 3.0]]), tensor([[1.0, 0.5], [2.0, 0.5]])), 1)
    start = td.MixtureSameFamily(td.Categorical(tensor([0.5, 0.5])), parts)
    fit = fit_reverse(td.MixtureSameFamily, target=product_with_normal(weights, locs, scales, 3.0, 0.5), start=start)
    assert fit.kl == pytest.approx(univariate.kl, abs=1e-10)
    best = fit.distribution
    assert type(best) is td.MixtureSameFamily
    assert type(best.component_distribution) is td.Independent
    assert best.mixture_distribution.probs.numpy() == pytest.approx(
        np.asarray(univariate.distribution.weights), abs=1e-8
    )
    assert best.component_distribution.mean[:, 0].numpy() == pytest.approx(
        np.asarray(univariate.distribution.locs), abs=1e-7
    )
    assert best.component_distribution.mean[:, 1].numpy() == pytest.approx([3.0, 3.0], abs=1e-8)


def test_univariate_torch_mixtures_equal_normal_mixtures():
    target = f.NormalMixture(weights=[0.5, 0.3, 0.2], locs=[-4.0, 1.0, 5.0], scales=[1.0, 0.7, 1.2])
    expected = fit_reverse(f.NormalMixture, target=target, components=2)
    fit = fit_reverse(td.MixtureSameFamily, target=target, components=2)
    assert fit.kl == expected.kl
    assert fit.distribution.component_distribution.loc.numpy() == pytest.approx(np.asarray(expected.distribution.locs))
    samples = np.random.default_rng(0).normal(size=200)
    assert type(fit_forward(td.MixtureSameFamily, samples=samples, components=2).distribution) is td.MixtureSameFamily


@pytest.mark.slow
def test_two_components_have_a_minimum_for_each_pair_of_three():
    fit = fit_reverse(td.MixtureSameFamily, target=THREE_MODES, components=2)
    assert len(fit.minima) == 3
    assert [one.kl for one in fit.minima] == sorted(one.kl for one in fit.minima)
    # E_q[log q - log p] of SciPy's densities on a grid, which is larger at random neighbours of the fit.
    axis = np.linspace(-16, 20, 721)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    log_p = scipy_log_density(THREE_MODES, grid)

    def kl(mixture):
        log_q = scipy_log_density(mixture, grid)
        return float((np.exp(log_q) * (log_q - log_p)).sum() * (axis[1] - axis[0]) ** 2)

    best = fit.distribution
    assert kl(best) == pytest.approx(fit.kl, abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        neighbour = td.MixtureSameFamily(
            td.Categorical(logits=best.mixture_distribution.logits + 0.02 * torch.from_numpy(rng.normal(size=2))),
            td.MultivariateNormal(
                best.component_distribution.mean + 0.02 * torch.from_numpy(rng.normal(size=(2, 2))),
                best.component_distribution.covariance_matrix * math.exp(0.02 * rng.normal()),
            ),
        )
        assert kl(neighbour) > fit.kl


def scipy_log_density(mixture, x):
    parts = mixture.component_distribution
    logs = [
        math.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(x)
        for weight, mean, covariance in zip(
            mixture.mixture_distribution.probs.tolist(),
            parts.mean.numpy(),
            parts.covariance_matrix.numpy(),
            strict=True,
        )
    ]
    return np.logaddexp.reduce(logs)


def test_mixture_fitted_to_itself_in_both_directions():
    two = mixture([0.4, 0.6], [[0.0, 0.0], [3.0, 2.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.5, 0.0], [0.0, 1.0]]])
    for fit in (fit_reverse, fit_forward):
        found = fit(td.MixtureSameFamily, target=two, components=2)
        assert found.kl == pytest.approx(0, abs=1e-12)
        parts = found.distribution.component_distribution
        assert parts.mean.numpy() == pytest.approx(two.component_distribution.mean.numpy(), abs=1e-6)
        assert parts.covariance_matrix.numpy() == pytest.approx(
            two.component_distribution.covariance_matrix.numpy(), abs=1e-6
        )


def test_likelihood_of_a_mixture_equals_scikit_learn():
    x = load_iris().data
    fit = fit_forward(td.MixtureSameFamily, samples=x, components=2)
    reference = GaussianMixture(2, tol=1e-12, max_iter=10_000, n_init=5, random_state=0, reg_covar=0).fit(x)
    assert fit.converged
    assert fit.diagnostics["cross_entropy"] <= -reference.score(x) + 1e-9
    order = np.argsort(reference.means_[:, 0])
    assert fit.distribution.mixture_distribution.probs.numpy() == pytest.approx(reference.weights_[order], abs=1e-5)
    assert fit.distribution.component_distribution.mean.numpy() == pytest.approx(reference.means_[order], abs=1e-4)
    assert math.isnan(fit.kl)


def test_integer_weights_equal_repeated_samples():
    x = load_iris().data[:, :2]
    weights = np.where(np.arange(150) < 50, 2.0, 1.0)
    twice = np.concatenate([x, x[:50]])
    for family in (td.MixtureSameFamily, td.Independent, f.MultivariateNormal):
        settings = {"components": 2} if family is td.MixtureSameFamily else {}
        weighted = fit_forward(family, samples=x, weights=weights, **settings)
        repeated = fit_forward(family, samples=twice, **settings)
        assert weighted.diagnostics["cross_entropy"] == pytest.approx(repeated.diagnostics["cross_entropy"], abs=1e-10)


@pytest.mark.slow
def test_independent_normals_by_stochastic_gradients():
    root = np.random.default_rng(0).normal(size=(4, 4))
    covariance = root @ root.T + np.eye(4)
    target = f.MultivariateNormal(loc=np.arange(4.0), covariance_matrix=covariance)
    fit = fit_reverse(td.Independent, target=target, steps=1500)
    assert type(fit.distribution) is td.Independent
    assert fit.distribution.mean.numpy() == pytest.approx(np.arange(4.0), abs=0.05)
    exact = np.diag(np.linalg.inv(covariance)) ** -0.5
    assert fit.distribution.stddev.numpy() == pytest.approx(exact, rel=0.03)


@pytest.mark.slow
def test_mixtures_by_stochastic_gradients_find_the_minimum_of_each_start():
    """For a target of three distant normals, a mixture of two fits two of them: KL is -log of their weights."""
    weights, locs = [0.5, 0.3, 0.2], 12.0 * np.eye(3)
    target = mixture(weights, locs.tolist(), [np.diag([1.0, 0.5, 0.25]).tolist()] * 3)

    def start(*which):
        return mixture([0.5, 0.5], locs[list(which)].tolist(), [np.eye(3).tolist()] * 2)

    fit = fit_reverse(
        td.MixtureSameFamily, target=target, start=start(1, 2), starts=[start(0, 1), start(1, 0)], steps=600
    )
    assert [len(one.basin) for one in fit.minima] == [2, 1]
    for one, fitted in zip(fit.minima, ([0.5, 0.3], [0.3, 0.2]), strict=True):
        assert one.kl == pytest.approx(-math.log(sum(fitted)), abs=1e-3)
        assert sorted(one.distribution.mixture_distribution.probs.tolist(), reverse=True) == pytest.approx(
            [fitted[0] / sum(fitted), fitted[1] / sum(fitted)], abs=1e-3
        )
    assert fit.path[0].distribution.mixture_distribution.probs.tolist() == [0.5, 0.5]
    found = fit_reverse(td.MixtureSameFamily, target=target, components=3, steps=500)
    assert found.kl == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("count", "size", "independent"), [(1, 2, False), (2, 2, True), (3, 3, False)])
def test_expansion_equals_finite_differences(count, size, independent):
    parametrisation = MixtureParametrisation(count, size, independent)
    entries = size if independent else size * (size + 1) // 2
    rng = np.random.default_rng(0)
    vector = 0.5 * rng.normal(size=count - 1 + count * (size + entries))
    x, weight = rng.normal(size=(40, size)), rng.dirichlet(np.ones(40))

    def cross_entropy(vector):
        return -float(weight @ parametrisation.log_density(vector, x))

    gradient, hessian, _ = parametrisation.expansion(vector, x, -weight, weight)
    assert gradient == pytest.approx(optimize.approx_fprime(vector, cross_entropy, 1e-7), abs=1e-5)
    for i, step in enumerate(1e-5 * np.eye(vector.size)):
        ahead, behind = (parametrisation.expansion(vector + sign * step, x, -weight, weight)[0] for sign in (1, -1))
        assert hessian[i] == pytest.approx((ahead - behind) / 2e-5, abs=1e-7)


def test_funnel_without_a_computable_integral():
    """Neal's funnel: the fitted normal has variances 18/11 and exp(-9/11) in closed form."""
    fit = fit_reverse(
        f.MultivariateNormal,
        log_prob=lambda x: -(x[:, 0] ** 2) / 18 - x[:, 0] / 2 - x[:, 1] ** 2 * np.exp(-x[:, 0]) / 2,
        start=f.MultivariateNormal(loc=[1.0, 0.0], covariance_matrix=np.eye(2)),
    )
    first, second = 18 / 11, math.exp(-9 / 11)
    np.testing.assert_allclose(fit.distribution.covariance_matrix, np.diag([first, second]), atol=1e-8)
    bound = -first / 18 - 0.5 + 0.5 * math.log(first * second) + 1 + math.log(2 * math.pi)
    assert fit.diagnostics["evidence_bound"] == pytest.approx(bound, abs=1e-9)
    assert math.isnan(fit.kl)
    assert math.isnan(fit.diagnostics["log_evidence"])
    assert fit.estimate.status == "unreliable"
    assert math.isnan(fit.path[-1].kl)
    assert fit.path[-1].evidence_bound == pytest.approx(bound, abs=1e-9)


@pytest.mark.slow
def test_integral_of_the_rosenbrock_density():
    fit = fit_reverse(
        f.MultivariateNormal,
        log_prob=lambda x: -((1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2) / 2,
        start=f.MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2)),
    )
    exact = math.log(2 * math.pi / 10)
    assert abs(fit.diagnostics["log_evidence"] - exact) <= fit.estimate.error < 1e-9
    assert fit.kl == pytest.approx(exact - fit.diagnostics["evidence_bound"], abs=1e-12)


def test_multivariate_scipy_distribution_as_target():
    covariance = [[2.0, 0.3], [0.3, 1.0]]
    fit = fit_reverse(f.MultivariateNormal, target=stats.multivariate_normal([0.0, 1.0], covariance))
    assert fit.distribution.loc == pytest.approx([0.0, 1.0], abs=1e-8)
    np.testing.assert_allclose(fit.distribution.covariance_matrix, covariance, atol=1e-8)


def test_bounded_support_has_a_forward_fit_and_no_reverse_fit():
    box = td.Independent(td.Uniform(torch.zeros(2).double(), torch.ones(2).double()), 1)
    with pytest.raises(SupportError, match="it is inf at each"):
        fit_reverse(f.Independent, target=box)
    assert fit_forward(f.Independent, target=box).kl == pytest.approx(math.log(2 * math.pi * math.e / 12), abs=1e-3)
    assert measure(td.MultivariateNormal(torch.zeros(2), torch.eye(2)), box).value == math.inf


def test_errors_of_invalid_arguments():
    with pytest.raises(ParameterError, match="expected one number of components of the mixture"):
        fit_reverse(td.MixtureSameFamily, target=THREE_MODES)
    with pytest.raises(
        ParameterError, match=r"1 or more, got \[3, 4\]: pass components=, or starts with an equal number"
    ):
        fit_reverse(td.MixtureSameFamily, target=THREE_MODES, start=THREE_MODES, components=4)
    gammas = f.Independent(base=f.Gamma(concentration=[1.0, 2.0], rate=1.0), event_dims=1)
    with pytest.raises(ParameterError, match="Independent of normals"):
        fit_reverse(f.Independent, target=THREE_MODES, start=gammas)
    with pytest.raises(ParameterError, match="none of them can be fixed"):
        fit_reverse(f.Independent, target=THREE_MODES, fixed={"loc": 0.0})
    with pytest.raises(SupportError, match="a multivariate target, like the family, got Normal"):
        fit_reverse(f.Independent, target=f.Normal(loc=0.0, scale=1.0))
    collinear = np.stack([np.arange(9.0), 2 * np.arange(9.0)], axis=1)
    for family, settings in ((f.MultivariateNormal, {}), (td.MixtureSameFamily, {"components": 2})):
        with pytest.raises(SupportError, match="the vectors lie in a hyperplane"):
            fit_forward(family, samples=collinear, **settings)
    assert fit_forward(f.Independent, samples=collinear).distribution.base.loc == pytest.approx([4.0, 8.0])
    with pytest.raises(ShapeError, match=r"shape \(n,\) for the univariate family Normal, got shape \(9, 2\)"):
        fit_forward(f.Normal, samples=collinear)
    with pytest.raises(SupportError, match="an entry of the vectors is constant"):
        fit_forward(f.Independent, samples=np.ones((5, 2)))
